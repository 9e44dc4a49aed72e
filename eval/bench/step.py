"""A training step beside TRL's, phase by phase: ``python eval/bench/step.py [--arm ...] [--rounds ...]``.

Every trainer has a process of its own and rounds go through them in turn, so that what drifts in the machine drifts for
all.  None is timed before its first steps were held against the peer that does the same: the same completions from the
same seed, the same losses and norms of the gradient.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
import step_goals
from loss import chosen, save
from step_arms import ARMS, HEAD_DIM, Case
from step_measure import PHASES
from targets import Row
from workers import Process

TOLERANCES = {"float32": 1e-5, "bfloat16": 5e-2}
"""Relative, of loss and norm of the gradient: TRL adds up the rows of on-policy distillation in another order."""
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
NUMBERS = ("vocabulary", "prompt", "completion", "prompts", "group", "rounds", "threads")


def timed(options: argparse.Namespace, scratch: Path, say: Callable[[str], None]) -> list[Row]:
    """A row for every arm: its first steps against its peer's, then rounds in turn."""
    case: Case = options.case
    with ExitStack() as stack:
        workers: dict[str, Process] = {}
        for arm in options.arm:
            say(f"{arm}: first steps")
            job = {"arm": arm, "case": case.as_json(), "threads": options.threads, "rounds": options.rounds}
            made = Process("step_measure.py", job, name=arm, threads=options.threads, scratch=scratch)
            workers[arm] = stack.enter_context(made)
            workers[arm].answer()
        rows = checked(workers, options.tolerance, case)
        ready = [arm for arm in options.arm if rows[arm]["status"] == "ok"]
        for number in range(options.rounds):
            for arm in list(ready):
                say(f"{arm}: round {number + 1} of {options.rounds}")
                if not workers[arm].round():
                    ready.remove(arm)
                    rows[arm] |= workers[arm].answers[-1]
    for arm, row in rows.items():
        row["rounds"] = [answer for answer in workers[arm].answers if "seconds" in answer]
        if row["status"] == "ok" and row["rounds"]:
            row |= step_goals.summary(row["rounds"])
    return list(rows.values())


def checked(workers: dict[str, Process], tolerance: float, case: Case) -> dict[str, Row]:
    """What the first steps said, by arm; ``refused`` where they are not those of the peer."""
    first = {arm: worker.answers[0] for arm, worker in workers.items()}
    right = {arm: answer for arm, answer in first.items() if answer["status"] == "ok"}
    rows: dict[str, Row] = {}
    for arm, answer in first.items():
        rows[arm] = {"implementation": arm, **case.as_json(), **answer, "tolerance": tolerance, "errors": {}}
        if arm not in right:
            continue
        rows[arm]["errors"], why = step_goals.refusal(arm, right, tolerance)
        if answer["lengths"] != [case.completion]:
            why = f"its completions have {answer['lengths']} tokens, not {case.completion}"
        if why is not None:
            rows[arm] |= {"status": "refused", "message": why}
    return rows


def run(options: argparse.Namespace) -> dict[str, Any]:
    case: Case = options.case
    document: dict[str, Any] = {
        "versions": report.versions(),
        "machine": report.machine(case.device, options.threads),
        "options": {"rounds": options.rounds, "threads": options.threads, "case": case.as_json()},
    }
    steps = len(options.arm) * (1 + options.rounds)
    with tempfile.TemporaryDirectory(prefix="llmkd-bench-") as folder, report.progress(steps) as say:
        rows = timed(options, Path(folder), say)
    document["machine_after"] = report.machine(case.device, options.threads)
    document["rows"] = step_goals.with_ratios(rows)
    document["targets"] = [target.as_json() for target in step_goals.evaluate(rows)]
    save(document, options.out)
    return document


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time of a training step beside TRL's, by phase.")
    case = Case()
    parser.add_argument("--arm", default=",".join(ARMS), help="some of %(default)s")
    for side in ("student", "teacher"):
        value = ",".join(map(str, getattr(case, side)))
        parser.add_argument(f"--{side}", default=value, metavar="WIDTH,LAYERS", help="of its Llama (%(default)s)")
    for name in ("vocabulary", "prompt", "completion", "prompts", "group"):
        parser.add_argument(f"--{name}", type=int, default=getattr(case, name), help="%(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=list(DTYPES), default="cpu")
    parser.add_argument("--dtype", choices=list(TOLERANCES), help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--tolerance", type=float, help="relative error above which nothing is timed")
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
    options.arm = chosen("--arm", options.arm, ARMS)
    for name in NUMBERS:
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: {getattr(options, name)} is not above 0")
    if options.group < 2:
        raise ValueError(f"--group: {options.group}, but an advantage is the difference to others of a group: give 2")
    if options.vocabulary < 16:
        raise ValueError(f"--vocabulary: {options.vocabulary} is too small: give 16 or more")
    dtype = options.dtype or DTYPES[options.device]
    options.tolerance = TOLERANCES[dtype] if options.tolerance is None else options.tolerance
    names = ("vocabulary", "prompt", "completion", "prompts", "group", "device", "seed")
    options.case = replace(Case(dtype=dtype), **{name: getattr(options, name) for name in names})
    for side in ("student", "teacher"):
        options.case = replace(options.case, **{side: size(f"--{side}", getattr(options, side))})
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise ValueError(f"--out: there is no folder {options.out.absolute().parent}")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device: torch sees no CUDA device here")


def size(option: str, text: str) -> tuple[int, int]:
    try:
        width, layers = map(int, text.split(","))
    except ValueError:
        raise ValueError(f"{option}: {text!r} is no size: give WIDTH,LAYERS") from None
    if width < HEAD_DIM or width % HEAD_DIM or layers < 1:
        raise ValueError(f"{option}: {text!r}: give a width that is a multiple of {HEAD_DIM}, and 1 layer or more")
    return width, layers


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    document = run(parse(arguments))
    print(report.markdown(*step_goals.table(document["rows"], PHASES)))
    for row in document["rows"]:
        if row["status"] != "ok":
            print(f"{row['implementation']}: {row['status']}: {row['message']}")
    print()
    print(report.targets_table(step_goals.evaluate(document["rows"])))
    return document


if __name__ == "__main__":
    main()
