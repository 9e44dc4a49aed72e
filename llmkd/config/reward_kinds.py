"""What can stand in `rewards`: the one committed table of reward kinds and their knobs, as data.

The recipe checks knobs against this table; `llmkd.rewards.table` pairs each name with its function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from llmkd.config.values import closest, interval, is_number, shown, wrong_type

RewardKind = Literal[
    "math", "code", "format", "length", "exact", "arithmetic", "countdown", "knights_and_knaves", "zebra", "programs",
]  # fmt: skip
KINDS: tuple[RewardKind, ...] = get_args(RewardKind)


@dataclass(frozen=True)
class RewardKnob:
    """One setting of a reward.  kind: what a recipe gives; low, high: the range of a number, an open end is not
    in it; choices: of a text or of a list's entries."""

    kind: Literal["number", "whole", "switch", "text", "texts"]
    meaning: str
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    choices: tuple[str, ...] | None = None

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, None where nothing is."""
        if self.kind in ("number", "whole"):
            return self._of_number(value)
        if self.kind == "switch":
            return None if isinstance(value, bool) else wrong_type(value, "true or false")
        if self.kind == "text":
            return None if isinstance(value, str) and value else wrong_type(value, "text")
        if not isinstance(value, list) or not value or not all(isinstance(entry, str) and entry for entry in value):
            return wrong_type(value, "a list of texts")
        wrong = [entry for entry in value if self.choices and entry not in self.choices]
        return f"{shown(wrong[0])} is not one of {', '.join(self.choices or ())}: give some of them" if wrong else None

    def _of_number(self, value: Any) -> str | None:
        whole = self.kind == "whole"
        if not is_number(value) or (whole and not isinstance(value, int)):
            return wrong_type(value, "a whole number" if whole else "a number")
        above = self.low is None or (value > self.low if self.low_open else value >= self.low)
        below = self.high is None or (value < self.high if self.high_open else value <= self.high)
        if math.isfinite(value) and above and below:
            return None
        allowed = interval(self.low, self.high, low_open=self.low_open, high_open=self.high_open)
        return f"{shown(value)} is outside {allowed}: give a number inside it"


@dataclass(frozen=True)
class RewardDeclared:
    """One row.  binary: its values are 0 and 1 alone, unless one of ``shares`` (switches) is on; needs_reference: it
    reads a column of the row; one_of: knobs of which exactly one must be given."""

    meaning: str
    binary: bool = True
    needs_reference: bool = True
    knobs: Mapping[str, RewardKnob] = field(default_factory=dict)
    one_of: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()

    def is_binary(self, knobs: Mapping[str, Any]) -> bool:
        """Whether its values are 0 and 1 alone with these knobs."""
        return self.binary and not any(knobs.get(name) for name in self.shares)


REWARD_KINDS: dict[RewardKind, RewardDeclared] = {
    "math": RewardDeclared(
        "the final answer equals the reference mathematically (math-verify, extra [math])",
        knobs={"forms": RewardKnob("texts", "where an answer may stand, in order", choices=("boxed", "answer"))},
    ),
    "code": RewardDeclared(
        "the last Python block passes the reference's tests in the sandbox",
        knobs={
            "timeout": RewardKnob("number", "seconds for one run", 0, 600, low_open=True),
            "memory": RewardKnob("whole", "MB of each process", 64),
            "partial": RewardKnob("switch", "the share of tests passed in place of all or nothing"),
        },
        shares=("partial",),
    ),
    "format": RewardDeclared(
        "the whole completion has a form", needs_reference=False,
        knobs={
            "pattern": RewardKnob("text", "regular expression that matches the whole completion"),
            "tags": RewardKnob("texts", "sections in order, each once; without a pattern"),
        },
    ),
    "length": RewardDeclared(
        "0 up to max - buffer, falling to -1 at max (soft overlong punishment)", binary=False, needs_reference=False,
        knobs={
            "max_tokens": RewardKnob("whole", "longest completion in tokens", 1),
            "max_words": RewardKnob("whole", "longest completion in words", 1),
            "max_characters": RewardKnob("whole", "longest completion in characters", 1),
            "buffer": RewardKnob("whole", "where it falls, in the same unit; a fifth of the maximum", 1),
        },
        one_of=("max_tokens", "max_words", "max_characters"),
    ),
    "exact": RewardDeclared(
        "the last line `Answer: X` is the reference letter by letter",
        knobs={"ignore_case": RewardKnob("switch", "capitals do not count")},
    ),
    "arithmetic": RewardDeclared("the last line `Answer: N` is the reference's integer"),
    "countdown": RewardDeclared(
        "the expression uses the given numbers and makes the target",
        knobs={"partial": RewardKnob("number", "for an expression by the rules with another value", 0, 1,
                                     high_open=True)},
        shares=("partial",),
    ),
    "knights_and_knaves": RewardDeclared(
        "everybody is called what they are",
        knobs={"partial": RewardKnob("switch", "a share in place of all or nothing")},
        shares=("partial",),
    ),
    "zebra": RewardDeclared("the whole grid of the puzzle is right"),
    "programs": RewardDeclared(
        "the program of the last line prints exactly the sequence",
        knobs={
            "compression": RewardKnob("switch", "how much shorter than the list it is, from 0.05 to 1"),
            "allow_literal": RewardKnob("switch", "the list itself counts as a program"),
        },
        shares=("compression",),
    ),
}  # fmt: skip


def knob_problems(kind: RewardKind, knobs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(knob, what is wrong) for every knob that the kind, or that its range, does not take; "" names the whole."""
    row = REWARD_KINDS[kind]
    for name, value in knobs.items():
        if name not in row.knobs:
            yield name, unknown_knob(kind, name, row.knobs)
        elif (problem := row.knobs[name].problem(value)) is not None:
            yield name, problem
    given = [name for name in row.one_of if name in knobs]
    if row.one_of and len(given) != 1:
        yield "", f"{kind}: {' and '.join(given) or 'no maximum'} given: give one of {', '.join(row.one_of)}"


def unknown_knob(kind: str, name: str, knobs: Mapping[str, Any]) -> str:
    """The sentence for a knob that a reward does not take."""
    near = closest(name, knobs)
    if near:
        return f"is not a knob of {kind}: did you mean {near}?"
    return f"is not a knob of {kind}: " + (f"allowed are {', '.join(knobs)}" if knobs else "it takes none")
