"""The grader of zebra puzzles: 1.0 for exactly the right person, or exactly the right grid, else 0.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkd.rewards.answer_line import answer_line

LONGEST_ANSWER = 1000  # characters; a grid of 5 houses and 5 categories has about 200


def zebra(prompt: Any, completion: str, reference: Mapping[str, Any]) -> float:
    """1.0 if the last line is `Answer: ` and the whole answer, else 0.0.

    The reference is {"ask": "one" | "grid", "person": str | None, "houses": [[value, ...], ...]}, house 1 first.
    `one`: the answer is the person's name and nothing else. `grid`: `1: value, value; 2: value, value; ...`, every
    house once and in order, every value of the house once, in any order. Case and spaces do not matter. Anything more,
    such as a second name, a negation, a full stop or a second line `Answer:`, is 0.0.
    Raises ValueError for a reference of another form.
    """
    ask, person, houses = _checked(reference)
    answer = answer_line(completion, LONGEST_ANSWER)
    if answer is None:
        return 0.0
    if ask == "one":
        return float(answer.lower() == person.lower())
    right = [sorted(word.lower() for word in house) for house in houses]
    return float(_grid(answer.lower()) == right)


def _grid(answer: str) -> list[list[str]] | None:
    """The values of each house, sorted; None where the houses are not numbered 1, 2, ... in order."""
    grid = []
    for number, part in enumerate(answer.split(";"), 1):
        label, colon, values = part.partition(":")
        if not colon or label.strip(" \t") != str(number):
            return None
        grid.append(sorted(value.strip(" \t") for value in values.split(",")))
    return grid


def _checked(reference: Any) -> tuple[str, str, list[list[str]]]:
    """The reference's three parts."""
    held = dict(reference) if isinstance(reference, Mapping) else {}
    ask, person, houses = held.get("ask"), held.get("person"), held.get("houses")
    grid = isinstance(houses, list) and bool(houses) and all(isinstance(house, list) and house for house in houses)
    good = grid and all(isinstance(word, str) and word for house in houses for word in house)
    if not good or not (ask == "grid" or (ask == "one" and isinstance(person, str) and person)):
        raise ValueError(
            f"zebra: {str(reference)[:200]} is no reference: give the column `answer` of llmkd.data.tasks.zebra, "
            'which holds "ask" (one or grid), "person" and "houses"'
        )
    return ask, person or "", houses
