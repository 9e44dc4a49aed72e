"""Arithmetic word problems with worked steps and one checkable final answer, in four levels of difficulty.

A problem is a pure function of (seed, index, level, split). The split is decided by a hash of the question's own text,
so no seed, index or level can put a held-out question into training.

Levels: 1 one step, small numbers; 2 one step with two-digit numbers, or two small ones; 3 two steps, two-digit numbers;
4 three steps, numbers up to three digits.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Literal

Split = Literal["train", "heldout"]
Draft = tuple[str, list[str], int]  # question, worked steps, answer

LEVELS = (1, 2, 3, 4)
HELDOUT_ONE_IN = 20

NAMES = (
    "Ada", "Ali", "Amy", "Ann", "Ben", "Bob", "Dan", "Eva", "Ian", "Ida", "Jan", "Jim", "Joe", "Kim", "Leo", "Lia",
    "Max", "Mia", "Ned", "Noa", "Oli", "Pam", "Ray", "Rob", "Sam", "Sue", "Tim", "Tom", "Una", "Zoe",
)  # fmt: skip
THINGS = (
    "apples", "balls", "beads", "books", "cards", "coins", "cups", "dolls", "eggs", "keys", "nuts", "pears", "pens",
    "pins", "plums", "rings", "shells", "stamps", "stones", "toys",
)  # fmt: skip
HOLDERS = ("bags", "boxes", "cases", "crates", "jars", "packs", "rows", "shelves", "trays", "tins")

# Ranges by level: terms of sums and differences, multiplicands, multipliers.
TERM = {1: (2, 9), 2: (5, 40), 3: (10, 60), 4: (20, 200)}
MULTIPLICAND = {1: (2, 6), 2: (2, 9), 3: (3, 12), 4: (11, 40)}
MULTIPLIER = {1: (2, 5), 2: (2, 9), 3: (2, 9), 4: (3, 9)}


def problem(seed: int, index: int, level: int, split: Split) -> dict[str, Any]:
    """Return the problem {question, solution, answer, level} that these four arguments stand for.

    The solution ends with the line `Answer: N`; `answer` is the same integer as a string.
    Raises ValueError for a level outside 1..4 or an unknown split.
    """
    if level not in TEMPLATES:
        raise ValueError(f"arithmetic: level {level!r} does not exist; choose from {', '.join(map(str, LEVELS))}")
    if split not in ("train", "heldout"):
        raise ValueError(f"arithmetic: split {split!r} does not exist; choose train or heldout")
    # A string seed is hashed by `random` itself with SHA-512: the same on every machine and in every process.
    rng = Random(f"arithmetic/{seed}/{index}/{level}/{split}")
    while True:
        question, steps, answer = rng.choice(TEMPLATES[level])(rng, level)
        if is_heldout(question) == (split == "heldout"):
            break
    solution = "\n".join([*steps, f"Answer: {answer}"])
    return {"question": question, "solution": solution, "answer": str(answer), "level": level}


def problems(seed: int, n: int, levels: Sequence[int], split: Split) -> list[dict[str, Any]]:
    """Return n problems with distinct questions, the levels taken in turn."""
    if not levels:
        raise ValueError("arithmetic: no levels given; choose some of 1, 2, 3, 4")
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    index = 0
    while len(found) < n:
        row = problem(seed, index, levels[len(found) % len(levels)], split)
        index += 1
        if row["question"] not in seen:
            seen.add(row["question"])
            found.append(row)
    return found


def is_heldout(question: str) -> bool:
    """Whether a question belongs to the held-out split (one in 20, by a hash of its text)."""
    return int.from_bytes(hashlib.blake2b(question.encode(), digest_size=4).digest()) % HELDOUT_ONE_IN == 0


def final_answer(text: str) -> str | None:
    """Return the integer of the one line `Answer: N` if it is the text's last line, else None.

    Strict on purpose: two answers, a decimal, a leading zero, or words after the number are no answer.
    """
    if text.count("Answer:") != 1:
        return None
    match = re.search(r"(?:\A|\n)Answer: (0|-?[1-9][0-9]*)\s*\Z", text)
    return match.group(1) if match else None


def is_correct(text: str, answer: str) -> bool:
    """Whether the text's strictly parsed final answer is the given one."""
    return final_answer(text) == answer


def _term(rng: Random, level: int) -> int:
    return rng.randint(*TERM[level])


def _factors(rng: Random, level: int) -> tuple[int, int]:
    """A multiplier (how many groups) and a multiplicand (how many in each)."""
    return rng.randint(*MULTIPLIER[level]), rng.randint(*MULTIPLICAND[level])


