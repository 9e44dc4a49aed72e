"""What surrounds the numbers: versions, machine, the tables, progress."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from targets import Row, Target

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("torch", "triton", "transformers", "trl", "liger_kernel")
MB = 1e6


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    commit = _said("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "--", "llmkd")
    return found | {"llmkd": commit and commit + ("+changed" if changed else "")}


def machine(device: str, threads: int) -> dict[str, Any]:
    """The processor, and of a GPU its name, clocks and driver as they are now."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    found: dict[str, Any] = {
        "cpu": models[0] if models else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "load": list(os.getloadavg()),
    }
    if device == "cuda":
        asked = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
        said = _said("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader")
        found["gpu"] = None if said is None else dict(zip(asked.split(","), said.split(", "), strict=False))
    return found


def _said(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def results_table(rows: Sequence[Row]) -> str:
    """One line a row: seconds, ratios, memory, error; or why there are none."""
    header = ["shape", "divergence", "implementation", "seconds", "IQR", "/ gemm4", "/ llmkd", "peak MB", "/ llmkd",
              "gradient error", "compile s"]  # fmt: skip
    lines = []
    for row in rows:
        if row["kind"] != "timing":
            continue
        ratios, errors = row["ratios"], row.get("errors")
        error = max(errors["hidden"], errors["head"]) if errors else None
        lines.append([
            _shape(row), row["divergence"], row["implementation"],
            _number(row.get("seconds"), 4), _number(row.get("iqr"), 2), _number(ratios["seconds/gemm4"], 3),
            _number(ratios["seconds/llmkd"], 3), _number(row.get("peak_bytes"), 4, MB),
            _number(ratios["peak/llmkd"], 3), _number(error, 2), _number(row.get("compile_seconds"), 2),
        ])  # fmt: skip
        if row["status"] != "ok":
            lines[-1][3] = row["status"]
    notes = [
        f"{row['implementation']}, {row['divergence']}, {_shape(row)}: {row['status']}: {row['message']}"
        for row in rows
        if row["status"] != "ok" and row.get("message")
    ]
    return "\n".join([markdown(header, lines), *notes])


def targets_table(targets: Sequence[Target]) -> str:
    said = {True: "yes", False: "NO", None: "not measured"}
    lines = []
    for target in targets:
        row = target.as_json()
        lines.append([row["where"], row["what"], row["goal"], _number(row["found"], 3), said[row["reached"]]])
    return markdown(["case", "target", "goal", "found", "reached"], lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table that reads well as text too."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def joined(line: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([joined(header), rule, *map(joined, lines)])


def _shape(row: Row) -> str:
    return ",".join(map(str, row["shape"]))


def _number(value: float | None, digits: int, unit: float = 1.0) -> str:
    return "-" if value is None else f"{value / unit:.{digits}g}"


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr; the function that is given says what is done next.  A line each where there is no terminal, or
    no rich."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        steps = count(1)
        yield lambda text: print(f"{next(steps)}/{total} {text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (MofNCompleteColumn(), BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        started = False

        def advance(text: str) -> None:
            nonlocal started
            bar.update(task, description=text, advance=int(started))
            started = True

        yield advance
        bar.update(task, completed=total)
