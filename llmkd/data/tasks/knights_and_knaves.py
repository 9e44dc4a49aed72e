"""Knights and knaves: who tells the truth and who lies, from one statement each (after Raymond Smullyan).

A problem is a pure function of (seed, index, split) and the difficulty. Exactly one assignment of kinds to people makes
every knight's statement true and every knave's false: all 2^n assignments are tried. The split is decided by a hash of
what the people say, as logic and not as words: no seed, difficulty, order or wording puts a held-out puzzle into
training.

Difficulty: `people`, 2 to 8; `depth`, how far statements are nested (1: no and, or, if, not); `width`, how many parts
an and or an or may have. The idea of these two is that of Reasoning Gym's task (arXiv:2505.24760).

A set of assignments is an integer: bit a is on if assignment a is in it, and bit i of a says that person i, counted by
alphabet, is a knight. A statement's set is the assignments that make it true.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, Literal

from llmkd.data.tasks.arithmetic import NAMES
from llmkd.data.tasks.distinct import distinct
from llmkd.data.tasks.knights_and_knaves_steps import explain

Split = Literal["train", "heldout"]
Statement = tuple[Any, ...]  # ("is", 0, True), ("same", 0, 1), ("count", "exactly", 2, True), ("and", s, t), ...

PEOPLE = (2, 3, 4, 5, 6, 7, 8)
DEPTHS = (1, 2, 3)
WIDTHS = (2, 3, 4)
HELDOUT_ONE_IN = 20
MOST_REPEATS = 1000  # in a row, before `problems` says that there are no more
ATOMS = ("is", "is", "is", "same", "different", "count")
CONNECTIVES = ("and", "or", "if", "iff", "not")
READING = 'Here "or" does not exclude "both", and "if ... then ..." is false only if its first part alone is true.'


@dataclass(frozen=True)
class Puzzle:
    names: tuple[str, ...]  # by alphabet
    speakers: tuple[int, ...]  # in the order in which they speak
    statements: tuple[Statement, ...]  # of each person, by alphabet
    sets: tuple[int, ...]  # the set of each statement
    solution: int  # an assignment

    def kinds(self) -> dict[str, bool]:
        return {self.names[person]: bool(self.solution >> person & 1) for person in self.speakers}


def problem(seed: int, index: int, split: Split, *, people: int = 3, depth: int = 2, width: int = 2) -> dict[str, Any]:
    """Return the problem {question, solution, answer, people, depth, width} of these arguments.

    `answer` is {name: is a knight, ...}. The solution derives it step by step, by what follows from one statement and
    by suppositions that are contradicted, and ends with `Answer: Ada is a knight, Ben is a knave, ...`.
    Raises ValueError for arguments out of range.
    """
    _check(split, people, depth, width)
    # A string seed is hashed by `random` itself with SHA-512: the same on every machine and in every process.
    rng = Random(f"knights_and_knaves/{seed}/{index}/{split}/{people}/{depth}/{width}")
    puzzle = None
    while puzzle is None or is_heldout(puzzle.names, puzzle.sets) != (split == "heldout"):
        puzzle = _drawn(rng, people, depth, width)
    kinds = puzzle.kinds()
    listed = list(kinds)
    says = [f'{puzzle.names[person]} says: "{_said(puzzle, person)}"' for person in puzzle.speakers]
    question = [
        f"On an island everybody is a knight or a knave. Knights always tell the truth, knaves always lie. You meet "
        f"{', '.join(listed[:-1])} and {listed[-1]}.",
        *says,
        *([READING] if depth > 1 else []),
        "Who is what? End with one line that names everybody once, of this form:\n"
        "Answer: NAME is a knight, NAME is a knave, ...",
    ]
    final = ", ".join(f"{name} is a {_kind(knight)}" for name, knight in kinds.items())
    return {
        "question": "\n".join(question),
        "solution": "\n".join([*explain(puzzle.names, puzzle.speakers, puzzle.sets), f"Answer: {final}"]),
        "answer": kinds,
        "people": people,
        "depth": depth,
        "width": width,
    }


def problems(seed: int, n: int, split: Split, **difficulty: Any) -> list[dict[str, Any]]:
    """Return n problems with distinct questions; the knobs of `difficulty` are those of `problem`."""
    return distinct(
        lambda index: problem(seed, index, split, **difficulty), lambda row: row["question"], n,
        most_repeats=MOST_REPEATS, task="knights_and_knaves",
    )  # fmt: skip


def is_heldout(names: Sequence[str], sets: Sequence[int]) -> bool:
    """Whether a puzzle is held out (one in 20): its people by alphabet, and the set of each one's statement."""
    text = f"knights_and_knaves;{','.join(names)};{','.join(map(str, sets))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) % HELDOUT_ONE_IN == 0


def set_of(statement: Statement, people: int) -> int:
    """The assignments that make a statement true."""
    kind, *parts = statement
    everything = (1 << (1 << people)) - 1
    if kind in ("is", "count"):
        return _members(statement, people)
    if kind in ("same", "different"):
        differ = _members(("is", parts[0], True), people) ^ _members(("is", parts[1], True), people)
        return differ if kind == "different" else everything ^ differ
    first, *others = (set_of(part, people) for part in parts)
    if kind == "not":
        return everything ^ first
    if kind == "if":
        return (everything ^ first) | others[0]
    if kind == "iff":
        return everything ^ first ^ others[0]
    for other in others:
        first = first & other if kind == "and" else first | other
    return first


