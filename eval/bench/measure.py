"""One implementation, one case, one process: ``python measure.py JOB``, started by ``loss.py``.

The first line that comes back says whether the implementation is right, and its errors; only then it answers each line
``round`` with the seconds and the peak memory of a round.  Lines are JSON objects.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import torch

import reference
from implementations import IMPLEMENTATIONS, Implementation
from inputs import Case, Inputs, Shape, make_inputs

WARM_UPS = {"cpu": 1, "cuda": 10}
COMPILED_WARM_UPS = {"cpu": 3, "cuda": 10}
L2_BYTES = 2**28
"""What is written between two runs on a GPU: more than any second-level cache holds."""
TINY = Shape(8, 64, 4, 8)

Step = Callable[[], Any]


class Memory:
    """Peak over what was there when this was made: bytes of the process's memory on a CPU, of tensors on a GPU.

    On a CPU the kernel's high-water mark is set back before each look.  Where that is not allowed there is one look
    alone, at the first call, through the highest mark of the process's whole life.  Pages of files (libraries) are left
    out: they come and go as the machine needs them.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.may_reset = not self.cuda and _reset_high_water()
        self.spent = False
        _release(self.cuda)
        self.base = torch.cuda.memory_allocated() if self.cuda else _status("RssAnon")

    @property
    def method(self) -> str:
        if self.cuda:
            return "max_memory_allocated"
        return "VmHWM" if self.may_reset else "ru_maxrss of the first call"

    def start(self) -> None:
        _release(self.cuda)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        elif self.may_reset:
            _reset_high_water()

    def peak(self) -> int | None:
        if self.cuda:
            return torch.cuda.max_memory_allocated() - self.base
        if self.may_reset:
            return _status("VmHWM") - _status("RssFile") - self.base
        known, self.spent = not self.spent, True
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return highest - _status("RssFile") - self.base if known else None


def _release(cuda: bool) -> None:
    """Give back what is free, so that neither a base nor another process's share of the machine holds it."""
    gc.collect()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def cpu_seconds(children: bool = False) -> float:
    """Of all threads of this process; with those of finished compilers and the like."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + (used.ru_utime + used.ru_stime if children else 0.0)


def timed_on_cpu(step: Step) -> list[float]:
    """After a step that is not timed: a machine takes back what lies idle while others have their round, and the first
    to ask for it again would pay for that (0.3 s of a virtual machine's 2.3 s)."""
    step()
    start = cpu_seconds()
    step()
    return [cpu_seconds() - start]


def timed_on_cuda(step: Step, runs: int, scratch: torch.Tensor) -> list[float]:
    """Seconds between two events around each run, with the second-level cache emptied before it."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
    for _ in range(2):  # clocks may have fallen while others had their round
        step()
    for start, stop in events:
        scratch.zero_()
        start.record()
        step()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) / 1000 for start, stop in events]


class Worker:
    """job: ``implementation``, ``case``, ``threads``; ``reference``: the file with the truth; ``tolerance``; ``runs``
    of a round on a GPU; ``memory_only``: neither check nor timing.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.case = job, Case.from_json(job["case"])
        self.implementation: Implementation = IMPLEMENTATIONS[job["implementation"]]
        torch.set_num_threads(job["threads"])
        if self.implementation.module is not None:
            importlib.import_module(self.implementation.module)
        if not self.implementation.compiled:  # loads what the first call of anything loads
            tiny = Case(TINY, self.case.divergence, self.case.device, self.case.dtype)
            self.implementation.step(make_inputs(tiny), self.case.divergence)
        self.inputs: Inputs = make_inputs(self.case)
        size = L2_BYTES if self.case.device == "cuda" else 0
        self.scratch = torch.empty(size, dtype=torch.int8, device=self.case.device)
        self.memory = Memory(self.case.device)

    def step(self) -> Any:
        self.inputs.clear_gradients()
        return self.implementation.step(self.inputs, self.case.divergence)

    def first(self) -> dict[str, Any]:
        """The first call, held against the truth."""
        self.memory.start()
        start, wall = cpu_seconds(children=True), time.perf_counter()
        found = self.step()
        if self.memory.cuda:
            torch.cuda.synchronize()
        answer = {
            "first_cpu_seconds": cpu_seconds(children=True) - start,
            "first_wall_seconds": time.perf_counter() - wall,
            "first_peak_bytes": self.memory.peak(),
            "memory_method": self.memory.method,
        }
        if self.job.get("memory_only"):
            return answer | {"status": "ok"}
        errors = reference.relative_errors(found, self._truth())
        why = reference.refusal(errors, self.job["tolerance"])
        answer |= {"errors": errors, "tolerance": self.job["tolerance"]}
        return answer | ({"status": "ok"} if why is None else {"status": "refused", "message": why})

    def _truth(self) -> dict[str, torch.Tensor]:
        if self.job["implementation"] == "gemm4":
            kept = self.inputs.kept
            return reference.products(self.inputs, None if kept["stand_in"] is None else kept["group"])
        truth = torch.load(self.job["reference"], map_location=self.case.device)
        assert list(truth) == ["loss", "hidden", "head"]
        return truth

    def warm_up(self) -> None:
        compiled = self.implementation.compiled
        for _ in range((COMPILED_WARM_UPS if compiled else WARM_UPS)[self.case.device] - 1):
            self.step()
        self.inputs.clear_gradients()
        if compiled:  # what the compiler left behind is not the loss's
            self.memory = Memory(self.case.device)
            self.memory.spent = True

    def round(self) -> dict[str, Any]:
        self.inputs.clear_gradients()
        self.memory.start()
        if self.memory.cuda:
            seconds = timed_on_cuda(self.step, self.job["runs"], self.scratch)
        else:
            seconds = timed_on_cpu(self.step)
        answer = {"seconds": seconds, "peak_bytes": self.memory.peak()}
        self.inputs.clear_gradients()
        _release(self.memory.cuda)
        return answer


def serve(job: dict[str, Any], commands: Iterable[str], answers: TextIO) -> None:
    """Answer the commands.  An implementation that is wrong, or runs out of memory, says so and is not timed."""

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        worker = Worker(job)
        first = worker.first()
        if first["status"] == "ok" and not job.get("memory_only"):
            worker.warm_up()
        say(first)
        if first["status"] != "ok" or job.get("memory_only"):
            return
        for command in commands:
            assert command.strip() == "round", command
            say(worker.round())
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        say({"status": "out of memory", "message": str(error).splitlines()[0]})


def _is_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def main() -> None:
    # Libraries may print: what they say goes where errors go, and the answers stay alone on their line.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(json.loads(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    main()
