"""What ``llmkd verify`` holds the losses against, on the user's own machine."""
