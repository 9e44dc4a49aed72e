"""``llmkd verify [RECIPE]``: prove the losses on this machine, in its precision and on a recipe's own models."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llmkd.checks import batch_laws, engine_laws, estimators, formula_laws, limit_laws, report, sparse_laws
from llmkd.checks.law import Law, Result, Setting, judge

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
DEVICES = ("cpu", "cuda")
WIDTH = 110
"""Of the table where there is no terminal."""
GROUPS: dict[str, tuple[Callable[[Setting], list[Law]], ...]] = {
    formula_laws.GROUP: (formula_laws.laws, limit_laws.laws),
    engine_laws.GROUP: (engine_laws.laws,),
    sparse_laws.GROUP: (sparse_laws.laws,),
    batch_laws.GROUP: (batch_laws.laws,),
    estimators.GROUP: (estimators.laws,),
}
"""What plain ``llmkd verify`` tries, in this order."""


@dataclass(frozen=True)
class Asked:
    """device, dtype: None where it was left open."""

    device: str | None
    dtype: torch.dtype | None
    seed: int


def main(arguments: Namespace) -> int:
    """0 when all laws hold, 1 when one fails, 2 for a mistake in what was asked, 130 when stopped."""
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        print("llmkd verify: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if os.environ.get("LLMKD_TRACEBACK"):
            raise
        print(f"llmkd verify: {error}", file=sys.stderr)
        return 2


def _main(arguments: Namespace) -> int:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    asked = _asked(arguments)
    start = time.monotonic()
    if arguments.recipe is None:
        setting = Setting(asked.device or "cpu", asked.dtype or torch.float64, asked.seed)
        results = run(collect(setting), console)
    else:
        setting, results = _of_recipe(arguments, asked, console)
    seconds = time.monotonic() - start
    console.print(report.table(results, console.width))
    for text in report.failures(results):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(report.verdict(results, setting, seconds), markup=False, highlight=False)
    if arguments.json:
        report.write(Path(arguments.json), report.content(results, setting, seconds, arguments.recipe))
    return 0 if all(result.passed for result in results) else 1


def _of_recipe(arguments: Namespace, asked: Asked, console: Console) -> tuple[Setting, list[Result]]:
    """The laws of the terms that it uses, and then those of the terms on its models and rows."""
    from llmkd.checks.recipe import Subject, kinds, opened

    if console.is_terminal:
        console.print("loading the recipe, its models and rows", style="dim")
    with opened(arguments.recipe, arguments.overrides, asked.device) as job:
        subject = Subject(job, asked.dtype)
        # Made-up cases are harder than models: powers below 0 have gradients that float16 cannot hold.
        dtype = torch.float32 if subject.dtype == torch.float16 else subject.dtype
        setting = Setting(subject.setting.device, dtype, asked.seed)
        return setting, run([*collect(setting, entries=kinds(job)), *subject.laws()], console)


def _asked(arguments: Namespace) -> Asked:
    """What the command line says, or ValueError."""
    device, dtype, seed = arguments.device, arguments.dtype, arguments.seed
    if device not in (None, *DEVICES):
        raise ValueError(f"--device: {device} is none of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: cuda: torch finds no CUDA device here: leave it out to try the laws on the CPU")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"--dtype: {dtype} is none of {', '.join(DTYPES)}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed: {seed} is outside [0, 2^32)")
    if arguments.json:
        report.check_writable(Path(arguments.json))
    return Asked(device, None if dtype is None else DTYPES[dtype], seed)


def collect(
    setting: Setting, groups: Collection[str] | None = None, entries: Collection[str] | None = None
) -> list[Law]:
    """The laws of some groups and entries; None: of all."""
    laws = [law for name, makers in GROUPS.items() if groups is None or name in groups for make in makers
            for law in make(setting)]  # fmt: skip
    return [law for law in laws if entries is None or law.entry in entries]


def run(laws: Sequence[Law], console: Console | None = None) -> list[Result]:
    """Judge them all, with a bar on a terminal."""
    threads = torch.get_num_threads()
    results = []
    try:
        for law in _shown(laws, console):
            # Of small tensors two threads make less than one: they wait for each other.
            torch.set_num_threads(1 if law.group in GROUPS else threads)
            results.append(judge(law))
    finally:
        torch.set_num_threads(threads)
    return results


def _shown(laws: Sequence[Law], console: Console | None) -> Iterator[Law]:
    if console is None or not console.is_terminal:
        yield from laws
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(laws))
        for law in laws:
            progress.update(task, description=f"{law.entry}: {law.name}"[:46].ljust(46))
            yield law
            progress.advance(task)