def _two_names(rng: Random) -> tuple[str, str]:
    first, second = rng.sample(NAMES, 2)
    return first, second


# One step.


def _gain(rng: Random, level: int) -> Draft:
    (name, other), things = _two_names(rng), rng.choice(THINGS)
    a, b = _term(rng, level), _term(rng, level)
    event = rng.choice((f"finds {b} more", f"buys {b} more", f"gets {b} from {other}"))
    return (
        f"{name} has {a} {things} and {event}. How many {things} does {name} have now?",
        [f"{name} has {a} + {b} = {a + b}."],
        a + b,
    )


def _loss(rng: Random, level: int) -> Draft:
    (name, other), things = _two_names(rng), rng.choice(THINGS)
    b, c = _term(rng, level), _term(rng, level)
    a = b + c
    event = rng.choice((f"loses {b}", f"sells {b}", f"gives {b} to {other}"))
    return (
        f"{name} has {a} {things} and {event}. How many {things} are left?",
        [f"Left: {a} - {b} = {c}."],
        c,
    )


def _groups(rng: Random, level: int) -> Draft:
    holders, things = rng.choice(HOLDERS), rng.choice(THINGS)
    k, a = _factors(rng, level)
    return (
        f"There are {k} {holders} with {a} {things} in each. How many {things} are there?",
        [f"{k} {holders} of {a} {things}: {k} * {a} = {k * a}."],
        k * a,
    )


def _share(rng: Random, level: int) -> Draft:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    k, a = _factors(rng, level)
    return (
        f"{name} shares {k * a} {things} equally among {k} friends. How many does each friend get?",
        [f"Each gets {k * a} / {k} = {a}."],
        a,
    )


def _difference(rng: Random, level: int) -> Draft:
    (name, other), things = _two_names(rng), rng.choice(THINGS)
    b, c = _term(rng, level), _term(rng, level)
    a = b + c
    return (
        f"{name} has {a} {things}. {other} has {b}. How many more does {name} have?",
        [f"{name} has more: {a} - {b} = {c}."],
        c,
    )


def _price(rng: Random, level: int) -> Draft:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    k, a = _factors(rng, level)
    return (
        f"{name} buys {k} {things} at {a} dollars each. What does {name} pay?",
        [f"{k} {things}: {k} * {a} = {k * a}."],
        k * a,
    )


# Two steps.


def _gain_then_loss(rng: Random, level: int) -> Draft:
    (name, other), things = _two_names(rng), rng.choice(THINGS)
    a, b = _term(rng, level), _term(rng, level)
    c = rng.randint(1, min(a + b - 1, TERM[level][1]))
    return (
        f"{name} has {a} {things}, buys {b} more and gives {c} to {other}. How many {things} does {name} have now?",
        [f"{name} has {a} + {b} = {a + b}.", f"Then {a + b} - {c} = {a + b - c}."],
        a + b - c,
    )


def _groups_and_loose(rng: Random, level: int) -> Draft:
    name, holders, things = rng.choice(NAMES), rng.choice(HOLDERS), rng.choice(THINGS)
    (k, a), b = _factors(rng, level), _term(rng, level)
    return (
        f"{name} has {k} {holders} of {a} {things} and {b} loose {things}. How many {things} is that?",
        [f"{k} {holders} of {a}: {k} * {a} = {k * a}.", f"Then {k * a} + {b} = {k * a + b}."],
        k * a + b,
    )


def _groups_some_sold(rng: Random, level: int) -> Draft:
    holders, things = rng.choice(HOLDERS), rng.choice(THINGS)
    k, a = _factors(rng, level)
    b = rng.randint(1, k * a - 1)
    return (
        f"A shop has {k} {holders} of {a} {things} and sells {b} {things}. How many are left?",
        [f"{k} {holders} of {a}: {k} * {a} = {k * a}.", f"Left: {k * a} - {b} = {k * a - b}."],
        k * a - b,
    )


def _more_than_other(rng: Random, level: int) -> Draft:
    (name, other), things = _two_names(rng), rng.choice(THINGS)
    a, b = _term(rng, level), _term(rng, level)
    return (
        f"{name} has {a} {things}. {other} has {b} more than {name}. How many do they have together?",
        [f"{other} has {a} + {b} = {a + b}.", f"Together: {a} + {a + b} = {a + a + b}."],
        a + a + b,
    )


