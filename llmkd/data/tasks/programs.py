"""The sequence-program task: given integers, write the shortest program of a tiny language that prints them.

After the KoLMogorov Test (arXiv:2503.13992), which asks for Python programs; here the language is our own, and the
question holds its whole reference (`LANGUAGE`), so that a grader can read and run programs without trusting them.

A problem is a pure function of (seed, index, split) and the difficulty: a program is drawn and run, its sequence is
the question. The split is decided by a hash of the sequence's first 8 numbers (no sequence is shorter): no seed and no
difficulty puts a held-out sequence, or the beginning of one, into training.

Difficulty: `operations`, how many functions the drawn program has (1 to 5), and `length`, how many numbers it prints.
The drawn program need not be the shortest. But no part of it prints the whole sequence, and the sequence has no
shorter plain form: list, arithmetic progression, or repeated list.

Programs are nested tuples here, evaluated directly; no text is ever run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, pairwise
from operator import add, floordiv, mod, mul, sub
from random import Random
from typing import Any, Literal

from llmkd.data.tasks.distinct import distinct

Split = Literal["train", "heldout"]
Tree = tuple[Any, ...]  # ("list", 1, 2), ("repeat", tree, 3), ("map", formula, 10), ...
Formula = str | int | tuple[Any, ...]  # "i", 3, ("*", "i", 3)

OPERATIONS = (1, 2, 3, 4, 5)
LONGEST = 64
HASHED = 8
HELDOUT_ONE_IN = 20
LARGEST = 999
LONGEST_LIST = 5  # in a drawn program
MOST_REPEATS = 10_000  # in a row, before `problems` says that there are no more

LANGUAGE = """\
A program is one expression for a sequence of integers. n and k are integers of at most 4 digits, such as 7 or -3.
[4, -1, 0]            4, -1, 0
range(2, 11, 3)       2, 5, 8: from 2 on, below 11, by steps of 3; a step of 1 may be left out: range(2, 5) is 2, 3, 4
map(i * i % 5, n)     a formula for i = 0, 1, ..., n - 1, with + - * // % and brackets: map(i * 2 + 1, 3) is 1, 3, 5
repeat(s, n)          s, n times: repeat([1, 2], 2) is 1, 2, 1, 2
reverse(s)            from the last to the first
concat(s, t)          s, then t
interleave(s, t)      by turns from s and t: interleave([1, 2, 3], [8, 9]) is 1, 8, 2, 9, 3
cumsum(s)             running sums: cumsum([1, 2, 3]) is 1, 3, 6
add(s, k)             k added to each
mul(s, k)             each times k
take(s, n)            the first n of s
Division rounds down: -7 // 2 is -4, and -7 % 2 is 1. The n of map, repeat and take is at least 1.
The length of a program is how many numbers, names, i and operators it has; brackets, commas and signs are free."""

ARITHMETIC: dict[str, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul, "//": floordiv, "%": mod}
RANK = {"+": 1, "-": 1, "*": 2, "//": 2, "%": 2}
LEAVES = ("range", "map", "map", "repeat")  # what a program of one function is
WRAPS = ("reverse", "cumsum", "add", "mul", "take", "repeat")
JOINS = ("concat", "interleave")
# Functions that do nothing for those directly in them: another number in these would have done it.
FUTILE = {"take": ("map", "range"), "reverse": ("range",), "add": ("range",), "mul": ("range",), "repeat": ("repeat",)}


def problem(seed: int, index: int, split: Split, *, operations: int = 2, length: int = 16) -> dict[str, Any]:
    """Return the problem {question, solution, answer, operations, length} of these arguments.

    `answer` is {"sequence": [...], "literal_length": length of the plain list, "program_length": of the drawn program},
    lengths as LANGUAGE says. The solution runs the program from the inside out and ends with `Answer: PROGRAM`.
    Raises ValueError for operations outside 1..5, a length outside 4 * (operations + 1)..64 or an unknown split.
    """
    _check(split, operations, length)
    # A string seed is hashed by `random` itself with SHA-512: the same on every machine and in every process.
    rng = Random(f"programs/{seed}/{index}/{split}/{operations}/{length}")
    while True:
        tree = _drawn(rng, operations, length)
        if tree is None:
            continue
        sequence = evaluate(tree)
        if is_heldout(sequence) == (split == "heldout") and _worthwhile(tree, sequence):
            break
    steps = [f"{render(part)} is {_listed(evaluate(part))}" for part in _parts(tree) if part[0] != "list"]
    question = (
        f"{LANGUAGE}\n\nSequence: {_listed(sequence)}\nWrite the shortest program that prints exactly this sequence. "
        f"It must be shorter than the plain list, whose length is {length}. End with the line `Answer: PROGRAM`."
    )
    return {
        "question": question,
        "solution": "\n".join([*steps, f"Answer: {render(tree)}"]),
        "answer": {"sequence": sequence, "literal_length": length, "program_length": length_of(tree)},
        "operations": operations,
        "length": length,
    }


def problems(seed: int, n: int, split: Split, **difficulty: Any) -> list[dict[str, Any]]:
    """Return n problems with distinct sequences; the knobs of `difficulty` are those of `problem`."""
    return distinct(
        lambda index: problem(seed, index, split, **difficulty), lambda row: tuple(row["answer"]["sequence"]), n,
        most_repeats=MOST_REPEATS, task="programs",
    )  # fmt: skip


def is_heldout(sequence: list[int]) -> bool:
    """Whether a sequence belongs to the held-out split (one in 20, by a hash of its first 8 numbers)."""
    text = "programs;" + ",".join(map(str, sequence[:HASHED]))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) % HELDOUT_ONE_IN == 0


def evaluate(tree: Tree) -> list[int]:
    """The sequence that a drawn program prints."""
    name, *parts = tree
    below = [evaluate(part) for part in parts if name != "map" and isinstance(part, tuple)]
    functions: dict[str, Callable[[], list[int]]] = {
        "list": lambda: parts,
        "range": lambda: list(range(*parts)),
        "map": lambda: [value(parts[0], i) for i in range(parts[1])],
        "repeat": lambda: below[0] * parts[1],
        "reverse": lambda: below[0][::-1],
        "concat": lambda: below[0] + below[1],
        "interleave": lambda: [below[i % 2][i // 2] for i in range(len(below[0]) + len(below[1]))],
        "cumsum": lambda: list(accumulate(below[0])),
        "add": lambda: [number + parts[1] for number in below[0]],
        "mul": lambda: [number * parts[1] for number in below[0]],
        "take": lambda: below[0][: parts[1]],
    }
    return functions[name]()


def value(formula: Formula, i: int) -> int:
    """A formula's value at i."""
    if not isinstance(formula, tuple):
        return i if formula == "i" else int(formula)
    operator, left, right = formula
    return ARITHMETIC[operator](value(left, i), value(right, i))


