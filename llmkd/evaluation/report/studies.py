"""A study of ``llmkd compare`` on the page: its arms' table, their measures with intervals, their curves with bands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from llmkd.evaluation.report import markup
from llmkd.evaluation.report.charts import Chart, Draw, Series, swatch
from llmkd.evaluation.report.facts import DASH, duration
from llmkd.evaluation.report.reading import Run, finite, is_run, read_run

VERDICTS = {"better": "good", "worse": "bad"}


@dataclass(frozen=True)
class Study:
    """table and curves: as ``llmkd.evaluation.study`` writes them; text: of study.yaml; commands: of commands.sh;
    runs: of each arm the one with the first seed, for its samples; ended: whether no run is still to come."""

    name: str
    folder: Path
    table: Mapping[str, Any]
    curves: Mapping[str, Any]
    text: str
    commands: str
    runs: Sequence[Run]

    @property
    def ended(self) -> bool:
        return all(arm["status"] != "incomplete" for arm in self.table["arms"].values())


def is_study(folder: Path) -> bool:
    return (folder / "table.json").is_file() or (folder / "study.yaml").is_file()


def read_study(folder: Path) -> Study:
    """ValueError where there is no table yet, or none that can be read."""
    table = _json(folder / "table.json")
    if not table or not isinstance(table.get("arms"), dict):
        raise ValueError(f"{folder}: the study has no table yet (table.json): llmkd compare writes it; ask again then")
    runs = []
    for name, arm in table["arms"].items():
        first = next((folder / run["folder"] for run in arm.get("runs", {}).values()), None)
        if first is not None and first.is_dir() and is_run(first):
            runs.append(read_run(first, name))
    return Study(
        name=str(table.get("name") or folder.name), folder=folder, table=table,
        curves=_json(folder / "curves.json") or {}, text=_text(folder / "study.yaml"),
        commands=_text(folder / "commands.sh"), runs=runs,
    )  # fmt: skip


def arms_table(study: Study) -> str:
    """A row for each arm, a column for each measure: the mean, its interval, and the verdict against the reference."""
    measures = study.table.get("measures", {})
    head = ["arm", *(_heading(about) for about in measures.values())]
    rows = []
    for slot, (name, arm) in enumerate(study.table["arms"].items()):
        mark = " <small>reference</small>" if name == study.table.get("reference") else ""
        status = "" if arm["status"] == "complete" else f' <small class="bad">{markup.text(arm["status"])}</small>'
        cells = [_cell(arm.get("measures", {}).get(path), about) for path, about in measures.items()]
        rows.append([f"{swatch(slot)}{markup.text(name)}{mark}{status}", *cells])
    for name, values in study.table.get("others", {}).items():
        shown = [DASH if values.get(p) is None else _number(values[p], a) for p, a in measures.items()]
        rows.append([f"<small>{markup.text(name)}</small>", *shown])
    return markup.table(f"The arms of {study.name}", head, rows)


def intervals(study: Study, draw: Draw) -> str:
    """For each measure a chart with a row for each arm."""
    figures = []
    for path, about in study.table.get("measures", {}).items():
        names, points, bands = [], [], []
        for name, arm in study.table["arms"].items():
            cell = arm.get("measures", {}).get(path) or {}
            low, high = cell.get("interval") or (None, None)
            names.append(name)
            points.append((name, finite(cell.get("mean"))))
            bands.append((low, high))
        others = {name: finite(values.get(path)) for name, values in study.table.get("others", {}).items()}
        rules = [(name, value) for name, value in others.items() if value is not None]
        figures.append(draw(Chart(about["label"], "arm", about.get("unit", ""), [Series("mean", 0, points, bands)],
                                    kind="intervals", rules=rules)))  # fmt: skip
    return markup.grid(figures)


TITLES = {"loss": "Loss", "reward": "Reward", "entropy": "Entropy", "completions/mean_length": "Length of completions"}
"""Of what is drawn beside the held-out measures and the values of terms."""


def curves(study: Study, draw: Draw) -> str:
    """Every curve that the arms logged: the mean over seeds, the band from the lowest to the highest."""
    arms = study.curves.get("arms", {})
    keys = list(dict.fromkeys(key for seeds in arms.values() for curves in seeds.values() for key in curves))
    wanted = [key for key in keys if key in TITLES or key.startswith("held_out.") or key.endswith("/value")]
    labels = {path: about["label"] for path, about in study.table.get("measures", {}).items()}
    figures = []
    for key in wanted:
        series = [_over_seeds(name, slot, [curves[key] for curves in seeds.values() if key in curves])
                  for slot, (name, seeds) in enumerate(arms.items())]  # fmt: skip
        unit = study.table.get("measures", {}).get(key, {}).get("unit", "nats/token" if key == "loss" else "")
        if max(len(s.points) for s in series) > 1:
            title = labels.get(key, TITLES.get(key, key))
            figures.append(draw(Chart(title, "step", unit, series)))
    body = markup.grid(figures)
    return body and markup.paragraph("Lines: means over seeds. Bands: from the lowest to the highest.", "note") + body


def runs_table(study: Study) -> str:
    """Every run of every arm: how it went, and what the arm changes."""
    rows = []
    for name, arm in study.table["arms"].items():
        changes = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in
                            arm.get("overrides", {}).items())  # fmt: skip
        for seed, run in arm.get("runs", {}).items():
            rows.append([markup.text(name), markup.text(seed), _state(run), _count(run.get("steps")),
                         _count(run.get("tokens")), duration(finite(run.get("seconds"))),
                         f"<code>{markup.text(changes)}</code>"])  # fmt: skip
    head = ["arm", "seed", "state", "steps", "tokens", "time", "changes to the base"]
    return markup.table("The runs of the study", head, rows, texts=[2, 6])


def notes(study: Study) -> str:
    return "".join(markup.paragraph(note) for note in study.table.get("notes", []))


def sources(study: Study) -> str:
    parts = [("The study", study.text), ("The command of every run", study.commands)]
    return "".join(markup.fold(title, f'<pre tabindex="0">{markup.text(body)}</pre>') for title, body in parts if body)


def _over_seeds(name: str, slot: int, seeds: Sequence[Sequence[Sequence[Any]]]) -> Series:
    by_step: dict[float, list[float | None]] = {}
    for points in seeds:
        for step, value in points:
            by_step.setdefault(float(step), []).append(finite(value))
    points, bands = [], []
    for step in sorted(by_step):
        values = [v for v in by_step[step] if v is not None]
        whole = len(values) == len(by_step[step])
        points.append((step, fmean(values) if whole else None))
        bands.append((min(values), max(values)) if whole and len(values) > 1 else (None, None))
    several = any(low is not None for low, _ in bands)
    return Series(name, slot, points, bands if several else ())


def _heading(about: Mapping[str, Any]) -> str:
    arrow = {"lower": " ↓", "higher": " ↑"}.get(about.get("better") or "", "")
    unit = f'<br><span class="unit">{markup.text(about["unit"])}</span>' if about.get("unit") else ""
    return f"{markup.text(about['label'])}{arrow}{unit}"


def _number(value: float, about: Mapping[str, Any]) -> str:
    return f"{100 * value:.1f}%" if about.get("percent") else f"{value:.4g}"


def _cell(cell: Mapping[str, Any] | None, about: Mapping[str, Any]) -> str:
    if not cell or finite(cell.get("mean")) is None:
        return DASH
    words = _number(cell["mean"], about)
    if cell.get("interval"):
        low, high = cell["interval"]
        words += f" <small>[{_number(low, about)}, {_number(high, about)}]</small>"
    verdict = (cell.get("difference") or {}).get("verdict")
    if verdict:
        words += f'<br><small class="{VERDICTS.get(verdict, "")}">{markup.text(verdict)}</small>'
    return words


def _state(run: Mapping[str, Any]) -> str:
    at = f" at step {run['diverged_at']}" if run.get("diverged_at") is not None else ""
    good = run.get("state") == "finished"
    said = markup.text(f"{run.get('state')}{at}")
    return said if good else f'<span class="bad">{said}</span>'


def _count(value: Any) -> str:
    return DASH if finite(value) is None else f"{value:,}"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(_text(path) or "null")
    except json.JSONDecodeError as error:
        said = f"{path}: cannot be read ({error.msg}, line {error.lineno}): run llmkd compare again"
        raise ValueError(said) from None
    return found if isinstance(found, dict) else None
