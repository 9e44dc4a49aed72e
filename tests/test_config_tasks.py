"""What a recipe may say of the tasks that it evaluates."""

from typing import Any, get_args

import pytest

from llmkd.config import EvalTask, from_dict
from llmkd.config.rules_of_tasks import task_problems
from llmkd.data.tasks.table import TASKS

from config_recipe import FIELDS, changed, only_problem

COUNTDOWN = {"task": "countdown"}


def said(*tasks: dict[str, Any]) -> list[str]:
    """Every broken rule of a list of tasks, a line each."""
    return [f"{path}: {sentence}" for path, sentence in task_problems([EvalTask(**task) for task in tasks])]


@pytest.mark.parametrize("tasks", [
    [], [COUNTDOWN], [{"task": "arithmetic", "levels": [1]}], [{"task": task} for task in TASKS],
    [{**COUNTDOWN, "k": [1]}], [{**COUNTDOWN, "samples": 8, "k": [1, 8]}],
    [COUNTDOWN, {**COUNTDOWN, "name": "hard-6", "options": {"numbers": 6}}],
    [{"task": "arithmetic"}, {"task": "arithmetic", "name": "drawn", "samples": 4, "k": [4], "levels": [2]}],
])  # fmt: skip
def test_tasks_that_are_fine(tasks: list[dict[str, Any]]) -> None:
    assert said(*tasks) == []


@pytest.mark.parametrize("tasks, problem", [
    ([COUNTDOWN, {"task": "zebra"}, COUNTDOWN],
     "eval.tasks.2.name: 'countdown' is the name of another entry: give each its own"),
    ([{"task": "zebra", "name": "countdown"}, COUNTDOWN],
     "eval.tasks.1.name: 'countdown' is the name of another entry: give each its own"),
    ([{**COUNTDOWN, "name": "of 3.5"}],
     "eval.tasks.0.name: 'of 3.5' is not a name: use letters, digits, _ and - only"),
    ([{**COUNTDOWN, "levels": [1]}],
     "eval.tasks.0.levels: read by arithmetic only, not by countdown: give its difficulty under options"),
    ([{"task": "arithmetic", "options": {"levels": [1]}}],
     "eval.tasks.0.options: arithmetic has none: its difficulty is levels, such as [1, 2]; leave options out"),
    ([{**COUNTDOWN, "samples": 4, "k": [1, 5]}],
     "eval.tasks.0.k: 5 is outside [1, 4]: give k up to the samples of a problem, or raise samples to 5"),
    ([{**COUNTDOWN, "k": [2]}],
     "eval.tasks.0.k: 2 is outside [1, 1]: give k up to the samples of a problem, or raise samples to 2"),
    ([{**COUNTDOWN, "samples": 4, "k": [2, 2]}], "eval.tasks.0.k: [2, 2] names a k twice: give each once"),
    ([{"task": "arithmetic", "k": [1]}], "eval.tasks.0.k: arithmetic without samples is exact match by level, which "
     "has no k: give samples, or leave k out"),
])  # fmt: skip
def test_what_is_refused(tasks: list[dict[str, Any]], problem: str) -> None:
    assert said(*tasks) == [problem]


@pytest.mark.parametrize("path, value, sentence", [
    ("eval.tasks.0.task", "count_down", "did you mean countdown?"),
    ("eval.tasks.0.samples", -1, "-1 is outside [0, inf)"),
    ("eval.tasks.0.k", [0], "0 is outside [1, inf)"),
    ("eval.tasks.0.k", [], "is empty: give the k of pass@k"),
    ("eval.tasks.0.options", [3], "[3] is not a mapping: give a mapping"),
    ("eval.tasks.0.k", [1], "arithmetic without samples"),
])  # fmt: skip
def test_recipe_says_the_place(path: str, value: Any, sentence: str) -> None:
    line = only_problem(path, value)
    assert line.startswith(f"x.yaml: {path}") and sentence in line


def test_resolved_recipe_is_read_again() -> None:
    drawn = {**COUNTDOWN, "samples": 8, "k": [1, 8], "options": {"target": [1, 9]}}
    data = changed("eval.tasks", [drawn, {"task": "zebra"}])
    found = from_dict(data, train_fields=FIELDS)
    assert from_dict(found.to_dict(), train_fields=FIELDS) == found


def test_tasks_of_a_recipe_are_those_there_are() -> None:
    assert get_args(EvalTask.model_fields["task"].annotation) == TASKS
