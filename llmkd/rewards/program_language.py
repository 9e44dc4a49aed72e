"""A tiny language whose programs print sequences of integers: tokens, parser and interpreter.

    sequence  = "[" number {"," number} "]"
              | "range" "(" number "," number ["," number] ")"     first, end (not reached), step (1 if left out)
              | "map" "(" formula "," number ")"                   the formula for i = 0, 1, ..., number - 1
              | "repeat" "(" sequence "," number ")"               the sequence, number times
              | "reverse" "(" sequence ")"
              | "concat" "(" sequence "," sequence ")"
              | "interleave" "(" sequence "," sequence ")"         a0, b0, a1, b1, ..., then what is left of the longer
              | "cumsum" "(" sequence ")"                          a0, a0 + a1, a0 + a1 + a2, ...
              | "add" "(" sequence "," number ")"                  number added to each
              | "mul" "(" sequence "," number ")"                  each times number
              | "take" "(" sequence "," number ")"                 the first number of them
    formula   = term {("+" | "-") term}
    term      = factor {("*" | "//" | "%") factor}
    factor    = "i" | number | "(" formula ")"
    number    = ["-"] digit {digit}                                at most 4 digits, no leading zero

Division rounds down, and a remainder has the sign of its divisor, as in Python. The numbers of `map`, `repeat` and
`take` are 1 or more. A program is one sequence. Its length counts numbers, names, `i` and operators; brackets, commas
and the sign of a number are free, so a plain list of n numbers has length n.

Nothing of a program is ever given to Python to evaluate: this file reads it, and computes it in bounded work. All that
is wrong with a program is a `ProgramError`. Text, tokens, nesting and numbers are bounded; a sequence, also one in the
middle of a program, is refused *before* it is made if it would be longer than the limit of the call.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

LONGEST_TEXT = 2000  # characters
MOST_TOKENS = 600
DEEPEST = 24  # brackets within brackets
MOST_OPERATORS = 32  # of one formula: the other way to a deep tree
MOST_DIGITS = 4
LARGEST_VALUE = 10**9  # of any number that a program computes
MOST_STEPS = 20_000  # numbers computed, formulas' included

TOKEN = re.compile(r"[a-z]+|[0-9]+|//|[-+*%()\[\],]")
BLANKS = re.compile(r"[ \t]*")

# What a call takes, by name: s a sequence, n a number, c a count (1 or more), f a formula; a capital may be left out.
SIGNATURES = {
    "range": "nnN",
    "map": "fc",
    "repeat": "sc",
    "reverse": "s",
    "concat": "ss",
    "interleave": "ss",
    "cumsum": "s",
    "add": "sn",
    "mul": "sn",
    "take": "sc",
}


class ProgramError(ValueError):
    """What is wrong with a program."""


@dataclass(frozen=True)
class Node:
    """A list, a call, a formula's operator, or `i`: its name, and nodes and numbers below it."""

    name: str
    parts: tuple[Node | int, ...] = ()

    @property
    def length(self) -> int:
        """Numbers, names and operators in it; a list's brackets are no name."""
        return (self.name != "list") + sum(part.length if isinstance(part, Node) else 1 for part in self.parts)


def tokens(text: str) -> list[str]:
    """The tokens of a program's text."""
    if len(text) > LONGEST_TEXT:
        raise ProgramError(f"the text has {len(text)} characters; {LONGEST_TEXT} are allowed")
    found, place = [], BLANKS.match(text).end()
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise ProgramError(f"{text[place]!r} at character {place + 1} belongs to no program")
        found.append(match.group())
        place = BLANKS.match(text, match.end()).end()
    if len(found) > MOST_TOKENS:
        raise ProgramError(f"there are {len(found)} tokens; {MOST_TOKENS} are allowed")
    return found


def parse(text: str) -> Node:
    """The tree of a program."""
    reader = _Reader(tokens(text))
    tree = reader.sequence(0)
    if reader.next is not None:
        raise ProgramError(f"{reader.next!r} follows the end of the program")
    return tree


def run(tree: Node, limit: int) -> list[int]:
    """The sequence that a program prints; no sequence within it may have more than `limit` numbers."""
    return _Run(limit).sequence(tree)


