"""Runs many commands, some at once, and stops them all when asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkd.evaluation.study import shepherd

TICK_SECONDS = 0.2
LAST_LINES = 12
NO_BARS = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}  # a log has no use for them


@dataclass(frozen=True)
class Slot:
    """A place where one run at a time runs.  gpu: what it sees of them, None for all; threads: of each process."""

    threads: int
    gpu: str | None = None

    def environment(self) -> dict[str, str]:
        found = {"OMP_NUM_THREADS": str(self.threads)}
        return found if self.gpu is None else {**found, "CUDA_VISIBLE_DEVICES": self.gpu}


@dataclass(frozen=True)
class Job:
    """One run: its commands, one after the other.  folder: its run folder; steps: how many it will take."""

    arm: str
    seed: int
    commands: Sequence[Sequence[str]]
    folder: Path
    steps: int | None = None

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")


@dataclass
class Active:
    """A job that is running.  left: its commands that are still to come; log_start: where this attempt's log begins."""

    job: Job
    slot: Slot
    process: subprocess.Popen[bytes]
    pipe: int
    left: list[Sequence[str]]
    log_start: int
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Ended:
    """code: the exit code of the last command; last_lines: the end of what it said, where the code is not 0."""

    job: Job
    code: int
    seconds: float
    last_lines: str = ""


def slots(jobs: int | None, gpus: Sequence[str]) -> list[Slot]:
    """One a GPU, or ``jobs`` that share the machine's threads (``OMP_NUM_THREADS``, else its cores)."""
    count = jobs or len(gpus) or 1
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, (int(given) if given.isdigit() and int(given) else cores) // count)
    return [Slot(threads, gpus[i % len(gpus)] if gpus else None) for i in range(count)]


class Stop:
    """How often a Ctrl-C or a SIGTERM has come."""

    def __init__(self) -> None:
        self.asked = 0

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        def ask(number: int, frame: Any) -> None:
            self.asked += 1

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_all(
    jobs: Sequence[Job], places: Sequence[Slot], stop: Stop, lock: int, ended: Callable[[Ended], None],
    tick: Callable[[Sequence[Active]], None], stopping: Callable[[], None] = lambda: None,
) -> bool:  # fmt: skip
    """Run all jobs; a failed one is told to ``ended`` like any other.  False if a stop was asked for before the end.

    lock: a file descriptor that every run keeps open, so that the study's lock is held until the last has ended.
    stopping: called at each Ctrl-C.
    """
    waiting, free = list(jobs), list(places)
    active: list[Active] = []
    said = 0
    while (waiting and not stop.asked) or active:
        while waiting and free and not stop.asked:
            job, slot = waiting.pop(0), free.pop(0)
            active.append(_begin(job, slot, list(job.commands), lock))
        if stop.asked > said:
            said = stop.asked
            stopping()
            for running in active:
                with suppress(BrokenPipeError):  # it has just ended
                    os.write(running.pipe, shepherd.STOP if said == 1 else shepherd.KILL)
        for running in [a for a in active if a.process.poll() is not None]:
            active.remove(running)
            following = _after(running, lock, stop)
            if isinstance(following, Active):
                active.append(following)
                continue
            free.append(running.slot)
            free.sort(key=places.index)
            ended(following)
        tick(active)
        if active:
            time.sleep(TICK_SECONDS)
    return not waiting and not stop.asked


def _begin(job: Job, slot: Slot, commands: list[Sequence[str]], lock: int, log_start: int | None = None) -> Active:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    environment = {**os.environ, **slot.environment(), **NO_BARS, "PYTHONUNBUFFERED": "1", "PATH": _path()}
    words = [sys.executable, shepherd.__file__, str(reading), *commands[0]]
    with job.log.open("ab") as log:
        start = log.tell() if log_start is None else log_start
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            pass_fds=(reading, lock),
        )  # fmt: skip
    os.close(reading)
    return Active(job, slot, process, writing, commands[1:], start)


def _after(running: Active, lock: int, stop: Stop) -> Active | Ended:
    """The next command of a job whose last one went well, or how the job ended."""
    os.close(running.pipe)
    code = running.process.returncode
    if code == 0 and running.left and not stop.asked:
        following = _begin(running.job, running.slot, running.left, lock, running.log_start)
        following.started = running.started
        return following
    seconds = time.monotonic() - running.started
    return Ended(running.job, code, seconds, "" if code == 0 else last_lines(running.job.log, running.log_start))


def last_lines(log: Path, start: int) -> str:
    """The end of a log; of a bar that is drawn again and again, its last state."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.rstrip().split("\n")]
    return "\n".join(lines[-LAST_LINES:])


def _path() -> str:
    """The programs of this Python's environment first, whether it is activated or not."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
