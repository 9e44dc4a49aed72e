"""So many problems of a task, no two alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

Row = dict[str, Any]


def distinct(
    problem: Callable[[int], Row], key: Callable[[Row], Hashable], n: int, *, most_repeats: int, task: str,
    advice: str = "ask for fewer",
) -> list[Row]:  # fmt: skip
    """The first n of ``problem(0)``, ``problem(1)``, ... whose keys differ.

    Raises ValueError, with the task's name and the advice, after ``most_repeats`` in a row that were there already.
    """
    found: dict[Hashable, Row] = {}
    index = repeats = 0
    while len(found) < n:
        row = problem(index)
        index += 1
        repeats = repeats + 1 if key(row) in found else 0
        if repeats > most_repeats:
            raise ValueError(f"{task}: {n} distinct problems asked for, found {len(found)}; {advice}")
        found.setdefault(key(row), row)
    return list(found.values())
