"""The tasks by name, and their problems as rows of a data set."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

TASKS = ("arithmetic", "countdown", "knights_and_knaves", "zebra", "programs")
SPLITS = ("train", "heldout")
SEED = 0
WANTED = {bool: "true or false", int: "a whole number", str: "text", list: "a list"}


def rows(task: str | None, n: int, split: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the first n problems of a task and split as {"prompt", "completion", "answer", "task"}.

    prompt and completion are lists of one message: the question, and the worked solution. `answer` is what the grader
    of the task's name reads. `options` are the task's knobs of difficulty and `seed` (default 0).
    Raises ValueError that names what is unknown, of another type or out of range, and what is allowed.
    """
    if task not in TASKS:
        raise ValueError(f"name: there is no task {task!r}; {_advice(task, TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"split: {task} has no split {split!r}; it has {' and '.join(SPLITS)}")
    _check(task, options)
    seed, difficulty = options.get("seed", SEED), {name: given for name, given in options.items() if name != "seed"}
    problems = importlib.import_module(f"llmkd.data.tasks.{task}").problems
    if task == "arithmetic":
        found = problems(seed, n, difficulty.get("levels", [1, 2, 3, 4]), split)
    else:
        found = problems(seed, n, split, **difficulty)
    return [_row(task, problem) for problem in found]


def knobs(task: str) -> dict[str, Any]:
    """The options that a task takes, each with its default: a list where it is a sequence."""
    if task == "arithmetic":
        return {"seed": SEED, "levels": [1, 2, 3, 4]}
    parameters = inspect.signature(importlib.import_module(f"llmkd.data.tasks.{task}").problem).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return {"seed": SEED} | {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _check(task: str, options: Mapping[str, Any]) -> None:
    """Names and types; the ranges are the task's own to know."""
    allowed = knobs(task)
    for name, given in options.items():
        if name not in allowed:
            raise ValueError(f"options: {task} has no option {name!r}; {_advice(name, allowed)}")
        wanted = type(allowed[name])
        if type(given) is not wanted:
            raise ValueError(f"options.{name}: {given!r:.60} is not {WANTED[wanted]}; the default is {allowed[name]!r}")
        wrong = [entry for entry in given if type(entry) is not type(allowed[name][0])] if wanted is list else []
        if wrong:
            raise ValueError(f"options.{name}: {wrong[0]!r:.60} cannot be in it; the default is {allowed[name]!r}")


def _advice(given: str | None, allowed: Iterable[str]) -> str:
    names = list(allowed)
    near = difflib.get_close_matches(str(given), names, n=2)
    start = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{start}allowed are {', '.join(names)}"


def _row(task: str, problem: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": problem["question"]}],
        "completion": [{"role": "assistant", "content": problem["solution"]}],
        "answer": problem["answer"],
        "task": task,
    }