def render(tree: Tree) -> str:
    """A drawn program as text of the language."""
    name, *parts = tree
    if name == "list":
        return f"[{_listed(parts)}]"
    if name == "map":
        return f"map({render_formula(parts[0])}, {parts[1]})"
    return f"{name}({', '.join(render(part) if isinstance(part, tuple) else str(part) for part in parts)})"


def render_formula(formula: Formula, rank: int = 0) -> str:
    """A formula as text, in brackets where it stands beside an operator of a higher rank than its own."""
    if not isinstance(formula, tuple):
        return str(formula)
    operator, left, right = formula
    own = RANK[operator]
    text = f"{render_formula(left, own)} {operator} {render_formula(right, own + 1)}"
    return f"({text})" if own < rank else text


def length_of(tree: Tree | Formula) -> int:
    """How many numbers, names, `i` and operators a program or formula has."""
    if not isinstance(tree, tuple):
        return 1
    return (tree[0] != "list") + sum(map(length_of, tree[1:]))


def _check(split: str, operations: int, length: int) -> None:
    if split not in ("train", "heldout"):
        raise ValueError(f"programs: split {split!r} does not exist; choose train or heldout")
    if isinstance(operations, bool) or operations not in OPERATIONS:
        raise ValueError(f"programs: operations {operations!r} is out of range; choose 1 to {OPERATIONS[-1]}")
    shortest = 4 * (operations + 1)
    if type(length) is not int or not shortest <= length <= LONGEST:
        raise ValueError(
            f"programs: length {length!r} is out of range; with operations {operations} choose {shortest} to {LONGEST}"
        )


def _worthwhile(tree: Tree, sequence: list[int]) -> bool:
    """Whether the sequence is small numbers, not all the same, and nothing simpler than the program is known for it."""
    if max(map(abs, sequence)) > LARGEST or len(set(sequence)) == 1:
        return False
    if any(evaluate(part) == sequence for part in _parts(tree) if part is not tree):
        return False
    if any(_roundabout(*part[1:]) for part in _parts(tree) if part[0] == "map"):
        return False
    return length_of(tree) <= min(_plain_lengths(sequence)) and length_of(tree) < len(sequence)


