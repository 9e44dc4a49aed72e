"""A final answer that must be the reference letter by letter."""

from __future__ import annotations

from typing import Any

MARK = "Answer:"


def exact(prompt: Any, completion: str, reference: Any, *, ignore_case: bool = False) -> float:
    """1.0 where the completion's last line is its only ``Answer: X`` and X is the reference, else 0.0.

    Spaces around X do not count and a run of white space is one space; with ``ignore_case`` neither do capitals.  A
    second ``Answer:`` anywhere in the completion is a second guess: 0.0.

    reference: a text or a number; a text with an ``Answer:`` of its own (a worked solution) stands for what follows
    the last one.

    Raises: ValueError where the reference is neither, or empty.
    """
    wanted = _plain(_wanted(reference), ignore_case)
    if not wanted:
        raise ValueError(f"exact: the reference {reference!r:.80} holds no answer: name the right column")
    lines = completion.rstrip().rsplit("\n", 1)
    if completion.count(MARK) != 1 or not lines[-1].lstrip().startswith(MARK):
        return 0.0
    return float(_plain(lines[-1].lstrip()[len(MARK) :], ignore_case) == wanted)


def _wanted(reference: Any) -> str:
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        raise ValueError(f"exact: the reference {reference!r:.80} is neither text nor a number: name the right column")
    return str(reference).rpartition(MARK)[2]


def _plain(answer: str, ignore_case: bool) -> str:
    plain = " ".join(answer.split())
    return plain.casefold() if ignore_case else plain
