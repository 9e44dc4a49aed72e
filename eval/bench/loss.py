"""The loss head beside its floor and its peers: ``python eval/bench/loss.py [--impl ...] [--div ...] [--shape ...]``.

Every implementation has a process of its own in every case; rounds go through them in turn, so that what drifts in
the machine drifts for all.  None is timed before its loss and gradients were held against float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import report
from implementations import IMPLEMENTATIONS, KNOBS
from inputs import Case, Shape
from targets import Row, evaluate, with_ratios
from workers import HERE, Process, environment

SHAPES = {
    "cpu": [Shape(2048, 32000, 256, 512), Shape(1024, 151936, 256, 512)],
    "cuda": [Shape(n, 151936, width, 4096) for width in (1024, 2048) for n in (8192, 32768)],
}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}
"""Relative, of loss and gradients.  The divergence of two strangers is ill-conditioned: in float32 every implementation
of jsd is off by 1e-4 there."""
GPU_RUNS = 30


class Worker(Process):
    """A process of ``measure.py``."""

    def __init__(self, name: str, case: Case, scratch: Path, options: argparse.Namespace, **job: Any) -> None:
        self.case = case
        runs = -(-GPU_RUNS // options.rounds)
        job |= {"implementation": name, "case": case.as_json(), "threads": options.threads, "runs": runs}
        job |= {"tolerance": TOLERANCES[case.dtype] if options.tolerance is None else options.tolerance}
        super().__init__("measure.py", job, name=name, threads=options.threads, scratch=scratch)

    def row(self, kind: str = "timing") -> Row:
        """Everything that was answered, as one row."""
        status = next((a for a in self.answers if a.get("status", "ok") != "ok"), {"status": "ok"})
        rounds = [a for a in self.answers if "seconds" in a]
        row = named(self.name, self.case, kind) | self.answers[0] | status | {"rounds": rounds}
        if row["status"] == "ok" and rounds:
            row |= summary(row, compiled=IMPLEMENTATIONS[self.name].compiled)
        return row


def named(name: str, case: Case, kind: str) -> Row:
    return {"kind": kind, "implementation": name, **case.as_json()}


def summary(row: Row, compiled: bool) -> Row:
    """Medians over all runs.  Compiling is what the first call took beyond that."""
    seconds = [s for r in row["rounds"] for s in r["seconds"]]
    peaks = [r["peak_bytes"] for r in row["rounds"] if r["peak_bytes"] is not None]
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    median = statistics.median(seconds)
    peak = int(statistics.median(peaks)) if peaks else None if compiled else row["first_peak_bytes"]
    found = {"seconds": median, "iqr": quartiles[2] - quartiles[0], "peak_bytes": peak}
    return found | ({"compile_seconds": max(0.0, row["first_cpu_seconds"] - median)} if compiled else {})


def timed(case: Case, names: Sequence[str], options: argparse.Namespace, scratch: Path, say: Callable) -> list[Row]:
    """The rows of one case: the truth, every implementation against it one by one, then rounds in turn."""
    missing = {name: missing_package(name) for name in names}
    rows = [
        named(name, case, "timing") | {"status": "not installed", "message": f"{package} is not installed"}
        for name, package in missing.items()
        if package is not None
    ]
    present, truth = [name for name in names if missing[name] is None], scratch / "truth.pt"
    with ExitStack() as stack:
        workers, ready = [], []
        if set(present) - {"gemm4"}:
            say(f"{case.shape} {case.divergence}: float64 reference")
            make_truth(case, truth, options, scratch)
        for name in present:
            say(f"{case.shape} {case.divergence}: {name}: check")
            worker = stack.enter_context(Worker(name, case, scratch, options, reference=str(truth)))
            workers.append(worker)
            ready += [worker] if worker.answer() else []
        truth.unlink(missing_ok=True)
        for number in range(options.rounds):
            for worker in list(ready):
                say(f"{case.shape} {case.divergence}: {worker.name}: round {number + 1} of {options.rounds}")
                if not worker.round():
                    ready.remove(worker)
        rows += [worker.row() for worker in workers]
    return sorted(rows, key=lambda row: names.index(row["implementation"]))


def missing_package(name: str) -> str | None:
    package = IMPLEMENTATIONS[name].package
    return package if package is not None and find_spec(package) is None else None


def make_truth(case: Case, path: Path, options: argparse.Namespace, scratch: Path) -> None:
    command = [sys.executable, HERE / "reference.py", json.dumps(case.as_json()), path]
    done = subprocess.run(command, env=environment(options.threads, scratch), stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the float64 reference of {case} failed with {done.returncode}:\n{done.stderr}")


def memory_rows(case: Case, name: str, options: argparse.Namespace, scratch: Path, say: Callable) -> list[Row]:
    """Peak memory at N and at 4N, and what of it is not the gradient to the hidden states: the one kept from the
    forward pass and the one that the backward pass returns."""
    rows = []
    for tokens in (case.shape.tokens, 4 * case.shape.tokens):
        wide = Case(case.shape._replace(tokens=tokens), case.divergence, case.device, case.dtype, case.near, case.seed)
        say(f"{wide.shape} {wide.divergence}: {name}: memory")
        with Worker(name, wide, scratch, options, memory_only=True) as worker:
            worker.answer()
            row = worker.row("memory")
        if row["status"] == "ok":
            gradients = 2 * tokens * wide.shape.student * (4 if wide.dtype == "float32" else 2)
            row |= {"peak_bytes": row["first_peak_bytes"], "beyond_bytes": row["first_peak_bytes"] - gradients}
        rows.append(row)
    return rows


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All cases; what is there is written after each."""
    document: dict[str, Any] = {
        "versions": report.versions(),
        "machine": report.machine(options.device, options.threads),
        "options": {name: value for name, value in vars(options).items() if name != "out"},
    }
    cases = [
        (case, [n for n in options.impl if case.divergence in IMPLEMENTATIONS[n].divergences])
        for case in (
            Case(shape, divergence, options.device, options.dtype, options.near, options.seed)
            for shape in options.shape
            for divergence in options.div
        )
    ]
    rows: list[Row] = []
    flat = [case for case, _ in cases if case.divergence == options.div[0]] if options.flat else []
    steps = sum(1 + len(names) * (1 + options.rounds) for _, names in cases) + 2 * len(flat)
    with tempfile.TemporaryDirectory(prefix="llmkd-bench-") as folder, report.progress(steps) as say:
        for case, names in cases:
            rows += timed(case, names, options, Path(folder), say)
            save(document | results(rows), options.out)
        for case in flat:
            rows += memory_rows(case, "llmkd", options, Path(folder), say)
    document |= {"machine_after": report.machine(options.device, options.threads)} | results(rows)
    save(document, options.out)
    return document


