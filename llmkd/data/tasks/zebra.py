"""Zebra puzzles (Einstein's riddle): who lives in which house, from clues that leave exactly one arrangement.

A problem is a pure function of (seed, index, split) and the difficulty. The split is decided by a hash of the puzzle's
one arrangement (who has what, in which house), which the clues determine: no seed, difficulty or wording puts a
held-out arrangement into training. No clue is redundant: without any one of them a second arrangement fits.

Difficulty: `houses` and `attributes` (categories, the names among them), 2 to 5 each; `ask`, one person or the whole
grid; `clue_kinds`, the kinds of clues that may be drawn (`CLUE_KINDS`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from llmkd.data.tasks.distinct import distinct
from llmkd.data.tasks.zebra_clues import ASSUMED, RULE, Clue, Step, draw_clues, explain

Split = Literal["train", "heldout"]
Ask = Literal["one", "grid"]

SIZES = (2, 3, 4, 5)
HELDOUT_ONE_IN = 20
MOST_DRAWS = 20  # of a puzzle that needs other kinds of clues than those allowed
MOST_REPEATS = 1000  # in a row, before `problems` says that there are no more

# How often each kind is drawn, and its wording. Clues that name a house give much away and are rare.
CLUE_KINDS = {"at": 1, "not_at": 1, "same": 5, "different": 2, "next_to": 3, "two_apart": 1,
              "directly_left": 3, "left": 2}  # fmt: skip
WORDING = {
    "at": "{first} lives in house {house}.",
    "not_at": "{first} does not live in house {house}.",
    "same": "{first} {has}.",
    "different": "{first} {lacks}.",
    "next_to": "{first} lives next to {second}.",
    "two_apart": "There is exactly one house between {first} and {second}.",
    "directly_left": "{first} lives directly left of {second}.",
    "left": "{first} lives somewhere to the left of {second}.",
}


@dataclass(frozen=True)
class Category:
    noun: str
    has: str  # with {} for the value
    lacks: str
    values: tuple[str, ...]


# Every value is one lower-case or capitalised word of ASCII letters, and stands in one category only.
NAMES = Category(
    "name", "is {}", "is not {}",
    ("Ada", "Ben", "Dan", "Eva", "Ida", "Jim", "Kim", "Leo", "Mia", "Ned", "Pam", "Sue", "Tom", "Zoe"),
)  # fmt: skip
CATEGORIES = (
    Category("drink", "drinks {}", "does not drink {}", ("tea", "coffee", "milk", "juice", "water", "cocoa", "cider")),
    Category("pet", "keeps the {}", "does not keep the {}",
             ("cat", "dog", "horse", "rabbit", "parrot", "snake", "owl")),
    Category("colour", "lives in the {} house", "does not live in the {} house",
             ("red", "green", "blue", "white", "yellow", "black", "pink")),
    Category("sport", "plays {}", "does not play {}",
             ("tennis", "chess", "golf", "hockey", "rugby", "squash", "darts")),
    Category("job", "works as a {}", "does not work as a {}",
             ("baker", "doctor", "lawyer", "painter", "pilot", "teacher", "tailor")),
    Category("fruit", "likes the {}", "does not like the {}",
             ("apple", "pear", "plum", "cherry", "melon", "mango", "peach")),
    Category("vehicle", "drives the {}", "does not drive the {}",
             ("bus", "van", "truck", "tractor", "scooter", "taxi", "tram")),
    Category("instrument", "owns the {}", "does not own the {}",
             ("piano", "violin", "flute", "guitar", "harp", "drum", "cello")),
)  # fmt: skip


@dataclass(frozen=True)
class Puzzle:
    categories: tuple[Category, ...]  # the names first
    words: tuple[str, ...]  # of the values, numbered as in zebra_clues; in each category by alphabet
    where: tuple[int, ...]  # each value's house, from 0
    clues: tuple[Clue, ...]

    @property
    def houses(self) -> int:
        return len(self.words) // len(self.categories)

    @property
    def rows(self) -> list[list[str]]:
        return _rows(self.words, self.where, self.houses)


def problem(
    seed: int,
    index: int,
    split: Split,
    *,
    houses: int = 4,
    attributes: int = 4,
    ask: Ask = "one",
    clue_kinds: Sequence[str] = tuple(CLUE_KINDS),
) -> dict[str, Any]:
    """Return the problem {question, solution, answer, houses, attributes, ask, clue_kinds} of these arguments.

    `answer` is {"ask": ask, "person": the name asked for or None, "houses": [[name, value, ...], ...]}, house 1 first.
    The same puzzle is asked for both values of `ask`.
    Raises ValueError for arguments out of range and for kinds of clues that cannot single out an arrangement, such as
    `same` alone.
    """
    kinds = _checked(split, houses, attributes, ask, clue_kinds)
    # A string seed is hashed by `random` itself with SHA-512: the same on every machine and in every process.
    rng = Random(f"zebra/{seed}/{index}/{split}/{houses}/{attributes}/{','.join(kinds)}")
    puzzle = _draw(rng, houses, attributes, kinds, split)
    person, asked = _asked(rng, puzzle)
    if ask == "one":
        final, last = person, f"Who {asked}? End with the line `Answer: NAME`."
    else:
        form = ", ".join(category.noun.upper() for category in puzzle.categories)
        form = "; ".join(f"{number}: {form}" for number in range(1, houses + 1))
        final = "; ".join(f"{n}: {', '.join(row)}" for n, row in enumerate(puzzle.rows, 1))
        last = f"Who lives where, and with what? End with one line of this form:\nAnswer: {form}"
    return {
        "question": "\n".join([*_story(puzzle), last]),
        "solution": "\n".join([*_worked(puzzle), f"Answer: {final}"]),
        "answer": {"ask": ask, "person": person if ask == "one" else None, "houses": puzzle.rows},
        "houses": houses,
        "attributes": attributes,
        "ask": ask,
        "clue_kinds": list(kinds),
    }


def problems(seed: int, n: int, split: Split, **difficulty: Any) -> list[dict[str, Any]]:
    """Return n problems with distinct questions; the knobs of `difficulty` are those of `problem`."""
    return distinct(
        lambda index: problem(seed, index, split, **difficulty), lambda row: row["question"], n,
        most_repeats=MOST_REPEATS, task="zebra",
    )  # fmt: skip


def is_heldout(rows: Sequence[Sequence[str]]) -> bool:
    """Whether an arrangement, house by house, is held out (one in 20); the order of the categories is all the same."""
    text = "zebra;" + ";".join(",".join(sorted(row)) for row in rows)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) % HELDOUT_ONE_IN == 0


def _checked(split: str, houses: int, attributes: int, ask: str, clue_kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds of clues in the order of the table, once all arguments are in range."""
    if split not in ("train", "heldout"):
        raise ValueError(f"zebra: split {split!r} does not exist; choose train or heldout")
    for knob, given in (("houses", houses), ("attributes", attributes)):
        if isinstance(given, bool) or given not in SIZES:
            raise ValueError(f"zebra: {knob} {given!r} is out of range; choose one of {', '.join(map(str, SIZES))}")
    if ask not in ("one", "grid"):
        raise ValueError(f"zebra: ask {ask!r} does not exist; choose one or grid")
    unknown = [kind for kind in clue_kinds if kind not in CLUE_KINDS]
    if isinstance(clue_kinds, str) or unknown or not clue_kinds:
        raise ValueError(f"zebra: clue_kinds {clue_kinds!r}: give a list of some of {', '.join(CLUE_KINDS)}")
    return tuple(kind for kind in CLUE_KINDS if kind in clue_kinds)


