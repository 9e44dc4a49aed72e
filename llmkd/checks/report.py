"""What ``llmkd verify`` prints and writes: a row for each entry, and every failure with its smallest case."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from llmkd.checks.estimators import ESTIMATORS
from llmkd.checks.law import Result, Setting
from llmkd.terms import READINGS, TERMS, class_of


def entries(results: Sequence[Result]) -> list[str]:
    """Those that something was tried of: terms in the order of the table, then the rest."""
    order = [*TERMS, *ESTIMATORS]
    found = list(dict.fromkeys(result.entry for result in results))
    return sorted(found, key=lambda entry: order.index(entry) if entry in order else len(order))


def described(entry: str) -> dict[str, Any]:
    """What the table declares of an entry: class, range, and what it is worth under each reading."""
    row = TERMS.get(entry)  # type: ignore[call-overload]
    if row is None:
        return {"class": "estimator" if entry in ESTIMATORS else "", "range": ESTIMATORS.get(entry, ""), "readings": {}}
    readings = {reading: class_of(entry, reading)[0] for reading in READINGS}
    return {"class": "divergence" if row.divergence else "loss", "range": row.range, "readings": readings}


def table(results: Sequence[Result], width: int) -> Table:
    """``range`` is left out where there is no room for it."""
    columns = ["entry", "class", *(["range"] if width >= 100 else []), *READINGS, "laws"]
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name == "laws" else "left", no_wrap=name != "range")
    for entry in entries(results):
        what = described(entry)
        own = [result for result in results if result.entry == entry]
        passed = sum(result.passed for result in own)
        style = "green" if passed == len(own) else "bold red"
        cells = {"entry": entry, "class": what["class"], "range": escape(what["range"]), **what["readings"]}
        made.add_row(*(cells.get(name, "") for name in columns[:-1]), f"[{style}]{passed}/{len(own)}[/]")
    return made


def failures(results: Sequence[Result]) -> Iterator[str]:
    """Three lines each."""
    for result in results:
        if result.failure is None:
            continue
        what = result.failure
        case = ", ".join(f"{name}={_shown(value)}" for name, value in what["case"].items())
        yield (
            f"FAILED {result.entry}: {result.law}\n"
            f"  smallest failing case ({result.group}): {case or 'the entry itself'}\n"
            f"  {what['what']}: found {_shown(what['found'])}, expected {_shown(what['expected'])} "
            f"(off by {what['error']:.3g}, tolerated {what['tolerance']:.3g})"
        )


def verdict(results: Sequence[Result], setting: Setting, seconds: float) -> str:
    failed, cases = sum(not result.passed for result in results), sum(result.cases for result in results)
    where = f"{name_of(setting.dtype)} on {setting.device}, seed {setting.seed}, {seconds:.0f} s"
    if failed:
        return f"{failed} of {len(results)} laws failed ({where})"
    return f"{len(results)} laws hold, in {cases} cases ({where})"


def content(results: Sequence[Result], setting: Setting, seconds: float, recipe: str | None) -> dict[str, Any]:
    """Everything that was found, as plain values."""
    from llmkd.run import environment

    return {
        "passed": all(result.passed for result in results),
        "recipe": recipe,
        "device": setting.device,
        "dtype": name_of(setting.dtype),
        "seed": setting.seed,
        "seconds": round(seconds, 1),
        "environment": environment(),
        "entries": {
            entry: {
                **described(entry),
                "laws": sum(result.entry == entry for result in results),
                "passed": sum(result.entry == entry and result.passed for result in results),
            }
            for entry in entries(results)
        },
        "results": [_plain(vars(result)) for result in results],
    }


def write(path: Path, what: Mapping[str, Any]) -> None:
    from llmkd.run import write_json

    write_json(path, what)


def check_writable(path: Path) -> None:
    """ValueError where a file could not be written at the end."""
    if path.is_dir():
        raise ValueError(f"--json: {path} is a folder: name a file")
    if not path.parent.is_dir():
        raise ValueError(f"--json: {path}: the folder {path.parent} does not exist: make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--json: {path} cannot be written: name another file")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shown(value: Any) -> str:
    plain = _plain(value)
    return f"{plain:.9g}" if isinstance(plain, float) else str(plain)


def _plain(value: Any) -> Any:
    """As JSON holds it: what is no number there becomes a word."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, torch.dtype):
        return name_of(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