def results(rows: Sequence[Row]) -> dict[str, Any]:
    return {"rows": with_ratios(rows), "targets": [target.as_json() for target in evaluate(rows)]}


def save(document: dict[str, Any], out: Path | None) -> None:
    if out is None:
        return
    whole = out.with_name(out.name + ".part")
    whole.write_text(json.dumps(document, indent=1) + "\n")
    whole.replace(out)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and memory of the loss head beside its floor and its peers.")
    parser.add_argument("--impl", default=",".join(IMPLEMENTATIONS), help="some of %(default)s")
    parser.add_argument("--div", default=",".join(KNOBS), help="some of %(default)s")
    parser.add_argument("--shape", action="append", help="N,V,Hs,Ht; may be given again")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=list(SHAPES), default="cpu")
    parser.add_argument("--dtype", choices=list(TOLERANCES), help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--near", type=float, metavar="EPS", help="a teacher this close to the student, such as 0.03")
    parser.add_argument("--tolerance", type=float, help="relative error above which nothing is timed")
    parser.add_argument("--flat", action=argparse.BooleanOptionalAction, help="memory of llmkd at N and 4N as well")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write all of it as JSON")
    options = parser.parse_args(arguments)
    try:
        settle(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def settle(options: argparse.Namespace) -> None:
    """Texts to values, defaults filled in.  Raises ValueError for what cannot be run."""
    options.impl = chosen("--impl", options.impl, IMPLEMENTATIONS)
    options.div = chosen("--div", options.div, KNOBS)
    options.shape = [Shape.parse(text) for text in options.shape] if options.shape else SHAPES[options.device]
    options.dtype = options.dtype or DTYPES[options.device]
    options.flat = "llmkd" in options.impl if options.flat is None else options.flat
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: {getattr(options, name)} is not above 0")
    for shape in options.shape:
        if options.near is not None and shape.teacher <= shape.student:
            raise ValueError(f"--near: needs Ht > Hs, but the shape is {shape}: the rest of the teacher is the noise")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise ValueError(f"--out: there is no folder {options.out.absolute().parent}")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device: torch sees no CUDA device here")


def chosen(option: str, text: str, known: Any) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: there is no {name}: one or more of {', '.join(known)}")
    if not names:
        raise ValueError(f"{option}: is empty: one or more of {', '.join(known)}")
    return list(dict.fromkeys(names))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(arguments)
    document = run(options)
    print(report.results_table(document["rows"]))
    print()
    print(report.targets_table(evaluate(document["rows"])))
    return document


if __name__ == "__main__":
    main()
