"""Rules of the tasks that a recipe evaluates. Their options are known to the tasks alone (`evaluation/pass_at.py`)."""

import re
from collections.abc import Iterator, Sequence

from llmkd.config.sections import EvalTask
from llmkd.config.values import shown

Problem = tuple[str, str]  # (dotted path, sentence)

# A name becomes part of a study's measures (`tasks.<name>.pass@1`).
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def task_problems(tasks: Sequence[EvalTask]) -> Iterator[Problem]:
    """Every broken rule of ``eval.tasks``, whose single fields are all valid."""
    names: set[str] = set()
    for index, task in enumerate(tasks):
        path = f"eval.tasks.{index}"
        if not _NAME.fullmatch(task.label):
            yield f"{path}.name", f"{shown(task.label)} is not a name: use letters, digits, _ and - only"
        if task.label in names:
            yield f"{path}.name", f"{shown(task.label)} is the name of another entry: give each its own"
        names.add(task.label)
        yield from _difficulty(path, task)
        yield from _samples(f"{path}.k", task)


def _difficulty(path: str, task: EvalTask) -> Iterator[Problem]:
    if task.task == "arithmetic" and task.options is not None:
        yield f"{path}.options", "arithmetic has none: its difficulty is levels, such as [1, 2]; leave options out"
    if task.task != "arithmetic" and task.levels is not None:
        yield f"{path}.levels", f"read by arithmetic only, not by {task.task}: give its difficulty under options"


def _samples(path: str, task: EvalTask) -> Iterator[Problem]:
    if task.k is None:
        return
    if task.by_level:
        yield path, "arithmetic without samples is exact match by level, which has no k: give samples, or leave k out"
        return
    most = max(task.samples, 1)
    for k in task.k:
        if k > most:
            yield path, f"{k} is outside [1, {most}]: give k up to the samples of a problem, or raise samples to {k}"
    if len(set(task.k)) < len(task.k):
        yield path, f"{shown(task.k)} names a k twice: give each once"
