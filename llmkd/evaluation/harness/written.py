"""What is written for people: the table in the terminal, and lm_eval's files as lm_eval writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from llmkd.evaluation.harness.scores import BY_DOCUMENT, BY_STDERR, OVER_ITEMS, WITHHELD
from llmkd.evaluation.intervals import Estimate
from llmkd.evaluation.results import Record

MERGED = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
"""The parts of lm_eval's JSON that are mappings by task; the rest is the same in all, or the last one's."""
MARKS = {BY_DOCUMENT: "1", BY_STDERR: "2", WITHHELD: "3"}


def table(name: str, records: Sequence[Record]) -> Table:
    """A heading a task, and below it a row a metric: value, 95% interval, items."""
    out = Table(title=name, title_justify="left", title_style="bold", caption=_notes(records), caption_justify="left",
                box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)  # fmt: skip
    out.add_column("task and metric", overflow="fold")
    for column in ("value", "95% interval", "n"):
        out.add_column(column, justify="right", no_wrap=True)
    for record in records:
        out.add_row(f"[bold]{escape(record.task)}[/]", *[""] * 3)
        for metric, found in record.metrics.items():
            mark = MARKS.get(how_of(record).get(metric, ""), "")
            implied = found.unit.replace("/", "_per_") == metric
            label = metric if implied or not found.unit else f"{metric}, {found.unit}"
            between = bounds(found.estimate) + (mark and f" \\[{mark}]")
            out.add_row(f"  {escape(label)}", number(found.estimate.value), between, f"{found.estimate.n:,}")
        for metric, reason in missing_of(record).items():
            out.add_row(f"  {escape(metric)}", "[red]missing[/]", escape(reason), "")
    return out


def _notes(records: Sequence[Record]) -> str | None:
    if all(metric.estimate.low is None for record in records for metric in record.metrics.values()):
        return None
    used = {said for record in records for said in how_of(record).values()}
    notes = [f"\\[{mark}] {said}" for said, mark in MARKS.items() if said in used]
    return f"Intervals: {OVER_ITEMS}" + "".join(f"; {note}" for note in notes)


def how_of(record: Record) -> Mapping[str, str]:
    return record.details.get("intervals", {})


def missing_of(record: Record) -> Mapping[str, str]:
    return record.details.get("missing", {})


def number(value: float) -> str:
    """Four digits that count, or whole where it is large."""
    if abs(value) >= 1000 and float(value).is_integer():
        return f"{value:,.0f}"
    if value and (abs(value) >= 1e6 or abs(value) < 1e-4):
        return f"{value:.3g}"
    digits = 4 if abs(value) < 10 else 2 if abs(value) < 1000 else 0
    return f"{value:,.{digits}f}"


def bounds(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{number(estimate.low)} to {number(estimate.high)}"


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """lm_eval's JSON of several calls as of one that ran all their tasks."""
    out = dict(parts[-1])
    for key in MERGED:
        found: dict[str, Any] = {}
        for part in parts:
            found |= part.get(key, {})
        if found or key in out:
            out[key] = found
    return out


def write_as_lm_eval(
    output: Path, parts: Sequence[Mapping[str, Any]], samples: Mapping[str, list[dict[str, Any]]]
) -> None:
    """``results_DATE.json``, and ``samples_TASK_DATE.jsonl`` of ``samples``, below ``output`` as lm_eval puts them."""
    from lm_eval.loggers import EvaluationTracker

    results = merged(parts)
    tracker = EvaluationTracker(output_path=str(output))
    config = results.get("config", {})
    tracker.general_config_tracker.log_experiment_args(
        model_source=config.get("model", "hf"), model_args=config.get("model_args", {}), system_instruction=None,
        chat_template=results.get("chat_template"), fewshot_as_multiturn=True,
    )  # fmt: skip
    tracker.save_results_aggregated(results=results, samples=dict(samples) or None)
    for task, lines in samples.items():
        tracker.save_results_samples(task_name=task, samples=lines)


def read_samples(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Samples by task, of a file that ``--log_samples`` left beside a record."""
    out: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        out.setdefault(sample.pop("task"), []).append(sample)
    return out


def is_whole(record: Record) -> bool:
    """Whether nothing of a record is missing."""
    return not missing_of(record) and all(math.isfinite(m.estimate.value) for m in record.metrics.values())