@dataclass
class _Reader:
    """Tokens, how many of them have been read, and the operators of the formula being read."""

    tokens: list[str]
    place: int = 0
    operators: int = 0

    @property
    def next(self) -> str | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def expect(self, *tokens: str) -> str:
        if self.next not in tokens:
            raise ProgramError(f"{self.next or 'the end'!r} where {' or '.join(tokens)} was expected")
        self.place += 1
        return self.tokens[self.place - 1]

    def sequence(self, depth: int) -> Node:
        _check_depth(depth)
        if self.next == "[":
            self.place += 1
            numbers = [self.number()]
            while self.expect(",", "]") == ",":
                numbers.append(self.number())
            return Node("list", tuple(numbers))
        name = self.expect(*SIGNATURES)
        self.expect("(")
        parts: list[Node | int] = []
        for place, kind in enumerate(SIGNATURES[name]):
            if kind.isupper() and self.next == ")":
                break
            if place:
                self.expect(",")
            parts.append(self.argument(kind.lower(), depth))
        self.expect(")")
        return Node(name, tuple(parts))

    def argument(self, kind: str, depth: int) -> Node | int:
        if kind == "s":
            return self.sequence(depth + 1)
        if kind == "f":
            self.operators = 0
            return self.formula(depth + 1)
        number = self.number()
        if kind == "c" and number < 1:
            raise ProgramError(f"{number} is no count; it must be 1 or more")
        return number

    def number(self) -> int:
        sign = -1 if self.next == "-" else 1
        self.place += sign < 0
        digits = self.next or "the end"
        if not digits.isdigit() or len(digits) > MOST_DIGITS or (digits[0] == "0" and digits != "0"):
            raise ProgramError(f"{digits[:20]!r} where a number of at most {MOST_DIGITS} digits was expected")
        self.place += 1
        return sign * int(digits)

    def formula(self, depth: int) -> Node | int:
        _check_depth(depth)
        return self.chain(("+", "-"), lambda: self.chain(("*", "//", "%"), lambda: self.factor(depth)))

    def chain(self, operators: tuple[str, ...], operand: Callable[[], Node | int]) -> Node | int:
        """Operands joined by operators of one rank, from left to right."""
        tree = operand()
        while self.next in operators:
            operator = self.expect(*operators)
            self.operators += 1
            if self.operators > MOST_OPERATORS:
                raise ProgramError(f"a formula of more than {MOST_OPERATORS} operators")
            tree = Node(operator, (tree, operand()))
        return tree

    def factor(self, depth: int) -> Node | int:
        if self.next == "(":
            self.place += 1
            tree = self.formula(depth + 1)
            self.expect(")")
            return tree
        if self.next == "i":
            self.place += 1
            return Node("i")
        return self.number()


def _check_depth(depth: int) -> None:
    if depth > DEEPEST:
        raise ProgramError(f"brackets are nested more than {DEEPEST} deep")


@dataclass
class _Run:
    """One run of a program: the longest sequence allowed, and the steps done."""

    limit: int
    steps: int = field(default=0)

    def sequence(self, tree: Node) -> list[int]:
        """What a sequence's node prints, refused first if it would be too long."""
        name = tree.name
        if name == "list":
            return self.counted(len(tree.parts), lambda: list(tree.parts))
        if name == "range":
            numbers = range(*tree.parts) if tree.parts[2:] != (0,) else None
            if numbers is None:
                raise ProgramError("the step of range is 0")
            return self.counted(len(numbers), lambda: list(numbers))
        if name == "map":
            formula, count = tree.parts
            return self.counted(count, lambda: [self.value(formula, i) for i in range(count)])
        below = [self.sequence(part) for part in tree.parts if isinstance(part, Node)]
        return self.made(name, below, tree.parts[-1])

    def made(self, name: str, below: list[list[int]], number: Node | int) -> list[int]:
        """What a call makes of the sequences below it, and of its number if it has one."""
        first, total = below[0], sum(map(len, below))
        if name == "repeat":
            return self.counted(total * number, lambda: first * number)
        if name == "take":
            return self.counted(min(total, number), lambda: first[:number])
        if name == "concat":
            return self.counted(total, lambda: first + below[1])
        if name == "interleave":
            return self.counted(total, lambda: _interleaved(first, below[1]))
        if name == "reverse":
            return self.counted(total, lambda: first[::-1])
        if name == "cumsum":
            return self.counted(total, lambda: _sums(first))
        if name == "add":
            return self.counted(total, lambda: [_bounded(value + number) for value in first])
        assert name == "mul", name
        return self.counted(total, lambda: [_bounded(value * number) for value in first])

    def counted(self, length: int, make: Callable[[], list[int]]) -> list[int]:
        if length > self.limit:
            raise ProgramError(f"a sequence of {length} numbers; {self.limit} are allowed")
        self.count(length)
        return make()

    def count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise ProgramError(f"more than {MOST_STEPS} steps")

    def value(self, formula: Node | int, i: int) -> int:
        self.count(1)
        if isinstance(formula, int):
            return formula
        if formula.name == "i":
            return i
        left, right = (self.value(part, i) for part in formula.parts)
        if formula.name == "+":
            return _bounded(left + right)
        if formula.name == "-":
            return _bounded(left - right)
        if formula.name == "*":
            return _bounded(left * right)
        if right == 0:
            raise ProgramError("a division by 0")
        return left // right if formula.name == "//" else left % right


def _bounded(value: int) -> int:
    if abs(value) > LARGEST_VALUE:
        raise ProgramError(f"a number beyond {LARGEST_VALUE}")
    return value


def _sums(values: list[int]) -> list[int]:
    sums, total = [], 0
    for value in values:
        total = _bounded(total + value)
        sums.append(total)
    return sums


def _interleaved(first: list[int], second: list[int]) -> list[int]:
    shorter = min(len(first), len(second))
    pairs = [value for pair in zip(first, second, strict=False) for value in pair]
    return pairs + first[shorter:] + second[shorter:]
