"""Charts as Vega-Lite specifications beside tables.  The table is the data: the page's script reads it from there, and
so does a person who sees no chart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

COLOURS = 6
"""Colours of style.css, ``--c1`` ..., told apart without red and green; each with a dash of its own."""
DASHES = ([1, 0], [6, 3], [2, 2], [10, 3, 2, 3], [4, 2, 1, 2], [12, 4])
REFERENCE = -1
TEACHER = -2
"""In the place of a colour: grey, for what is not one of the runs."""
HEIGHT = 170
FEW = 30
"""Points up to which each one is drawn."""

CONFIG = {
    "background": None, "aria": False, "font": "system-ui, sans-serif", "view": {"stroke": None},
    "padding": {"left": 2, "right": 8, "top": 6, "bottom": 2},
    "axis": {
        "labelColor": "var(--soft)", "titleColor": "var(--soft)", "gridColor": "var(--grid)",
        "domainColor": "var(--line)", "tickColor": "var(--line)", "labelFontSize": 11, "titleFontSize": 11,
        "titleFontWeight": 400, "tickSize": 4, "labelOverlap": True, "titlePadding": 4,
    },
    "axisX": {"grid": False, "tickCount": 5},
    "axisY": {"tickCount": 4, "domain": False, "ticks": False, "labelPadding": 6},
}  # fmt: skip
"""How every chart looks, on the page and as a picture."""

Value = float | None


@dataclass(frozen=True)
class Series:
    """One line.  slot: which colour and dash; points: ``(x, value)``, None is a gap; band: ``(low, high)`` each."""

    name: str
    slot: int
    points: Sequence[tuple[float | str, Value]]
    band: Sequence[tuple[Value, Value]] = ()


@dataclass(frozen=True)
class Chart:
    """kind: ``lines`` over numbers, or ``intervals``, a row for each x; rules: ``(label, value)`` drawn across;
    diagonal: the line y = x; log: the x axis; note: a sentence under the chart; part: the heading that it stands under,
    where its title alone does not tell what it shows."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    kind: str = "lines"
    rules: Sequence[tuple[str, float]] = ()
    diagonal: bool = False
    log: bool = False
    note: str = ""
    part: str = ""


Draw = Callable[[Chart], str]
"""What makes a chart into HTML: ``figure`` with its number of points."""


def number(value: Value) -> str:
    return "NaN" if value is None else f"{value:.6g}"


