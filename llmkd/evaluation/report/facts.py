"""What was asked of the runs and what they reached, as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from llmkd.evaluation.report import markup
from llmkd.evaluation.report.charts import swatch
from llmkd.evaluation.report.reading import Run, finite
from llmkd.evaluation.table import rows as result_rows

DASH = "–"
MOST_YAML = 60_000
HEADLINES = (("loss", "loss"), ("eval/mean/bits_per_byte", "bits per byte"), ("eval/mean/kl", "KL to teacher"),
             ("eval/mean/agreement", "agreement"))  # fmt: skip


def state(run: Run) -> str:
    """Finished, or how far it was when its log was last written."""
    asked = f" of {run.asked:,}" if run.asked else ""
    if run.ended:
        early = run.asked is not None and run.reached < run.asked
        return f"ended early, {run.reached:,}{asked} steps" if early else f"finished, {run.reached:,}{asked} steps"
    if run.written is None:
        return "nothing logged yet"
    when = datetime.fromtimestamp(run.written).strftime("%Y-%m-%d %H:%M:%S")
    return f"under way or stopped: {run.reached:,}{asked} steps, last line at {when}"


def glance(runs: Sequence[Run]) -> str:
    """A row for each run: how far it is and its latest numbers."""
    shown = [(key, label) for key, label in HEADLINES if any(latest(run, key) is not None for run in runs)]
    head = ["run", "state", "tokens", "time", *(label for _, label in shown)]
    rows = []
    for slot, run in enumerate(runs):
        values = [latest(run, key) for key, _ in shown]
        rows.append([
            f"{swatch(slot)}{markup.text(run.name)}", markup.text(state(run)), _count(tokens(run)),
            duration(seconds(run)), *(DASH if v is None else f"{v:.3f}" for v in values),
        ])  # fmt: skip
    return markup.table("The runs at a glance", head, rows, texts=[1])


def results(runs: Sequence[Run]) -> str:
    """Teacher, baseline and student of every finished run, as the terminal shows them."""
    columns = columns_of(runs)
    if not columns:
        return ""
    students = {run.name for run in runs}
    head = ["", *(markup.text(name) for name in columns)]
    rows = []
    for label, cells in result_rows(columns):
        marked = [f"<b>{markup.text(c)}</b>" if n in students else markup.text(c)
                  for n, c in zip(columns, cells, strict=True)]  # fmt: skip
        rows.append([markup.text(label), *marked])
    return markup.table("Results on held-out rows", head, rows)


def columns_of(runs: Sequence[Run]) -> dict[str, Mapping[str, Any]]:
    """The results by column: what several runs share, such as a teacher, stands there once."""
    columns: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        for role, result in (run.summary or {}).get("results", {}).items():
            if not isinstance(result, Mapping) or not {"parameters", "held_out", "tasks"} <= result.keys():
                continue
            student = role in ("student", "baseline") and role == list(run.summary["results"])[-1]  # type: ignore[index]
            name = run.name if student and len(runs) > 1 else role
            if name in columns and not _same(columns[name], result):
                name = f"{role} of {run.name}"
            columns.setdefault(name, result)
    if len(runs) == 1 and "student" in columns:
        columns[runs[0].name] = columns.pop("student")
    return columns


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two runs found the same, whatever time it took. Older ones have no intervals beside their tasks."""
    aside = {"seconds": None, "task_intervals": None}
    return {**a, **aside} == {**b, **aside}


