"""The charts of the page as SVG files: for a paper, a README, a slide."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from llmkd.evaluation.report.charts import CONFIG, Chart, Series, drawable, figure, specification
from llmkd.evaluation.report.sections import read, sections

POINTS = 600
WIDTH = 420


def pictures(folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """A file name and its SVG for each chart that the page of these folders has, in its order."""
    charts: list[Chart] = []

    def noted(chart: Chart) -> str:
        html = figure(chart, POINTS)
        charts.extend([chart] if html else [])
        return html

    sections(*read(folders), noted)
    taken: dict[str, int] = {}
    for chart in charts:
        name = _file_name(chart)
        taken[name] = taken.get(name, 0) + 1
        yield f"{name}-{taken[name]}.svg" if taken[name] > 1 else f"{name}.svg", svg(chart)


def svg(chart: Chart, points: int = POINTS) -> str:
    """The chart by itself, on paper of its own: with its title, and who is who beside it."""
    import vl_convert

    series = drawable(chart, points)
    named = len(series) > 1
    spec = specification(chart, series)
    _spread(spec, series if named else [])
    spec["layer"] = [layer for layer in spec["layer"] if "params" not in layer]  # nobody points at a picture
    spec |= {
        "width": WIDTH, "autosize": "pad", "datasets": {"rows": _rows(chart, series)},
        "title": _title(chart), "config": {**CONFIG, "background": "var(--paper)", "padding": 12},
    }  # fmt: skip
    return str(vl_convert.vegalite_to_svg(_in_colour(spec)))


def _title(chart: Chart) -> dict[str, Any]:
    below = [chart.y] if chart.y and chart.kind == "lines" else []
    below += [f"dashed: {name} {value:.4g}" for name, value in chart.rules]
    below += [chart.note] if chart.note else []
    return {
        "text": f"{chart.part}: {chart.title}" if chart.part else chart.title, "subtitle": below, "anchor": "start",
        "color": "var(--ink)", "subtitleColor": "var(--soft)", "fontSize": 13, "offset": 8,
    }  # fmt: skip


def _spread(place: Any, series: Sequence[Series]) -> None:
    """Give every encoding that tells the series apart one legend with their names; none where there are none."""
    if isinstance(place, list):
        for inner in place:
            _spread(inner, series)
    if not isinstance(place, dict):
        return
    for key, inner in place.items():
        if key in ("color", "strokeDash") and isinstance(inner, dict) and inner.get("field") == "s":
            inner["legend"] = _legend(series) if series else None
        else:
            _spread(inner, series)


def _legend(series: Sequence[Series]) -> dict[str, Any]:
    names = json.dumps([s.name for s in series])
    return {
        "title": None, "labelExpr": f"{names}[toNumber(slice(datum.value, 1))]", "symbolType": "stroke",
        "symbolSize": 400, "symbolStrokeWidth": 2, "symbolOpacity": 1, "labelColor": "var(--ink)", "labelLimit": 220,
    }  # fmt: skip


def _rows(chart: Chart, series: Sequence[Series]) -> Sequence[Mapping[str, Any]]:
    rows = []
    for number, one in enumerate(series):
        bands = one.band or [(None, None)] * len(one.points)
        for (x, y), (low, high) in zip(one.points, bands, strict=True):
            rows.append({"x": x, "y": y, "low": low, "high": high, "s": f"s{number}"})
    return rows


def _in_colour(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The specification with the light colours of the page's style in the place of their names."""
    style = resources.files("llmkd.evaluation.report").joinpath("style.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"(--\w+): light-dark\((#\w+),", style))
    found: dict[str, Any] = json.loads(re.sub(r"var\((--\w+)\)", lambda m: light[m[1]], json.dumps(spec)))
    return found


def _file_name(chart: Chart) -> str:
    words = f"{chart.part} {chart.title} {'intervals' if chart.kind == 'intervals' else ''}".lower()
    return re.sub(r"[^\w@]+", "-", words).strip("-_") or "chart"
