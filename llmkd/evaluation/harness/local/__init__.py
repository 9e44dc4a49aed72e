"""What the tasks in ``eval/tasks`` read, ask and grade; their YAMLs name these functions by ``!function``."""
