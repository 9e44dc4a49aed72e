"""The quickstart over several seeds: is the student really better than its baseline, or was it the seed?

    python -m llmkd.evaluation.demo_study [--seeds 0 1 2] [--output-dir runs/quickstart-study]

Runs ``recipes/quickstart.yaml`` once a seed, resuming what is there, and prints a table of means with the lowest and
the highest of the seeds.  The same table is left in ``table.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from llmkd.trainers.checkpoints import write_whole

Results = dict[str, dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/quickstart.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quickstart-study"))
    parser.add_argument("overrides", nargs="*", help="changes to the recipe, such as train.max_steps=100")
    arguments = parser.parse_intermixed_args(argv)
    runs = []
    for seed in arguments.seeds:
        folder = arguments.output_dir / f"seed-{seed}"
        code = run_seed(arguments.recipe, seed, folder, arguments.overrides)
        if code != 0:
            return code
        runs.append(json.loads((folder / "summary.json").read_text())["results"])
    text = markdown(runs)
    write_whole(arguments.output_dir / "table.md", text)
    print(text)
    return 0


def run_seed(recipe: str, seed: int, folder: Path, overrides: Sequence[str]) -> int:
    command = [sys.executable, "-m", "llmkd.train", recipe, f"run.seed={seed}", f"run.output_dir={folder}"]
    return subprocess.run([*command, "run.resume=auto", *overrides], check=False).returncode


def markdown(runs: Sequence[Results]) -> str:
    """Mean over the seeds, and in brackets the lowest and the highest where they differ."""
    names = list(runs[0])
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for label, read, show in measures(runs[0]):
        cells = [_cell([read(run[name]) for run in runs], show) for name in names]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Mean of {len(runs)} seeds [lowest, highest]."]) + "\n"


def measures(results: Results) -> list[tuple[str, Callable[[dict[str, Any]], float | None], str]]:
    """Rows of the table: label, how to read it from a model's result, and the format."""
    student = results["student"]
    rows: list[tuple[str, Callable[[dict[str, Any]], float | None], str]] = [
        ("parameters", lambda m: m["parameters"], "{:,.0f}")
    ]
    for key, label in (("bits_per_byte", "bits per byte"), ("kl", "forward KL to the teacher"),
                       ("agreement", "top-1 agreement")):  # fmt: skip
        for domain in student["held_out"]:
            rows.append((f"{label}: {domain}", _held_out(domain, key), "{:.3f}"))
    for task, levels in student["tasks"].items():
        for level in levels:
            rows.append((f"{task} level {level}: exact match", _task(task, level), "{:.0%}"))
    rows.append(("tokens seen", lambda m: m.get("tokens"), "{:,.0f}"))
    rows.append(("seconds", lambda m: m.get("seconds"), "{:.0f}"))
    return rows


def _held_out(domain: str, key: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda model: model["held_out"].get(domain, {}).get(key)


def _task(task: str, level: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda model: model["tasks"].get(task, {}).get(level)


def _cell(values: Sequence[float | None], show: str) -> str:
    found = [v for v in values if v is not None]
    if not found:
        return "-"
    text, low, high = (show.format(v) for v in (mean(found), min(found), max(found)))
    return text if low == high else f"{text} [{low}, {high}]"


if __name__ == "__main__":
    sys.exit(main())
