"""``table.json`` for people: Markdown, and the same cells on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

MARKS = {"better": "+", "worse": "-", "no difference": "=", "higher": "^", "lower": "v"}


@dataclass(frozen=True)
class Grid:
    """One table as text.  The first column is text, the others are numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def grids(found: Mapping[str, Any]) -> list[Grid]:
    """The overview, one table for each measure, and the runs."""
    return [_overview(found), *(_of_measure(found, path) for path in found["measures"]), _runs(found)]


def markdown(found: Mapping[str, Any]) -> str:
    lines = [f"# {found['name']}", "", explanation(found), ""]
    for grid in grids(found):
        lines += [f"## {grid.title}", "", _line(grid.head), "|---|" + "---:|" * (len(grid.head) - 1)]
        lines += [*(_line(row) for row in grid.rows), ""]
    lines += [*(f"- {note}" for note in found["notes"]), ""] if found["notes"] else []
    return "\n".join(lines).rstrip() + "\n"


def print_tables(found: Mapping[str, Any], console: Console) -> None:
    """The tables of all measures below one head, and the runs.  The overview is left to ``table.md``."""
    _, *measures, runs = grids(found)
    if measures:
        table = _table(["", *measures[0].head[1:]])
        for grid in measures:
            table.add_row(f"[bold]{grid.title}[/]")
            for row in grid.rows:
                table.add_row(f"  {row[0]}", *row[1:], end_section=row is grid.rows[-1])
        console.print(table)
    table = _table(runs.head)
    for row in runs.rows:
        table.add_row(*row)
    console.print(table)
    console.print(explanation(found, overview=False), highlight=False)
    for note in found["notes"]:
        console.print(f"- {note}", highlight=False, markup=False)


def _table(head: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    return table


def explanation(found: Mapping[str, Any], overview: bool = True) -> str:
    seeds = ("seed " if len(found["seeds"]) == 1 else "seeds ") + ", ".join(str(seed) for seed in found["seeds"])
    budget = found["budget"]
    length = f"{next(iter(budget.values())):,} {next(iter(budget))} a run" if budget else "as long as the recipe says"
    text = f"{_count(len(found['arms']), 'arm')}, {seeds}, {length}. A cell is the mean over the seeds."
    if found["reference"] is not None:
        text += f" Differences are to {found['reference']}, paired by seed"
        several = f", with {found['level']:.0%} intervals over the seeds (Student's t)"
        text += f"{several if len(found['seeds']) > 1 else ''}."
    if overview and any(cell["difference"] and cell["difference"]["verdict"] for arm in found["arms"].values()
           for cell in arm["measures"].values()):  # fmt: skip
        text += " In the overview of all measures + is better, - worse, = no difference: the interval covers 0."
    return text


def _overview(found: Mapping[str, Any]) -> Grid:
    measures = found["measures"]
    rows = [[_name(name, arm), *(_overview_cell(arm["measures"][path], measures[path]) for path in measures)]
            for name, arm in found["arms"].items()]  # fmt: skip
    rows += [[f"({name})", *(number(values.get(path), measures[path]) for path in measures)]
             for name, values in found["others"].items()]  # fmt: skip
    return Grid("All measures", ["arm", *(about["label"] for about in measures.values())], rows)


def _overview_cell(cell: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    verdict = cell["difference"]["verdict"] if cell["difference"] else None
    return f"{number(cell['mean'], about)} {MARKS[verdict]}" if verdict else number(cell["mean"], about)


def _of_measure(found: Mapping[str, Any], path: str) -> Grid:
    about = found["measures"][path]
    several = len(found["seeds"]) > 1
    head = ["arm", "mean", *(["lowest, highest"] if several else [])]
    if found["reference"] is not None:
        head += [f"difference to {found['reference']}", f"{found['level']:.0%} interval", ""]
    rows = []
    for name, arm in found["arms"].items():
        cell = arm["measures"][path]
        spread = "-" if cell["low"] is None else f"[{number(cell['low'], about)}, {number(cell['high'], about)}]"
        row = [_name(name, arm), number(cell["mean"], about), *([spread] if several else [])]
        rows.append(row + (_difference(name, cell, about, found) if found["reference"] is not None else []))
    rows += [[f"({name})", number(values[path], about), *[""] * (len(head) - 2)]
             for name, values in found["others"].items() if path in values]  # fmt: skip
    better = f", {about['better']} is better" if about["better"] else ""
    unit = f" ({about['unit']}{better})" if about["unit"] else f" ({about['better']} is better)" if better else ""
    return Grid(f"{about['label']}{unit}", head, rows)


def _difference(name: str, cell: Mapping[str, Any], about: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    if name == found["reference"]:
        return ["", "", "reference"]
    difference = cell["difference"]
    if difference is None:
        return ["-", "-", "not comparable"]
    if difference["interval"] is None:
        why = "one seed" if len(difference["values"]) == 1 else "the same with every seed"
        return [number(difference["mean"], about, sign=True), "withheld", why]
    low, high = (number(end, about, sign=True) for end in difference["interval"])
    return [number(difference["mean"], about, sign=True), f"[{low}, {high}]", difference["verdict"]]


def _runs(found: Mapping[str, Any]) -> Grid:
    rows = []
    for name, arm in found["arms"].items():
        for seed, run in arm["runs"].items():
            state = run["state"]
            if state == "diverged":
                at = run["diverged_at"]
                state += " at the end" if at is None else f" at step {at}"
            tokens = "-" if run["tokens"] is None else f"{run['tokens']:,}"
            seconds = "-" if run["seconds"] is None else f"{run['seconds']:.0f}"
            rows.append([f"{name}, seed {seed}", state, "-" if run["steps"] is None else str(run["steps"]), tokens,
                         seconds])  # fmt: skip
    return Grid("Runs", ["run", "state", "steps", "tokens", "seconds"], rows)


def _name(name: str, arm: Mapping[str, Any]) -> str:
    if arm["status"] == "complete":
        return name
    if arm["status"] != "diverged":
        return f"{name} ({arm['status']})"
    steps = [str(run["diverged_at"]) for run in arm["runs"].values() if run["diverged_at"] is not None]
    return f"{name} (diverged at step {', '.join(steps)})" if steps else f"{name} (diverged)"


def number(value: float | None, about: Mapping[str, Any], sign: bool = False) -> str:
    """Four digits after the point; a share of right answers as percent."""
    if value is None:
        return "-"
    if sign and value == 0:
        return "0"
    if about["percent"]:
        return f"{100 * value:{'+' if sign else ''}.1f}%"
    return f"{value:{'+' if sign else ''}.4f}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
