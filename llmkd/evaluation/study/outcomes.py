"""What one run of an arm has come to, read from its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llmkd.evaluation.results import Better, Store

State = Literal["finished", "failed", "diverged", "missing"]


@dataclass(frozen=True)
class Value:
    """number: None where it is not finite."""

    number: float | None
    better: Better | None = None
    unit: str = ""


@dataclass(frozen=True)
class Outcome:
    """values: measures by path; others: those of the teachers; diverged_at: first step with a number not finite."""

    state: State
    folder: str
    values: dict[str, Value] = field(default_factory=dict)
    others: dict[str, dict[str, float]] = field(default_factory=dict)
    steps: int | None = None
    tokens: int | None = None
    completions: int | None = None
    seconds: float | None = None
    diverged_at: int | None = None

    def facts(self) -> dict[str, Any]:
        return {"state": self.state, "folder": self.folder, "steps": self.steps, "tokens": self.tokens,
                "seconds": self.seconds, "diverged_at": self.diverged_at}  # fmt: skip


def outcome(run: Path, folder: str, failed: bool = False) -> Outcome:
    """failed: its process ended without a result.  A run whose numbers had left the finite ones before it failed, or
    although it did not fail, is one that diverged."""
    state: State
    at = first_not_finite(run)
    summary = _summary(run)
    if summary is None:
        state = "diverged" if failed and at is not None else "failed" if failed else "missing"
        return Outcome(state, folder, diverged_at=at if state == "diverged" else None)
    results = summary["results"]
    own = results.get("student") or results["baseline"]
    values = {path: Value(_finite(number)) for path, number in _flat(own)} | _evaluated(run)
    broken = any(value.number is None for path, value in values.items() if path.startswith("held_out."))
    if broken:  # what NaN logits agree with, or answer, is chance
        values = {path: replace(value, number=None) for path, value in values.items()}
    others = {name: {path: number for path, number in _flat(result) if _finite(number) is not None}
              for name, result in results.items() if result is not own}  # fmt: skip
    state = "diverged" if broken or at is not None else "finished"
    return Outcome(
        state, folder, values, others, summary["steps"], own.get("tokens"), own.get("completions"), own.get("seconds"),
        at,
    )  # fmt: skip


def metrics(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl; one that is still being written is left out."""
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def first_not_finite(run: Path) -> int | None:
    """The first step at which the loss, a term, a gradient norm or a held-out measure was NaN or infinite."""
    for line in metrics(run):
        if not all_finite(line):
            return line["step"]
    return None


def all_finite(line: dict[str, Any]) -> bool:
    return all(math.isfinite(value) for value in line.values() if isinstance(value, float))


def _summary(run: Path) -> dict[str, Any] | None:
    path = run / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _flat(result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for section in ("held_out", "tasks"):
        for name, numbers in (result.get(section) or {}).items():
            for measure, number in numbers.items():
                yield f"{section}.{name}.{measure}", number


def _evaluated(run: Path) -> dict[str, Value]:
    """What llmkd-eval left beside the run: the newest record of each task."""
    found = {}
    for record in Store(run / "eval").records() if (run / "eval").is_dir() else ():
        for name, metric in record.metrics.items():
            found[f"eval.{record.task}.{name}"] = Value(_finite(metric.estimate.value), metric.better, metric.unit)
    return dict(sorted(found.items()))


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
