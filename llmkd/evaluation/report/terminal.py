"""The tables of the page, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llmkd.evaluation.report.facts import columns_of, state
from llmkd.evaluation.report.reading import Run, finite, read_runs
from llmkd.evaluation.report.studies import Study, is_study, read_study
from llmkd.evaluation.table import table


def show(folders: Sequence[Path], console: Console | None = None) -> None:
    """Print where the runs stand and what came of them; of a study its arms."""
    console = console or Console()
    for folder in folders:
        if is_study(folder):
            console.print(study_table(read_study(folder)))
    runs = read_runs([folder for folder in folders if not is_study(folder)])
    for run in runs:
        console.print(f"{run.name}: {state(run)}", markup=False, highlight=False)
        for trouble in run.troubles:
            console.print(f"  {trouble}", markup=False, highlight=False)
    columns = columns_of(runs)
    if columns:
        console.print(table(columns))
    if any(run.records for run in runs):
        console.print(records_table(runs))


def study_table(study: Study) -> Table:
    """A row for each measure, a column for each arm."""
    out = Table(title=study.name, title_justify="left")
    out.add_column("")
    for name in study.table["arms"]:
        out.add_column(name, justify="right")
    for path, about in study.table.get("measures", {}).items():
        cells = [arm.get("measures", {}).get(path) or {} for arm in study.table["arms"].values()]
        out.add_row(about["label"], *(_arm(cell) for cell in cells))
    return out


def records_table(runs: Sequence[Run]) -> Table:
    """A row for each metric of each task, a column for each run."""
    out = Table(title="Evaluations", title_justify="left")
    out.add_column("")
    for run in runs:
        out.add_column(run.name, justify="right")
    found = [{(r.task, name): m for r in run.records for name, m in r.metrics.items()} for run in runs]
    for task, name in dict.fromkeys(key for metrics in found for key in metrics):
        out.add_row(f"{task}: {name}", *(_metric(metrics.get((task, name))) for metrics in found))
    return out


def _metric(metric: Any) -> str:
    if metric is None:
        return "-"
    e = metric.estimate
    return f"{e.value:.4g}" + (f" [{e.low:.4g}, {e.high:.4g}]" if e.low is not None and e.high is not None else "")


def _arm(cell: Mapping[str, Any]) -> str:
    mean = finite(cell.get("mean"))
    if mean is None:
        return "-"
    verdict = (cell.get("difference") or {}).get("verdict")
    return f"{mean:.4g}" + (f" ({verdict})" if verdict else "")
