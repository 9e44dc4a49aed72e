"""The grader of knights and knaves: everybody is named once, and each is what the answer says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmkd.rewards.answer_line import answer_line

LONGEST_ANSWER = 1000  # characters; eight people have about 160

_BETWEEN = re.compile(r"[ \t]*,[ \t]*and[ \t]+|[ \t]*,[ \t]*|[ \t]+and[ \t]+")
_CLAIM = re.compile(r"(\S+(?:[ \t]\S+)*?)[ \t]+is[ \t]+a[ \t]+(knight|knave)")


def knights_and_knaves(prompt: Any, completion: str, reference: Mapping[str, Any], *, partial: bool = False) -> float:
    """1.0 if the last line is `Answer: ` and says of everybody what they are, else 0.0.

    Claims have the form `NAME is a knight` or `NAME is a knave`, between commas or `and`, in any order and any case of
    letters. Everybody is named once and nobody else is: a second claim about a person, the same or another one, an
    unknown person, a negation, a hedge or any other word is 0.0. `partial`: for such an answer the share of people
    who are what it says; guessing earns 1/2 of it on average.

    The reference is {name: is a knight, ...}; a name with None is not one of the puzzle's, since a table with one
    schema for all rows fills those in. Raises ValueError for a reference of another form.
    """
    kinds = _checked(reference)
    answer = answer_line(completion, LONGEST_ANSWER)
    claims = None if answer is None else _claims(answer.lower())
    if claims is None or claims.keys() != kinds.keys():
        return 0.0
    right = sum(claims[name] == kind for name, kind in kinds.items())
    return right / len(kinds) if partial else float(right == len(kinds))


def _claims(answer: str) -> dict[str, bool] | None:
    """What the answer says of each name, true for a knight; None where a part is no claim or a name comes twice."""
    claims: dict[str, bool] = {}
    for part in _BETWEEN.split(answer):
        found = _CLAIM.fullmatch(part)
        if found is None or found[1] in claims:
            return None
        claims[found[1]] = found[2] == "knight"
    return claims


def _checked(reference: Any) -> dict[str, bool]:
    """The people of the puzzle, names in small letters."""
    held = dict(reference) if isinstance(reference, Mapping) else {}
    held = {name: kind for name, kind in held.items() if kind is not None}
    kinds = {name.lower(): kind for name, kind in held.items() if isinstance(name, str) and name.isascii()}
    if not kinds or len(kinds) != len(held) or not all(isinstance(kind, bool) for kind in kinds.values()):
        raise ValueError(
            f"knights_and_knaves: {str(reference)[:200]} is no reference: give the column `answer` of "
            "llmkd.data.tasks.knights_and_knaves, which holds true (a knight) or false for each name (ASCII letters)"
        )
    return kinds
