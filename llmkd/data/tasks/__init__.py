"""Generated tasks with a checkable answer."""