def _change(rng: Random, level: int) -> Draft:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    (k, a), left = _factors(rng, level), _term(rng, level)
    paid = k * a + left
    return (
        f"{name} has {paid} dollars and buys {k} {things} at {a} dollars each. How many dollars are left?",
        [f"{k} {things}: {k} * {a} = {k * a}.", f"Left: {paid} - {k * a} = {left}."],
        left,
    )


def _join_and_share(rng: Random, level: int) -> Draft:
    (name, other), things = _two_names(rng), rng.choice(THINGS)
    k, each = _factors(rng, level)
    a = rng.randint(1, k * each - 1)
    b = k * each - a
    return (
        f"{name} has {a} {things} and {other} has {b}. They share them equally among {k} friends. "
        "How many does each friend get?",
        [f"Together: {a} + {b} = {k * each}.", f"Each gets {k * each} / {k} = {each}."],
        each,
    )


# Three steps.


def _two_kinds(rng: Random, level: int) -> Draft:
    name, (things, others) = rng.choice(NAMES), rng.sample(THINGS, 2)
    (k, a), (m, b) = _factors(rng, level), _factors(rng, level)
    x, y = k * a, m * b
    return (
        f"{name} buys {k} {things} at {a} dollars each and {m} {others} at {b} dollars each. What does {name} pay?",
        [f"{k} {things}: {k} * {a} = {x}.", f"{m} {others}: {m} * {b} = {y}.", f"Together: {x} + {y} = {x + y}."],
        x + y,
    )


def _savings(rng: Random, level: int) -> Draft:
    name = rng.choice(NAMES)
    (k, a), b = _factors(rng, level), _term(rng, level)
    x = b + k * a
    c = rng.randint(1, min(x - 1, TERM[level][1]))
    return (
        f"{name} has {b} dollars, saves {a} dollars a week for {k} weeks and then spends {c}. "
        f"How many dollars does {name} have now?",
        [f"Saved: {k} * {a} = {k * a}.", f"Then {b} + {k * a} = {x}.", f"Left: {x} - {c} = {x - c}."],
        x - c,
    )


def _three_days(rng: Random, level: int) -> Draft:
    (name, other), things = _two_names(rng), rng.choice(THINGS)
    a, b, c = _term(rng, level), _term(rng, level), _term(rng, level)
    x = a + b + c
    d = rng.randint(1, min(x - 1, TERM[level][1]))
    return (
        f"{name} finds {a} {things} on Monday, {b} on Tuesday and {c} on Friday, then gives {d} to {other}. "
        f"How many {things} does {name} have now?",
        [f"Two days: {a} + {b} = {a + b}.", f"Then {a + b} + {c} = {x}.", f"Left: {x} - {d} = {x - d}."],
        x - d,
    )


def _boxes_lost_and_found(rng: Random, level: int) -> Draft:
    (name, other), holders, things = _two_names(rng), rng.choice(HOLDERS), rng.choice(THINGS)
    (k, a), c = _factors(rng, level), _term(rng, level)
    b = rng.randint(1, k * a - 1)
    x = k * a - b
    return (
        f"{name} has {k} {holders} of {a} {things}, loses {b} {things} and gets {c} from {other}. "
        f"How many {things} does {name} have now?",
        [f"{k} {holders} of {a}: {k} * {a} = {k * a}.", f"Left: {k * a} - {b} = {x}.", f"Then {x} + {c} = {x + c}."],
        x + c,
    )


def _share_and_spend(rng: Random, level: int) -> Draft:
    (name, other), (k, each) = _two_names(rng), _factors(rng, level)
    a = rng.randint(1, k * each - 1)
    b, spent = k * each - a, rng.randint(1, each - 1)
    return (
        f"{name} earns {a} dollars and {other} earns {b}. They share it equally among {k} people. "
        f"{name} spends {spent} of one share. How many dollars of it are left?",
        [f"Together: {a} + {b} = {k * each}.", f"Each gets {k * each} / {k} = {each}."]
        + [f"Left: {each} - {spent} = {each - spent}."],
        each - spent,
    )


ONE_STEP = (_gain, _loss, _groups, _share, _difference, _price)
TWO_STEPS = (_gain_then_loss, _groups_and_loose, _groups_some_sold, _more_than_other, _change, _join_and_share)
THREE_STEPS = (_two_kinds, _savings, _three_days, _boxes_lost_and_found, _share_and_spend)
TEMPLATES: dict[int, tuple[Callable[[Random, int], Draft], ...]] = {
    1: ONE_STEP,
    2: (*ONE_STEP, _more_than_other, _gain_then_loss),
    3: TWO_STEPS,
    4: THREE_STEPS,
}
