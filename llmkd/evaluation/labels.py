"""What measures are called in tables."""

from __future__ import annotations


def task_label(name: str, measure: str) -> str:
    """Of ``tasks.<name>.<measure>``: pass@k, or the level of an exact match."""
    return f"{name}: {measure}" if measure.startswith("pass@") else f"{name} level {measure}: exact match"
