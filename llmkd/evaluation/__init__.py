"""What a distillation is worth: measured after a run, side by side with its teacher and its baseline."""
