"""The grader of countdown problems: does the expression use the given numbers, and does it make the target?

The expression is read by the small parser below and worked out in exact fractions; no text is ever run. Before
anything is worked out, its numbers must be among those given, so that there are never more operations than numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from llmkd.rewards.answer_line import answer_line

LONGEST_ANSWER = 300  # characters
DEEPEST = 20  # brackets within brackets
SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-"})

_TOKEN = re.compile(r"[ \t]*(0|[1-9][0-9]{0,11}|[-+*/x()])")


class _Malformed(Exception):
    """The text is no expression of the grammar, or it has no value."""


def countdown(prompt: Any, completion: str, reference: Mapping[str, Any], *, partial: float = 0.0) -> float:
    """1.0 if the last line is `Answer: ` and an expression that makes the target; `partial` if it misses; else 0.0.

    The grammar: integers, the signs + - * / (also x × ÷ −) between two parts, and brackets. No sign in front of a
    number, no power, no decimal, no equation. Each number stands in it at most as often as it is given, with
    `use_all` exactly as often. `partial`, below 1, is for an expression that keeps these rules and has another value.

    The reference is {"numbers": [...], "target": n, "use_all": bool}; without `use_all` it is false.
    Raises ValueError for a reference of another form, or `partial` outside [0, 1).
    """
    numbers, target, use_all = _checked(reference)
    if isinstance(partial, bool) or not isinstance(partial, int | float) or not 0 <= partial < 1:
        raise ValueError(f"countdown: partial {partial!r} is outside [0, 1): give a number inside it")
    answer = answer_line(completion.translate(SIGNS) if isinstance(completion, str) else "", LONGEST_ANSWER)
    if answer is None:
        return 0.0
    try:
        tokens = _tokens(answer)
        used = Counter(int(token) for token in tokens if token.isdigit())
        if not used <= numbers or (use_all and used != numbers):
            return 0.0
        value, rest = _sum(tokens, 0, 0)
    except _Malformed:
        return 0.0
    if rest != len(tokens):
        return 0.0
    return 1.0 if value == target else float(partial)


def _checked(reference: Any) -> tuple[Counter[int], int, bool]:
    """The reference's three parts."""
    held = dict(reference) if isinstance(reference, Mapping) else {}
    numbers, target, use_all = held.get("numbers"), held.get("target"), held.get("use_all", False)
    good = isinstance(numbers, list) and bool(numbers) and all(type(number) is int for number in numbers)
    if not good or type(target) is not int or not isinstance(use_all, bool):
        raise ValueError(
            f"countdown: {str(reference)[:200]} is no reference: give the column `answer` of "
            'llmkd.data.tasks.countdown, which holds "numbers" (integers), "target" (an integer) and "use_all"'
        )
    return Counter(numbers), target, use_all


def _tokens(text: str) -> list[str]:
    """The text in pieces. Digits after a leading zero are a number of their own, which no grammar allows there."""
    tokens, position = [], 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise _Malformed
        tokens.append("*" if found[1] == "x" else found[1])
        position = found.end()
    return tokens


def _sum(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    """The value of a sum of products that begins at a token, and where it ends."""
    value, at = _product(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "+-":
        right, after = _product(tokens, at + 1, depth)
        value = value + right if tokens[at] == "+" else value - right
        at = after
    return value, at


def _product(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    value, at = _operand(tokens, at, depth)
    while at < len(tokens) and tokens[at] in "*/":
        right, after = _operand(tokens, at + 1, depth)
        if tokens[at] == "/" and right == 0:
            raise _Malformed
        value = value * right if tokens[at] == "*" else value / right
        at = after
    return value, at


def _operand(tokens: list[str], at: int, depth: int) -> tuple[Fraction, int]:
    token = tokens[at] if at < len(tokens) else ""
    if token.isdigit():
        return Fraction(int(token)), at + 1
    if token != "(" or depth == DEEPEST:
        raise _Malformed
    value, end = _sum(tokens, at + 1, depth + 1)
    if end >= len(tokens) or tokens[end] != ")":
        raise _Malformed
    return value, end + 1
