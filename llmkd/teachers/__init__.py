"""Teachers: named sources of Signals.  Where one is - in this process, behind a server, on disk - is its own affair."""
