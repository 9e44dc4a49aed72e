"""``llmkd compare``: several recipes with the same seeds and budget, one table, and what can be said from it."""