def _draw(rng: Random, houses: int, attributes: int, kinds: tuple[str, ...], split: str) -> Puzzle:
    for _ in range(MOST_DRAWS):
        held = None
        while held is None or held != (split == "heldout"):
            categories = (NAMES, *rng.sample(CATEGORIES, attributes - 1))
            words = tuple(word for category in categories for word in sorted(rng.sample(category.values, houses)))
            where = tuple(house for _ in categories for house in rng.sample(range(houses), houses))
            held = is_heldout(_rows(words, where, houses))
        clues = draw_clues(rng, houses, where, {kind: CLUE_KINDS[kind] for kind in kinds})
        if clues is not None:
            return Puzzle(categories, words, where, tuple(clues))
    raise ValueError(
        f"zebra: clue_kinds {', '.join(kinds)}: clues of these kinds alone leave more than one arrangement of {houses} "
        "houses; add others, such as at and same"
    )


def _rows(words: Sequence[str], where: Sequence[int], houses: int) -> list[list[str]]:
    values = range(len(words))
    return [[words[value] for value in values if where[value] == house] for house in range(houses)]


def _asked(rng: Random, puzzle: Puzzle) -> tuple[str, str]:
    """A person and what is asked about them: something that no clue states in so many words, where there is such."""
    houses = puzzle.houses
    stated = {clue.second for clue in puzzle.clues if clue.kind == "same" and clue.first < houses}
    values = range(houses, len(puzzle.words))
    value = rng.choice([value for value in values if value not in stated] or list(values))
    person = puzzle.rows[puzzle.where[value]][0]
    return person, puzzle.categories[value // houses].has.format(puzzle.words[value])


def _story(puzzle: Puzzle) -> list[str]:
    houses = puzzle.houses
    categories = [
        f"- {category.noun}: {', '.join(puzzle.words[c * houses : (c + 1) * houses])}"
        for c, category in enumerate(puzzle.categories)
    ]
    clues = [f"{number}. {_sentence(puzzle, clue)}" for number, clue in enumerate(puzzle.clues, 1)]
    return [
        f"{houses} houses stand in a row, numbered 1 to {houses} from left to right. One person lives in each. "
        "No two people share a value of any of these:",
        *categories,
        "Clues:",
        *clues,
    ]


def _sentence(puzzle: Puzzle, clue: Clue) -> str:
    def category(value: int) -> Category:
        return puzzle.categories[value // puzzle.houses]

    def person(value: int) -> str:
        word = puzzle.words[value]
        return word if value < puzzle.houses else f"the person who {category(value).has.format(word)}"

    second = puzzle.words[clue.second]  # of no meaning, and not used, where the clue names a house
    text = WORDING[clue.kind].format(
        first=person(clue.first), second=person(clue.second), house=clue.house + 1,
        has=category(clue.second).has.format(second), lacks=category(clue.second).lacks.format(second),
    )  # fmt: skip
    return text[0].upper() + text[1:]


def _worked(puzzle: Puzzle) -> list[str]:
    """The steps to the arrangement, one a line, then the houses."""
    steps = explain(puzzle.houses, len(puzzle.categories), puzzle.clues)
    lines = [line for step in steps if (line := _line(puzzle, step))]
    return lines + [f"House {number}: {', '.join(row)}." for number, row in enumerate(puzzle.rows, 1)]


def _line(puzzle: Puzzle, step: Step) -> str | None:
    """A step in words; None for what a placed value takes from others of its category: that goes without saying."""
    word = puzzle.words[step.value]
    placed = step.left & (step.left - 1) == 0
    removed = [str(house + 1) for house in range(puzzle.houses) if step.removed >> house & 1]
    found = f"{word} is {'' if placed else 'not '}in house "
    found += str(step.left.bit_length()) if placed else " or ".join(removed)
    if step.clue == ASSUMED:
        return f"If {word} were in house {removed[0]}, the clues would contradict each other: {found}."
    if step.clue == RULE:
        return f"What is left: {found}." if placed else None
    return f"Clue {step.clue + 1}: {found}."
