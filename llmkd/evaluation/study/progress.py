"""What is shown while a study runs: on a terminal a bar for each run, elsewhere a line at each start and end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from llmkd.evaluation.study.running import Active, Ended

TAIL_BYTES = 8192


class Shown:
    """Bars, or lines.  total: runs of the study; done: those that had ended before."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"), console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self.all = self.bars.add_task("[bold]runs[/]", total=total, completed=done, left="")
        self.shown: dict[tuple[str, int], TaskID] = {}

    def __enter__(self) -> Shown:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def add(self, runs: int) -> None:
        self.bars.update(self.all, total=(self.bars.tasks[0].total or 0) + runs)

    def tick(self, active: Sequence[Active]) -> None:
        for running in active:
            job = running.job
            key = (job.arm, job.seed)
            if key not in self.shown:
                self.shown[key] = self.bars.add_task(f"{job.arm}, seed {job.seed}", total=job.steps, left="")
                if not self.console.is_terminal:
                    self.console.print(f"{job.arm}, seed {job.seed}: started", highlight=False)
            if self.console.is_terminal:
                step, seconds = last_line(job.folder)
                self.bars.update(self.shown[key], completed=step, left=left_text(step, seconds, job.steps))

    def stopping(self, asked: int) -> None:
        said = (
            "stopping: runs save a checkpoint and end; once more ends them at once" if asked == 1 else "ending at once"
        )
        self.console.print(said, highlight=False)

    def ended(self, end: Ended, stopped: bool) -> None:
        key = (end.job.arm, end.job.seed)
        if key in self.shown:
            self.bars.remove_task(self.shown.pop(key))
        self.bars.advance(self.all, 0 if stopped else 1)
        said = "ended" if end.code == 0 else "stopped" if stopped else f"[red]failed[/] (exit code {end.code})"
        self.console.print(f"{end.job.arm}, seed {end.job.seed}: {said} after {end.seconds:.0f} s", highlight=False)


def last_line(run: Path) -> tuple[int, float]:
    """Step and training seconds of the last whole line of metrics.jsonl, zeros where there is none."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return 0, 0.0
    for line in reversed(lines):
        try:
            found = json.loads(line)
            return int(found["step"]), float(found["seconds"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0, 0.0


def left_text(step: int, seconds: float, steps: int | None) -> str:
    """The training time that is left, at the pace of the steps so far."""
    if step == 0:
        return "starting"
    if steps is None:
        return ""
    if step >= steps:
        return "measuring"
    left = int(seconds / step * (steps - step))
    return f"{left // 60}:{left % 60:02d} left"
