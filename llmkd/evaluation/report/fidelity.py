"""How near the student is to the teacher, and how well it knows what it knows: tables and charts of such records.

Their details are those of ``llmkd.evaluation.measures.fidelity`` and ``calibration``; what is not there is not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from llmkd.evaluation.report import markup
from llmkd.evaluation.report.charts import REFERENCE, Chart, Draw, Series
from llmkd.evaluation.report.measured import ARROWS, Found, cell, of_kind, table
from llmkd.evaluation.report.reading import Run, finite

COLUMNS = {"": "student", "baseline": "baseline", "difference": "student less baseline", "teacher": "teacher itself",
           "resampled_teacher": "teacher itself"}  # fmt: skip
"""What stands before the slash in a metric's name, and the heading of its column."""
ITSELF = "Teacher itself: its own value on the text or, for agreement and BLEU, two of its draws against each other."


def fidelity(runs: Sequence[Run], draw: Draw) -> str:
    """A table for each run, agreement by the teacher's confidence, divergence by position."""
    found = of_kind(runs, "fidelity")
    tables = [markup.part(f.owner if len(found) > 1 else "", _beside(f)) or _beside(f) for f in found]
    body = "".join(tables)
    body += markup.part("Agreement by the teacher's confidence", markup.grid(_by_confidence(found, draw), small=True))
    body += markup.part("By position in the completion", markup.grid(_by_position(found, draw), small=True))
    return body


def calibration(runs: Sequence[Run], draw: Draw) -> str:
    """All metrics, and a reliability curve for everything that has one."""
    found = of_kind(runs, "calibration")
    curves: dict[str, list[Series]] = {}
    for f in found:
        for path, bins in _reliability(f.record.details):
            points = [(float(b["confidence"]), finite(b["accuracy"])) for b in bins]
            curves.setdefault(path, []).append(Series(f.owner, f.slot, points))
    figures = [
        draw(Chart(title, "confidence", "accuracy", series, diagonal=True, note="On the dashed line it is right as "
                     "often as it says; below, it says more than it knows.", part="Calibration"))
        for title, series in curves.items()
    ]  # fmt: skip
    return table(found) + markup.grid(figures)


def _beside(found: Found) -> str:
    """The metrics of one record: student, baseline and the teacher against itself beside each other."""
    split = {name: _split(name) for name in found.record.metrics}
    there = {COLUMNS[prefix] for prefix, _ in split.values()}
    columns = [heading for heading in dict.fromkeys(COLUMNS.values()) if heading in there]
    labels = _labels(found.record.details)
    rows = []
    for measure in dict.fromkeys(rest for _, rest in split.values()):
        named = {COLUMNS[p]: found.record.metrics[name] for name, (p, rest) in split.items() if rest == measure}
        one = next(iter(named.values()))
        unit = f' <span class="unit">{markup.text(one.unit)}</span>' if one.unit else ""
        base, _, teacher = measure.partition("@")
        label = labels.get(base, base.replace("_", " ")) + (f" ({teacher})" if teacher else "")
        cells = [cell(named.get(heading), counted=False) for heading in columns]
        rows.append([f"{markup.text(label)}{ARROWS.get(one.better or '', '')}{unit}", *cells, f"{one.estimate.n:,}"])
    if not rows:
        return ""
    note = markup.paragraph(ITSELF, "note") if COLUMNS["teacher"] in columns else ""
    return markup.table(f"Fidelity of {found.owner}", ["", *columns, "n"], rows) + note


def _split(name: str) -> tuple[str, str]:
    prefix, slash, rest = name.partition("/")
    return (prefix, rest) if slash and prefix in COLUMNS else ("", name)


def teachers_of(details: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each teacher's details, under its name; of one teacher alone under none."""
    found = details.get("teachers")
    known = {n: d for n, d in found.items() if isinstance(d, Mapping)} if isinstance(found, Mapping) else {}
    for name, told in known.items():
        yield (name if len(known) > 1 else ""), told


def _labels(details: Mapping[str, Any]) -> dict[str, str]:
    return {k: str(v) for _, told in teachers_of(details) for k, v in (told.get("labels") or {}).items()}


def _by_confidence(found: Sequence[Found], draw: Draw) -> list[str]:
    panels: dict[str, list[Series]] = {}
    for f, title, told in _panels(found, "by_confidence"):
        middles = [(a + b) / 2 for a, b in pairwise(told.get("edges", []))]
        at = [middle if x is None else x for middle, x in zip(middles, told.get("confidence", []), strict=False)]
        _add(panels, f, title, at, told.get("agreement", {}))
    note = "On the dashed line: as often as a draw of the teacher is its likeliest token."
    x = "the teacher's largest probability"
    part = "Agreement by the teacher's confidence"
    charts = [Chart(title, x, "share agreeing", s, diagonal=True, note=note, part=part) for title, s in panels.items()]
    return [draw(chart) for chart in charts]


def _by_position(found: Sequence[Found], draw: Draw) -> list[str]:
    out = []
    for key, unit, word in (("forward_kl", "nats/token", "forward KL"), ("agreement", "share", "top-1 agreement")):
        panels: dict[str, list[Series]] = {}
        for f, title, told in _panels(found, "by_position"):
            _add(panels, f, f"{title}: {word}", [x + 1 for x in told.get("from", [])], told.get(key, {}))
        x, part = "token of the completion, from", "By position in the completion"
        out += [draw(Chart(title, x, unit, series, log=True, part=part))
                for title, series in panels.items()]  # fmt: skip
    return out


def _panels(found: Sequence[Found], key: str) -> Iterator[tuple[Found, str, Mapping[str, Any]]]:
    """Each record's details of each teacher and domain, with a title."""
    for f in found:
        for teacher, told in teachers_of(f.record.details):
            for domain, values in (told.get(key) or {}).items():
                if values:
                    yield f, f"{domain} ({teacher})" if teacher else str(domain), values


def _add(panels: dict[str, list[Series]], found: Found, title: str, at: Sequence[float], models: Mapping[str, Any]
         ) -> None:  # fmt: skip
    """The student of everybody, and one baseline."""
    series = panels.setdefault(title, [])
    for model, values in models.items():
        points = [(float(x), finite(y)) for x, y in zip(at, values, strict=False) if y is not None]
        if model == "student":
            series.append(Series(found.owner, found.slot, points))
        elif all(s.slot != REFERENCE for s in series):
            series.append(Series(model, REFERENCE, points))


def _reliability(details: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    """Every reliability curve in the details, with the keys that lead to it."""
    for key, value in details.items():
        if key == "reliability" and isinstance(value, Sequence) and value:
            yield path or "reliability", value
        elif isinstance(value, Mapping):
            yield from _reliability(value, f"{path}, {key}" if path else str(key))
