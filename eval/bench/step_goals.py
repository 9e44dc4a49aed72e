"""Whether a step may be timed, and what its time is compared with.  Pure functions of rows and answers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from targets import Row, Target

PEERS = {"llmkd_grpo": "trl_grpo", "llmkd_onpolicy": "trl_distillation"}
"""What does the same: equal completions, losses and norms of the gradient."""
ADDED_TO = {"llmkd_kdrl_k2": "llmkd_grpo", "llmkd_kdrl_exact": "llmkd_grpo"}
"""What is the other and a teacher's term: equal completions, and the rest of the loss is the other's."""
TEACHER_WEIGHT = 0.1
NOISE = 0.05
"""What two equal steps may differ by: for three rounds of the same trainer the median was seen to differ by 4 %."""


def refusal(arm: str, answers: Mapping[str, Row], tolerance: float) -> tuple[Row, str | None]:
    """How far the first steps of an arm are from those of its peer, and why it is not timed.

    answers: by arm, what its first steps were.  errors: relative, of the loss and of the gradient's norm; 0 where they
    are the same number; empty where there is no peer to compare with.
    """
    peer = PEERS.get(arm) or ADDED_TO.get(arm)
    if peer not in answers:
        return {}, None
    steps, others = answers[arm]["checked"], answers[peer]["checked"]
    errors: Row = {}
    if arm in PEERS:
        for key in ("loss", "grad_norm"):
            errors[key] = max(_relative(a[key], b[key]) for a, b in zip(steps, others, strict=True))
    else:  # after the first step they are two models
        steps, others = steps[:1], others[:1]
        errors["loss"] = _relative(others[0]["loss"] + TEACHER_WEIGHT * steps[0]["term"], steps[0]["loss"])
    if [step["drawn"] for step in steps] != [other["drawn"] for other in others]:
        return errors, f"its completions are not those of {peer}"
    above = [name for name, error in errors.items() if not error <= tolerance]
    said = ", ".join(f"{name} {errors[name]:.2g}" for name in above)
    return errors, f"relative error to {peer} above {tolerance:g}: {said}" if above else None


def _relative(one: float, other: float) -> float:
    """Infinite where one is no number: no comparison would be true of it."""
    if one == other:
        return 0.0
    error = abs(one - other) / max(abs(one), abs(other))
    return error if math.isfinite(error) else math.inf


def summary(rounds: Sequence[Row]) -> Row:
    """Medians of a step's seconds and of its phases, and the interquartile range."""
    seconds = [r["seconds"] for r in rounds]
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    phases = {name: statistics.median(r["phases"][name] for r in rounds) for name in rounds[0]["phases"]}
    found: Row = {"seconds": statistics.median(seconds), "iqr": quartiles[2] - quartiles[0], "phases": phases}
    return found | {
        name: statistics.median(r[name] for r in rounds) for name in ("forward", "products") if name in rounds[0]
    }


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with the median over rounds of its step over its peer's, and of what its term adds over the
    teacher's forward and over its floor."""
    arms = {row["implementation"]: row for row in rows}
    return [
        row
        | {
            "ratios": {
                "step/peer": over_peer(row, arms),
                "term/forward": term_over(row, "forward"),
                "term/floor": term_over(row, "forward", "products"),
            }
        }
        for row in rows
    ]


def over_peer(row: Row, arms: Mapping[str, Row]) -> float | None:
    pairs = _beside(row, arms.get(PEERS.get(row["implementation"], "")))
    return statistics.median(mine["seconds"] / theirs["seconds"] for mine, theirs in pairs) if pairs else None


def term_over(row: Row, *parts: str) -> float | None:
    """What a teacher's term adds to a step, over the sum of ``parts``: the step less the next one, in which the term
    has no weight.  Without the drawing of completions, which is the same work in both and would add its noise."""
    rounds = row["rounds"]
    if row["status"] != "ok" or not rounds or "alone" not in rounds[0]:
        return None
    return statistics.median((_undrawn(r) - _undrawn(r["alone"])) / sum(r[part] for part in parts) for r in rounds)


def _undrawn(one: Row) -> float:
    return float(one["seconds"] - one["phases"]["generate"])


def _beside(row: Row, other: Row | None) -> list[tuple[Row, Row]]:
    """Rounds of two rows that were measured one after the other."""
    if other is None or row["status"] != "ok" or other["status"] != "ok":
        return []
    return list(zip(row["rounds"], other["rounds"], strict=False))


def evaluate(rows: Sequence[Row]) -> list[Target]:
    """All goals; one that was not measured has no number."""
    arms = {row["implementation"]: row for row in rows}
    found = []
    for arm, row in arms.items():
        if arm in PEERS:
            found.append(Target(f"step over {PEERS[arm]}", arm, 1 + NOISE, over_peer(row, arms)))
        if arm in ADDED_TO:
            floor = ("forward", "products") if arm.endswith("exact") else ("forward",)
            what = f"term over the teacher's forward{' and the products' * (len(floor) - 1)}"
            found.append(Target(what, arm, 1 + NOISE, term_over(row, *floor)))
    return found


def table(rows: Sequence[Row], phases: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: seconds of the step and of its phases, ratios, errors; or why there are none."""
    header = ["implementation", "step s", "IQR", *phases, "forward", "products", "/ peer", "term / forward",
              "term / both", "error"]  # fmt: skip
    lines = []
    for row in rows:
        timed, ratios = row["status"] == "ok", row["ratios"]
        parts: list[Any] = [row["phases"][name] for name in phases] if timed else [None] * len(phases)
        numbers = [
            row.get("seconds"),
            row.get("iqr"),
            *parts,
            row.get("forward"),
            row.get("products"),
            *ratios.values(),
        ]
        error = max(row["errors"].values()) if row.get("errors") else None
        line = ["-" if x is None else f"{x:.3g}" for x in [*numbers, error]]
        lines.append([row["implementation"], *line] if timed else [row["implementation"], row["status"], *line[1:]])
    return header, lines
