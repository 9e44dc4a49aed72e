"""Countdown: reach a target from given numbers with + - * / and brackets.

A problem is a pure function of (seed, index, split) and the difficulty. An expression is drawn over the numbers, and
its value is the target, so every problem can be solved. The split is decided by a hash of the sorted numbers and the
target: no seed, difficulty, order of the numbers or wording puts a held-out problem into training.

Difficulty: `numbers`, how many are given (3 to 6); `largest`, the largest of them; `target`, the range of the target;
`use_all`, whether each number is used exactly once or at most once. The target is never one of the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Any, Literal

from llmkd.data.tasks.distinct import distinct

Split = Literal["train", "heldout"]
Tree = int | tuple[str, "Tree", "Tree"]

COUNTS = (3, 4, 5, 6)
LARGEST = (5, 999)  # the range of `largest`
TARGETS = (1, 9999)  # the range in which `target` lies
HELDOUT_ONE_IN = 20
MOST_DRAWS = 20_000  # of a problem, before its range of targets is said to be out of reach
MOST_REPEATS = 10_000  # in a row, before `problems` says that there are no more
RANK = {"+": 1, "-": 1, "*": 2, "/": 2}
RULES = {True: "Use each number exactly once", False: "Use each number at most once"}


def problem(
    seed: int,
    index: int,
    split: Split,
    *,
    numbers: int = 4,
    largest: int = 25,
    target: Sequence[int] = (10, 100),
    use_all: bool = False,
) -> dict[str, Any]:
    """Return the problem {question, solution, answer, numbers, largest, target, use_all} of these arguments.

    `target` is [lowest, highest], both included. `answer` is {"numbers": [...], "target": n, "use_all": use_all}. The
    solution takes one step a line, on the way to positive integers only, and ends with `Answer: EXPRESSION`.
    Raises ValueError for arguments out of range, and for a range of targets that the numbers do not reach.
    """
    low, high = _checked(split, numbers, largest, target, use_all)
    # A string seed is hashed by `random` itself with SHA-512: the same on every machine and in every process.
    rng = Random(f"countdown/{seed}/{index}/{split}/{numbers}/{largest}/{low}/{high}/{use_all}")
    for _ in range(MOST_DRAWS):
        given = [rng.randint(1, largest) for _ in range(numbers)]
        tree, value = _drawn(rng, given if use_all else rng.sample(given, rng.randint(2, numbers)), high)
        if low <= value <= high and value not in given and is_heldout(given, value) == (split == "heldout"):
            return _row(given, value, tree, use_all) | {
                "numbers": numbers, "largest": largest, "target": [low, high], "use_all": use_all,
            }  # fmt: skip
    raise ValueError(
        f"countdown: target [{low}, {high}]: {numbers} numbers up to {largest} hardly reach it; give a wider range or "
        "a larger `largest`"
    )


def problems(seed: int, n: int, split: Split, **difficulty: Any) -> list[dict[str, Any]]:
    """Return n problems, no two with the same numbers and target; the knobs of `difficulty` are those of `problem`."""
    return distinct(
        lambda index: problem(seed, index, split, **difficulty),
        lambda row: (*sorted(row["answer"]["numbers"]), row["answer"]["target"]),
        n, most_repeats=MOST_REPEATS, task="countdown",
        advice="ask for fewer, or give larger numbers or a wider target",
    )  # fmt: skip


def is_heldout(numbers: Sequence[int], target: int) -> bool:
    """Whether numbers, in any order, and a target are of the held-out split (one in 20)."""
    text = f"countdown;{','.join(map(str, sorted(numbers)))};{target}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) % HELDOUT_ONE_IN == 0


def _checked(split: str, numbers: int, largest: int, target: Sequence[int], use_all: bool) -> tuple[int, int]:
    """The range of the target, once all arguments are in range."""
    if split not in ("train", "heldout"):
        raise ValueError(f"countdown: split {split!r} does not exist; choose train or heldout")
    if type(numbers) is not int or numbers not in COUNTS:
        raise ValueError(f"countdown: numbers {numbers!r} is out of range; choose one of {', '.join(map(str, COUNTS))}")
    if type(largest) is not int or not LARGEST[0] <= largest <= LARGEST[1]:
        raise ValueError(f"countdown: largest {largest!r} is out of range; choose {LARGEST[0]} to {LARGEST[1]}")
    if not isinstance(use_all, bool):
        raise ValueError(f"countdown: use_all {use_all!r} does not exist; choose true or false")
    pair = list(target) if isinstance(target, list | tuple) else []
    whole = len(pair) == 2 and all(type(end) is int for end in pair)
    if not whole or not TARGETS[0] <= pair[0] <= pair[1] <= TARGETS[1]:
        raise ValueError(
            f"countdown: target {target!r} is no range; give [lowest, highest] within {TARGETS[0]} and {TARGETS[1]}"
        )
    return pair[0], pair[1]


def _drawn(rng: Random, numbers: Sequence[int], high: int) -> tuple[Tree, int]:
    """An expression over all of the numbers, and its value; every part of it is a positive integer."""
    parts: list[tuple[Tree, int]] = [(number, number) for number in numbers]
    while len(parts) > 1:
        first, second = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        parts.append(_joined(rng, first, second, high))
    return parts[0]


def _joined(rng: Random, first: tuple[Tree, int], second: tuple[Tree, int], high: int) -> tuple[Tree, int]:
    """Two parts under a drawn sign. Times or by 1 is no step; a product far above the target is seldom of use."""
    low, top = sorted((first[1], second[1]))
    signs = ["+"]
    if low != top:
        signs.append("-")
    if low != 1 and low * top <= 4 * high:
        signs += ["*", "*"]
    if low != 1 and top % low == 0:
        signs += ["/"] * 3  # seldom possible, so likelier where it is
    sign = rng.choice(signs)
    if sign in "-/" and first[1] < second[1]:
        first, second = second, first
    (left, a), (right, b) = first, second
    return (sign, left, right), _worked_out(a, sign, b)


def _worked_out(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]


def _row(given: list[int], target: int, tree: Tree, use_all: bool) -> dict[str, Any]:
    steps: list[str] = []
    _value(tree, steps)
    listed = ", ".join(map(str, given))
    return {
        "question": f"Make {target} from the numbers {listed} with + - * / and brackets. {RULES[use_all]}. End with "
        "the line `Answer: EXPRESSION`.",
        "solution": "\n".join([*steps, f"Answer: {render(tree)}"]),
        "answer": {"numbers": given, "target": target, "use_all": use_all},
    }


def _value(tree: Tree, steps: list[str]) -> int:
    """The value of an expression; its steps are added to `steps`, inner ones first."""
    if isinstance(tree, int):
        return tree
    sign, *parts = tree
    a, b = (_value(part, steps) for part in parts)
    value = _worked_out(a, sign, b)
    steps.append(f"{a} {sign} {b} = {value}")
    return value


def render(tree: Tree, rank: int = 0) -> str:
    """An expression as text, in brackets where it stands beside a sign of a higher rank than its own."""
    if isinstance(tree, int):
        return str(tree)
    sign, left, right = tree
    own = RANK[sign]
    text = f"{render(left, own)} {sign} {render(right, own + 1)}"
    return f"({text})" if own < rank else text
