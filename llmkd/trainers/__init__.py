"""Trainers: thin subclasses of TRL's.  A trainer does not know which terms it sums."""
