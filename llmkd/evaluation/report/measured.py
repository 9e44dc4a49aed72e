"""What ``llmkd-eval`` found: benchmarks with their intervals, fidelity to the teacher, calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkd.evaluation.report import markup
from llmkd.evaluation.report.charts import REFERENCE, Chart, Draw, Series, swatch
from llmkd.evaluation.report.facts import DASH
from llmkd.evaluation.report.reading import Run, finite

APART = ("fidelity", "calibration")
"""Measures that have a section of their own."""
NOT_SAID = ("model", "model_args", "seeds")
ARROWS = {"lower": " ↓", "higher": " ↑"}


@dataclass(frozen=True)
class Found:
    """A record and whose it is.  label: its task and what was set for it."""

    owner: str
    slot: int
    label: str
    record: Any


def benchmarks(runs: Sequence[Run], draw: Draw) -> str:
    """Every record that has no section of its own."""
    found = [f for f in _all(runs) if not f.record.task.startswith(APART)]
    return table(found) + intervals(found, draw)


def of_kind(runs: Sequence[Run], kind: str) -> list[Found]:
    return [f for f in _all(runs) if f.record.task.startswith(kind)]


def _all(runs: Sequence[Run]) -> Iterator[Found]:
    """The newest record of each task and setting, run by run, and the first baseline's."""
    baselines = [run.baseline for run in runs if run.baseline and run.baseline.records][:1]
    owners = [(run.name, slot, run) for slot, run in enumerate(runs)]
    owners += [("baseline", REFERENCE, run) for run in baselines]
    for owner, slot, run in owners:
        newest = {(label(record), _model(record)): record for record in run.records}
        several = len({model for _, model in newest if model}) > 1
        for (name, model), record in newest.items():
            yield Found(f"{owner}: {model}" if several and model else owner, slot, name, record)


def label(record: Any) -> str:
    """The task, and what was set for it."""
    said = [f"{k} {v}" for k, v in record.settings.items() if k not in NOT_SAID and v not in (None, {}, [], False)]
    return record.task + (f" ({', '.join(said)})" if said else "")


def _model(record: Any) -> str:
    told = record.details.get("model")
    return str(told.get("name", "")) if isinstance(told, Mapping) else ""


def table(found: Sequence[Found]) -> str:
    """A row for each metric of each task, a column for each owner."""
    owners = list(dict.fromkeys((f.owner, f.slot) for f in found))
    cells = {(f.label, name, f.owner): metric for f in found for name, metric in f.record.metrics.items()}
    rows: list[list[str]] = []
    before = None
    for task, name in dict.fromkeys((task, name) for task, name, _ in cells):
        if task != before:
            rows.append([markup.text(task)])
            before = task
        metrics = [cells.get((task, name, owner)) for owner, _ in owners]
        one = next(m for m in metrics if m is not None)
        unit = f' <span class="unit">{markup.text(one.unit)}</span>' if one.unit else ""
        rows.append(
            [f"{markup.text(name)}{ARROWS.get(one.better or '', '')}{unit}", *(cell(metric) for metric in metrics)]
        )
    if not rows:
        return ""
    head = ["", *(f"{swatch(slot)}{markup.text(owner)}" for owner, slot in owners)]
    return markup.table("Evaluations with their 95% intervals", head, rows)


def cell(metric: Any, counted: bool = True) -> str:
    if metric is None or finite(metric.estimate.value) is None:
        return DASH
    e = metric.estimate
    interval = "" if e.low is None or e.high is None else f" <small>[{e.low:.4g}, {e.high:.4g}]</small>"
    return f"{e.value:.4g}{interval}" + (f" <small>n = {e.n:,}</small>" if counted else "")


def intervals(found: Sequence[Found], draw: Draw) -> str:
    """A chart for each task and kind of metric, with a row for each metric, where there are two values to compare."""
    figures = []
    for task, *kind in dict.fromkeys((f.label, m.unit, m.better) for f in found for m in f.record.metrics.values()):
        series = []
        for f in [f for f in found if f.label == task]:
            named = {n: m.estimate for n, m in f.record.metrics.items() if [m.unit, m.better] == kind}
            points = [(name, finite(e.value)) for name, e in named.items()]
            series.append(Series(f.owner, f.slot, points, [(e.low, e.high) for e in named.values()]))
        if sum(len(s.points) for s in series) > 1:
            figures.append(draw(Chart(task, "metric", str(kind[0]), series, kind="intervals")))
    return markup.grid(figures)
