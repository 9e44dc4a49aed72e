"""What a run folder holds, as far as it can be read while the run goes on or after it was cut short."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Line = Mapping[str, Any]
SIGNS = ("recipe.yaml", "metrics.jsonl", "summary.json", "environment.json")
"""Files of which a run folder holds at least one."""


@dataclass(frozen=True)
class Run:
    """One run.  name: unique on the page; recipe: its text, settings: the same as a dict; lines: of metrics.jsonl;
    samples: of samples.jsonl; summary: None until the run has ended; records: of ``eval/``; troubles: what could not
    be read, one sentence each; written: when its metrics were last written, seconds since the epoch."""

    name: str
    folder: Path
    recipe: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[Line] = ()
    samples: Sequence[Line] = ()
    summary: Mapping[str, Any] | None = None
    records: Sequence[Any] = ()
    baseline: Run | None = None
    troubles: Sequence[str] = ()
    written: float | None = None

    @property
    def reached(self) -> int:
        """Steps done, as far as they were logged."""
        logged = max((int(line["step"]) for line in self.lines), default=0)
        return max(logged, int((self.summary or {}).get("steps", 0)))

    @property
    def asked(self) -> int | None:
        """Steps that the recipe asks for; None where it counts in epochs."""
        steps = self.of("train", "max_steps")
        return int(steps) if isinstance(steps, int) and steps > 0 else None

    @property
    def ended(self) -> bool:
        return self.summary is not None

    def of(self, *keys: str) -> Any:
        """A value of the recipe by its keys, None where there is none."""
        place: Any = self.settings
        for key in keys:
            place = place.get(key) if isinstance(place, Mapping) else None
        return place

    def logged(self) -> list[str]:
        """Names of what was logged, in the order of their first appearance."""
        return list(dict.fromkeys(key for line in self.lines for key in line))

    def points(self, key: str) -> list[tuple[float, float | None]]:
        """``(step, value)`` of what was logged under a name; None for what is not finite."""
        found = [(float(line["step"]), line[key]) for line in self.lines if key in line]
        return [(step, finite(value)) for step, value in found if isinstance(value, int | float)]


def finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SIGNS)


def read_run(folder: Path, name: str = "") -> Run:
    """Everything in a run folder.  What is not there is left out, what cannot be read is said in ``troubles``;
    ValueError where the folder holds no run at all."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder: give the folder of a run (run.output_dir) or of a study")
    if not is_run(folder):
        raise ValueError(f"{folder}: holds no run ({', '.join(SIGNS)}) and no study: give run.output_dir of a recipe")
    troubles: list[str] = []
    recipe = _text(folder / "recipe.yaml")
    settings = _settings(recipe, troubles)
    summary = _json(folder / "summary.json", troubles)
    if summary is not None and not isinstance(summary.get("results"), Mapping):
        troubles.append("summary.json holds no results and is left out")
        summary = None
    lines = [line for line in _lines(folder / "metrics.jsonl", troubles) if isinstance(line.get("step"), int)]
    troubles += _not_finite(lines)
    metrics = folder / "metrics.jsonl"
    baseline = read_run(folder / "baseline") if is_run(folder / "baseline") else None
    told = (summary or {}).get("name") or (settings.get("run") or {}).get("name")
    return Run(
        name=name or str(told or folder.resolve().name), folder=folder, recipe=recipe, settings=settings,
        environment=_json(folder / "environment.json", troubles) or {}, lines=lines,
        samples=list(_lines(folder / "samples.jsonl", troubles)), summary=summary,
        records=_records(folder / "eval", troubles), baseline=baseline, troubles=troubles,
        written=metrics.stat().st_mtime if metrics.is_file() else None,
    )  # fmt: skip


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Several runs under names that differ: their own, or their folders where two are called the same."""
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    own = [n if names.count(n) == 1 else f"{n} ({run.folder})" for n, run in zip(names, runs, strict=True)]
    return [Run(**{**vars(run), "name": name}) for run, name in zip(runs, own, strict=True)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _settings(recipe: str, troubles: list[str]) -> dict[str, Any]:
    try:
        found = yaml.safe_load(recipe)
    except yaml.YAMLError:
        troubles.append("recipe.yaml is not YAML: it is shown as it is")
        return {}
    return found if isinstance(found, dict) else {}


def _json(path: Path, troubles: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(_text(path))
    except json.JSONDecodeError as error:
        troubles.append(f"{path.name} cannot be read ({error.msg} in line {error.lineno}) and is left out")
        return None
    return found if isinstance(found, dict) else None


def _lines(path: Path, troubles: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines.  A last line that is still being written is passed over without a word."""
    text = _text(path)
    rows = text.split("\n")
    broken = []
    for number, row in enumerate(rows, 1):
        try:
            found = json.loads(row) if row.strip() else None
        except json.JSONDecodeError:
            broken += [number] if number < len(rows) else []
            continue
        if isinstance(found, dict):
            yield found
    if broken:
        said = ", ".join(map(str, broken[:5])) + (" ..." if len(broken) > 5 else "")
        troubles.append(f"{path.name}: {len(broken)} line(s) cannot be read and are left out: {said}")


def _not_finite(lines: Sequence[Line]) -> list[str]:
    """A sentence for each name under which something was logged that is no number."""
    steps: dict[str, list[int]] = {}
    for line in lines:
        for key, value in line.items():
            if isinstance(value, float) and not math.isfinite(value):
                steps.setdefault(key, []).append(int(line["step"]))
    return [
        f"{key} was not finite (NaN or infinite) at {len(at)} of its log lines, first at step {at[0]}: the curve has "
        "a gap there" for key, at in steps.items()
    ]  # fmt: skip


def _records(folder: Path, troubles: list[str]) -> list[Any]:
    from llmkd.evaluation.results import read_record

    found = []
    for path in sorted(folder.glob("*@*.json"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
        try:
            found.append(read_record(path))
        except ValueError:
            troubles.append(f"eval/{path.name} is no result of llmkd-eval and is left out")
    return found