@lru_cache(maxsize=4096)
def _members(statement: Statement, people: int) -> int:
    """The set of a statement about one person, or of one that counts, assignment by assignment."""
    if statement[0] == "is":
        _, person, knight = statement
        return sum(1 << a for a in range(1 << people) if bool(a >> person & 1) == knight)
    _, how, number, knight = statement
    counts = [a.bit_count() if knight else people - a.bit_count() for a in range(1 << people)]
    fits = {"exactly": number.__eq__, "at least": number.__le__, "at most": number.__ge__}[how]
    return sum(1 << a for a, count in enumerate(counts) if fits(count))


def _check(split: str, people: int, depth: int, width: int) -> None:
    if split not in ("train", "heldout"):
        raise ValueError(f"knights_and_knaves: split {split!r} does not exist; choose train or heldout")
    for knob, given, allowed in (("people", people, PEOPLE), ("depth", depth, DEPTHS), ("width", width, WIDTHS)):
        if type(given) is not int or given not in allowed:
            choices = ", ".join(map(str, allowed))
            raise ValueError(f"knights_and_knaves: {knob} {given!r} is out of range; choose one of {choices}")


def _drawn(rng: Random, people: int, depth: int, width: int) -> Puzzle | None:
    """A puzzle around a drawn solution; None where its statements allow another solution too."""
    names = tuple(sorted(rng.sample(NAMES, people)))
    solution = rng.randrange(1 << people)
    deepest = rng.randrange(people)  # this one's statement has the whole depth, the others' have up to that
    left = (1 << (1 << people)) - 1
    statements, sets = [], []
    for person in range(people):
        knight = bool(solution >> person & 1)
        statement, members = _statement(rng, person, knight, solution, people, width,
                                        depth if person == deepest else rng.randint(1, depth))  # fmt: skip
        statements.append(statement)
        sets.append(members)
        left &= allowed(person, members, people)
    if left != 1 << solution:
        return None
    return Puzzle(names, tuple(rng.sample(range(people), people)), tuple(statements), tuple(sets), solution)


def allowed(person: int, members: int, people: int) -> int:
    """The assignments that a person's statement, of this set, allows: a knight's is true, a knave's is false."""
    everything = (1 << (1 << people)) - 1
    return everything ^ _members(("is", person, True), people) ^ members


def _statement(
    rng: Random, person: int, knight: bool, solution: int, people: int, width: int, depth: int
) -> tuple[Statement, int]:
    """A statement that this person can make: true for a knight, false for a knave, and of some use."""
    everything = (1 << (1 << people)) - 1
    while True:
        statement, members = _part(rng, people, depth, width)
        if bool(members >> solution & 1) == knight and allowed(person, members, people) != everything:
            return statement, members


def _part(rng: Random, people: int, depth: int, width: int) -> tuple[Statement, int]:
    """A statement nested so deep, neither true nor false of all assignments, nor as good as one of its parts."""
    everything = (1 << (1 << people)) - 1
    while True:
        if depth == 1:
            statement, inner = _atom(rng, people), []
        else:
            name = rng.choice(CONNECTIVES if depth > 2 else CONNECTIVES[:-1])  # what `not` denies is no atom
            count = 1 if name == "not" else rng.randint(2, width) if name in ("and", "or") else 2
            depths = [depth - 1, *(rng.randint(1, depth - 1) for _ in range(count - 1))]
            parts = [_part(rng, people, below, width) for below in depths]
            rng.shuffle(parts)
            statement, inner = (name, *(part for part, _ in parts)), [members for _, members in parts]
        members = set_of(statement, people)
        if members not in (0, everything, *inner) and len(set(inner)) == len(inner):
            return statement, members


def _atom(rng: Random, people: int) -> Statement:
    name = rng.choice(ATOMS)
    if name == "is":
        return (name, rng.randrange(people), rng.random() < 0.5)
    if name == "count":
        return (name, rng.choice(("exactly", "at least", "at most")), rng.randint(0, people), rng.random() < 0.5)
    return (name, *rng.sample(range(people), 2))


def _kind(knight: bool) -> str:
    return "knight" if knight else "knave"


def _said(puzzle: Puzzle, speaker: int) -> str:
    text = _words(puzzle, speaker, puzzle.statements[speaker])
    return f"{text[0].upper()}{text[1:]}."


def _words(puzzle: Puzzle, speaker: int, statement: Statement) -> str:
    """A statement in the speaker's words; within another one it stands in brackets if it has parts itself."""
    name, *parts = statement
    if name == "is":
        person, knight = parts
        return f"{'I am' if person == speaker else f'{puzzle.names[person]} is'} a {_kind(knight)}"
    if name == "count":
        how, number, knight = parts
        return f"{how} {number} of us {'is a' if number == 1 else 'are'} {_kind(knight)}{'s' * (number != 1)}"
    if name in ("same", "different"):
        first, second = (puzzle.names[person] for person in sorted(parts, key=lambda person: person == speaker))
        second = "I" if speaker in parts else second
        return f"{first} and {second} are of {'the same kind' if name == 'same' else 'different kinds'}"
    inner = [_words(puzzle, speaker, part) for part in parts]
    inner = [f"({text})" if part[0] in CONNECTIVES else text for text, part in zip(inner, parts, strict=True)]
    if name == "not":
        return f"it is not true that {inner[0]}"
    if name == "if":
        return f"if {inner[0]}, then {inner[1]}"
    return {"and": ", and ", "or": ", or ", "iff": " if and only if "}[name].join(inner)