def _roundabout(formula: Formula, count: int) -> bool:
    """Whether a formula within the formula has the same values as one around it."""
    inner, seen = [formula], []
    while inner:
        part = inner.pop()
        seen.append([value(part, i) for i in range(count)])
        inner += [operand for operand in part[1:] if isinstance(operand, tuple)] if isinstance(part, tuple) else []
    return len(set(map(tuple, seen))) < len(seen) or list(range(count)) in seen


def _plain_lengths(sequence: list[int]) -> Iterator[int]:
    """The lengths of the plain programs that print a sequence: the list, a range, a repeated list."""
    n = len(sequence)
    yield n
    step = sequence[1] - sequence[0]
    if step and all(b - a == step for a, b in pairwise(sequence)):
        yield 3 if step == 1 else 4
    for period in range(1, n // 2 + 1):
        if n % period == 0 and sequence == sequence[:period] * (n // period):
            yield period + 2


def _parts(tree: Tree) -> Iterator[Tree]:
    """The sequences within a program, inner ones first, itself last."""
    if tree[0] != "map":
        for part in tree[1:]:
            if isinstance(part, tuple):
                yield from _parts(part)
    yield tree


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _drawn(rng: Random, operations: int, length: int, above: str = "") -> Tree | None:
    """A program with that many functions that prints that many numbers; None where the draw led nowhere.

    `above` is the function it stands in: none directly in itself, where one would do.
    """
    if length <= min(operations, 1) or (operations == 0 and length > LONGEST_LIST):
        return None
    if operations == 0:
        return ("list", *(rng.randint(-9, 20) for _ in range(length)))
    if operations == 1:
        name = rng.choice([leaf for leaf in LEAVES if leaf not in FUTILE.get(above, ())])
        if name != "repeat":
            return _range(rng, length) if name == "range" else ("map", _formula(rng), length)
        return _wrapped(rng, name, 1, length)
    name = rng.choice([name for name in (*WRAPS, *JOINS, *JOINS) if name != above])
    if name in WRAPS:
        return _wrapped(rng, name, operations, length)
    first_operations = rng.randint(0, operations - 1)
    first_length = (length + 1) // 2 if name == "interleave" else rng.randint(1, length - 1)
    first = _drawn(rng, first_operations, first_length, name)
    second = _drawn(rng, operations - 1 - first_operations, length - first_length, name)
    return (name, first, second) if first and second else None


def _wrapped(rng: Random, name: str, operations: int, length: int) -> Tree | None:
    """A function of one sequence around a drawn one."""
    inner = partial(_drawn, rng, operations - 1, above=name)
    if name == "take":
        return (name, tree, length) if (tree := inner(length + rng.randint(1, 4))) else None
    if name == "repeat":
        times = rng.choice([times for times in range(2, length + 1) if length % times == 0] or [length])
        return (name, tree, times) if (tree := inner(length // times)) else None
    tree = inner(length)
    if tree is None or name in ("reverse", "cumsum"):
        return tree and (name, tree)
    numbers = [*range(-9, 0), *range(1, 21)] if name == "add" else [-5, -4, -3, -2, -1, 2, 3, 4, 5, 6, 7, 8, 9]
    return (name, tree, rng.choice(numbers))


def _range(rng: Random, length: int) -> Tree:
    first, step = rng.randint(-20, 40), rng.choice([*range(-9, 0), *range(1, 10)])
    end = first + step * length
    return ("range", first, end) if step == 1 else ("range", first, end, step)


def _formula(rng: Random) -> Formula:
    """A formula of i with two to four operators, never two of a kind in a row; its divisors are numbers above 1."""
    formula: Formula = "i"
    kinds = ["+-", "*", "//", "%"]
    kind = ""
    for _ in range(rng.randint(2, 4)):
        kind = rng.choice([other for other in kinds if other != kind])
        operator = rng.choice("+-") if kind == "+-" else kind
        if operator in ("//", "%"):
            formula = (operator, formula, rng.randint(2, 12))
        elif rng.random() < 0.25:
            formula = (operator, formula, "i") if operator != "-" else (operator, "i", formula)
        else:
            formula = (operator, formula, rng.randint(2 if operator == "*" else 1, 9))
    return formula