def asked_and_reached(runs: Sequence[Run]) -> str:
    """Facts as rows, runs as columns."""
    facts: list[tuple[str, Callable[[Run], str]]] = [
        ("steps asked", _steps),
        ("steps reached", lambda run: f"{run.reached:,}"),
        ("tokens counted", lambda run: _count(tokens(run))),
        ("baseline", lambda run: _both(run.of("eval", "baseline"), run.baseline is not None)),
        ("held-out rows", lambda run: _both(run.of("eval", "datasets"), bool(_held_out(run)))),
        ("tasks", _tasks),
        ("samples", lambda run: _both(run.of("eval", "samples"), bool(run.samples))),
        ("processes", lambda run: _said((run.summary or {}).get("processes") or run.of("run", "world_size"))),
        ("device", lambda run: _said(run.environment.get("device"))),
        ("commit", lambda run: _said(str(run.environment.get("commit") or "")[:12])),
        ("llmkd", lambda run: _said(run.environment.get("llmkd"))),
        ("Python", lambda run: _said(run.environment.get("python"))),
        ("platform", lambda run: _said(run.environment.get("platform"))),
    ]  # fmt: skip
    packages = list(dict.fromkeys(name for run in runs for name in run.environment.get("packages", {})))
    facts += [(name, lambda run, name=name: _said(run.environment.get("packages", {}).get(name))) for name in packages]
    head = ["", *(markup.text(run.name) for run in runs)]
    rows = [[markup.text(label), *(markup.text(tell(run)) for run in runs)] for label, tell in facts]
    return markup.table("What was asked and what was reached", head, rows, texts=range(1, len(runs) + 1))


def remarks(runs: Sequence[Run]) -> str:
    """Notes of the runs and what of them could not be read."""
    out = []
    for run in runs:
        parts = [("", run), *([("baseline: ", run.baseline)] if run.baseline else [])]
        for prefix, one in parts:
            out += [markup.paragraph(f"{run.name}: {prefix}{note}", "trouble") for note in one.troubles]
            if not prefix:
                out += [markup.paragraph(f"{run.name}: {note}") for note in (one.summary or {}).get("notes", [])]
    return "".join(out)


def recipes(runs: Sequence[Run]) -> str:
    """The resolved recipes and the commands, folded."""
    out = []
    for run in runs:
        command = " ".join(map(str, run.environment.get("command", [])))
        if command:
            out.append(markup.fold(f"Command of {run.name}", f"<pre>{markup.text(command)}</pre>"))
        if run.recipe:
            yaml = markup.shortened(run.recipe, MOST_YAML)
            out.append(markup.fold(f"Recipe of {run.name}", f'<pre tabindex="0">{markup.text(yaml)}</pre>'))
    return "".join(out)


def latest(run: Run, key: str) -> float | None:
    return next((v for _, v in reversed(run.points(key)) if v is not None), None)


def tokens(run: Run) -> float | None:
    told = (run.summary or {}).get("results", {}).get("student", {})
    return finite(told.get("tokens")) or latest(run, "tokens")


def seconds(run: Run) -> float | None:
    return finite(run.lines[-1].get("seconds")) if run.lines else None


def duration(value: float | None) -> str:
    if value is None:
        return DASH
    if value < 100:
        return f"{value:.0f} s"
    minutes = value / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _count(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}"


def _said(value: Any, unit: str = "") -> str:
    return f"{value} {unit}".strip() if value not in (None, "", {}, []) else DASH


def _both(asked: Any, there: bool) -> str:
    if not asked:
        return "not asked for"
    return "asked for, there" if there else "asked for, not there"


def _steps(run: Run) -> str:
    return f"{run.asked:,}" if run.asked else _said(run.of("train", "num_train_epochs"), "epochs")


def _results(run: Run) -> list[Mapping[str, Any]]:
    return [result for result in (run.summary or {}).get("results", {}).values() if isinstance(result, Mapping)]


def _held_out(run: Run) -> bool:
    return any(r.get("held_out") for r in _results(run)) or any(key.startswith("eval/") for key in run.logged())


def _tasks(run: Run) -> str:
    tasks = [task for task in run.of("eval", "tasks") or [] if isinstance(task, Mapping)]
    asked = [str(task.get("name") or task.get("task")) for task in tasks]
    there = {name for result in _results(run) for name in result.get("tasks", {})}
    missing = [name for name in asked if name not in there]
    return _both(asked, not missing) + (f": {', '.join(missing or asked)}" if asked else "")