def kept(values: Sequence[Value], most: int) -> list[int]:
    """Which of the values to draw, at most ``most``: of each stretch the lowest and the highest, and of its gaps one,
    so that no spike is lost; the first and the last are always there."""
    if len(values) <= most:
        return list(range(len(values)))
    stretches = max(1, (most - 2) // 3)
    inner = len(values) - 2
    chosen = {0, len(values) - 1}
    for i in range(stretches):
        stretch = range(1 + i * inner // stretches, 1 + (i + 1) * inner // stretches)
        known = [(value, at) for at in stretch if (value := values[at]) is not None]
        chosen |= {min(known)[1], max(known)[1]} if known else set()
        chosen |= set([at for at in stretch if values[at] is None][:1])
    return sorted(chosen)


def colour(slot: int) -> str:
    return "var(--soft)" if slot < 0 else f"var(--c{slot % COLOURS + 1})"


def dash(slot: int) -> list[int]:
    """The dash differs with the colour, and again where the colours start anew."""
    if slot < 0:
        return [2, 3] if slot == REFERENCE else [12, 3]
    return DASHES[(slot + slot // COLOURS) % len(DASHES)]


def swatch(slot: int) -> str:
    """A short line in a run's colour and dash."""
    pattern = " ".join(map(str, dash(slot)))
    return (
        '<svg class="swatch" width="26" height="8" aria-hidden="true"><line x1="1" y1="4" x2="25" y2="4" '
        f'stroke="{colour(slot)}" stroke-width="2.5" stroke-dasharray="{pattern}"/></svg>'
    )


def figure(chart: Chart, most: int) -> str:
    """The chart with its key, its plot and its table; nothing where it has no value."""
    series = drawable(chart, most)
    if not series:
        return ""
    full = sum(len(s.points) for s in chart.series)
    drawn = sum(len(s.points) for s in series)
    notes = [chart.note] if chart.note else []
    if drawn < full:
        notes.append(f"Thinned: {drawn:,} of {full:,} points, the extremes among them.")
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    spec = json.dumps(specification(chart, series), separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<figure class="chart" data-kind="{chart.kind}"><figcaption><strong>{escape(chart.title)}</strong>'
        f'<span class="unit">{escape(chart.y)}</span></figcaption>{_key(chart, series)}<div class="picture" role="img" '
        f'aria-label="{escape(spoken(chart, series))}"><div class="plot"></div></div>'
        f'<script type="application/json">{spec}</script>{said}<details class="values"><summary>Values'
        f'<span class="hidden"> of {escape(chart.title)}</span></summary><div class="box" tabindex="0" role="region" '
        f'aria-label="Values of {escape(chart.title)}">{_table(chart, series)}</div></details></figure>'
    )


def drawable(chart: Chart, most: int) -> list[Series]:
    """The series that have a value, thinned to ``most`` points."""
    return [_thin(s, most) for s in chart.series if any(value is not None for _, value in s.points)]


def _thin(series: Series, most: int) -> Series:
    chosen = kept([value for _, value in series.points], most)
    band = [series.band[i] for i in chosen] if series.band else ()
    return Series(series.name, series.slot, [series.points[i] for i in chosen], band)


def _key(chart: Chart, series: Sequence[Series]) -> str:
    """Who is who, with the last value: the legend and the direct label in one."""
    if chart.kind == "intervals" and len(series) == 1:
        series = []
    items = [f'<li>{swatch(s.slot)}<span class="who">{escape(s.name)}</span> {_last(s, chart)}</li>' for s in series]
    items += [f'<li>{swatch(TEACHER)}<span class="who">{escape(n)}</span> <b>{v:.4g}</b></li>'
              for n, v in chart.rules]  # fmt: skip
    return f'<ul class="key">{"".join(items)}</ul>' if items else ""


def _last(series: Series, chart: Chart) -> str:
    value = next((v for _, v in reversed(series.points) if v is not None), 0.0)
    return f"<b>{value:.4g}</b>" if chart.kind == "lines" and not chart.diagonal and not chart.log else ""


def spoken(chart: Chart, series: Sequence[Series]) -> str:
    """What a screen reader says in the place of the picture."""
    if chart.kind == "intervals":
        parts = [f"{s.name} {x}: {v:.4g}" for s in series for x, v in s.points if v is not None]
        return f"{chart.title}, {chart.y}. " + "; ".join(parts) + "."
    parts = []
    for s in series:
        known = [(x, v) for x, v in s.points if v is not None]
        (first, start), (last, end) = known[0], known[-1]
        parts.append(f"{s.name}: {start:.4g} at {first:g}, {end:.4g} at {last:g}")
    parts += [f"{name}: {value:.4g}" for name, value in chart.rules]
    return f"{chart.title}, {chart.y}, over {chart.x}. " + "; ".join(parts) + "."


def _table(chart: Chart, series: Sequence[Series]) -> str:
    """One row for each x, one column for each series.  An empty cell: nothing was logged; NaN: no finite number."""
    xs = list(dict.fromkeys(x for s in series for x, _ in s.points))
    if all(isinstance(x, float | int) for x in xs):
        xs.sort()
    cells: list[dict[Any, str]] = []
    for s in series:
        bands = s.band or [(None, None)] * len(s.points)
        cells.append({x: _cell(v, b) for (x, v), b in zip(s.points, bands, strict=True)})
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in [chart.x, *(s.name for s in series)])
    rows = [
        f'<tr><th scope="row">{escape(x if isinstance(x, str) else f"{x:.6g}")}</th>'
        + "".join(column.get(x, "<td></td>") for column in cells) + "</tr>" for x in xs
    ]  # fmt: skip
    return f'<table class="data"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _cell(value: Value, band: tuple[Value, Value]) -> str:
    low, high = band
    if low is None or high is None:
        return f"<td>{number(value)}</td>"
    said = f"{number(value)} <small>[{low:.4g}, {high:.4g}]</small>"
    return f'<td data-low="{low:.6g}" data-high="{high:.6g}">{said}</td>'


def specification(chart: Chart, series: Sequence[Series]) -> dict[str, Any]:
    """The Vega-Lite specification, without its data: rows ``{x, y, low, high, s}`` with s = ``s0``, ``s1``, ..."""
    names = [f"s{i}" for i in range(len(series))]
    colours = {
        "field": "s", "type": "nominal", "legend": None,
        "scale": {"domain": names, "range": [colour(s.slot) for s in series]},
    }  # fmt: skip
    common = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}, "data": {"name": "rows"}}
    if chart.kind == "intervals":
        return {**common, **_intervals(chart, colours, series)}
    return {**common, "height": HEIGHT, **_lines(chart, series, names, colours)}


def _lines(chart: Chart, series: Sequence[Series], names: list[str], colours: dict[str, Any]) -> dict[str, Any]:
    dashes = {**colours, "scale": {"domain": names, "range": [dash(s.slot) for s in series]}}
    zero = {"zero": False, "nice": True}
    y = {"field": "y", "type": "quantitative", "title": None, "scale": zero}
    x = {"field": "x", "type": "quantitative", "title": chart.x, "scale": {"zero": False, "nice": False}}
    if chart.log:
        x["scale"] = {"type": "log"}
    tips = [{"field": "x", "title": chart.x, "format": ".6~g"}]
    tips += [{"field": n, "title": s.name, "format": ".4~g"} for n, s in zip(names, series, strict=True)]
    few = max(len(s.points) for s in series) <= FEW
    line = {"type": "line", "strokeWidth": 2, "clip": True, "invalid": "break-paths-filter-domains"}
    layers: list[dict[str, Any]] = []
    if any(s.band for s in series):
        layers.append({
            "mark": {"type": "area", "opacity": 0.16, "invalid": "break-paths-filter-domains"},
            "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}, "fill": colours},
        })  # fmt: skip
    layers += _references(chart)
    layers.append({
        "mark": {**line, "point": {"size": 22, "filled": True, "invalid": "filter"} if few else False},
        "encoding": {"y": y, "color": colours, "strokeDash": dashes},
    })  # fmt: skip
    hover = {"name": "hover", "select": {"type": "point", "fields": ["x"], "nearest": True, "on": "pointerover",
                                         "clear": "pointerout"}}  # fmt: skip
    layers.append({
        "transform": [{"pivot": "s", "value": "y", "groupby": ["x"]}], "params": [hover],
        "mark": {"type": "rule", "color": "var(--soft)"},
        "encoding": {"opacity": {"condition": {"param": "hover", "empty": False, "value": 0.7}, "value": 0},
                     "tooltip": tips},
    })  # fmt: skip
    return {"encoding": {"x": x}, "layer": layers}


def _references(chart: Chart) -> list[dict[str, Any]]:
    """Values across the whole width, and the diagonal."""
    grey = {"color": colour(TEACHER), "strokeDash": dash(TEACHER), "strokeWidth": 1.5}
    layers: list[dict[str, Any]] = []
    for _, value in chart.rules:
        layers.append({"data": {"values": [{"value": value}]}, "mark": {"type": "rule", **grey},
                       "encoding": {"x": {"value": 0}, "x2": {"value": "width"}, "y": {
                           "field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}}},
                       })  # fmt: skip
    if chart.diagonal:
        ends = [{"x": 0, "y": 0}, {"x": 1, "y": 1}]
        layers.append({"data": {"values": ends}, "mark": {"type": "line", **grey},
                       "encoding": {"x": {"field": "x", "type": "quantitative"},
                                    "y": {"field": "y", "type": "quantitative", "title": None}}})  # fmt: skip
    return layers


def _intervals(chart: Chart, colours: dict[str, Any], series: Sequence[Series]) -> dict[str, Any]:
    """A point and its interval for each row; series of one row stand under each other."""
    value = {"type": "quantitative", "title": chart.y, "scale": {"zero": False}, "axis": {"tickCount": 4}}
    y: dict[str, Any] = {"field": "x", "type": "nominal", "sort": None, "title": None, "axis": {
        "labelLimit": 150, "grid": False, "domain": False, "ticks": False}}  # fmt: skip
    shared = {"y": y, "color": colours}
    if len(series) > 1:
        shared["yOffset"] = {"field": "s", "type": "nominal"}
    across = [{"data": {"values": [{"value": v}]}, "mark": {"type": "rule", "color": colour(TEACHER),
               "strokeDash": dash(TEACHER)}, "encoding": {"x": {**value, "field": "value"}}}
              for _, v in chart.rules]  # fmt: skip
    return {
        "height": max(26, 16 * len(series)) * len({x for s in series for x, _ in s.points}),
        "layer": [
            *across,
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {
                **shared, "x": {**value, "field": "low"}, "x2": {"field": "high"}}},
            {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1}, "encoding": {
                **shared, "x": {**value, "field": "y"}, "tooltip": [
                    {"field": "x", "title": chart.x}, {"field": "y", "title": "value", "format": ".4~g"},
                    {"field": "low", "format": ".4~g"}, {"field": "high", "format": ".4~g"}]}},
        ],
    }  # fmt: skip
