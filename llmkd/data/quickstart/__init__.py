"""The embedded corpus of the quickstart: code, prose and math that need no download."""
