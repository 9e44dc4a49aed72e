"""Suites: ours are whole and name tasks that exist; a bad one is told with what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmkd.evaluation.harness import suites
from llmkd.evaluation.harness.options import Settings

ALL = ("math", "reasoning", "code", "instruct", "knowledge", "offline")


@pytest.mark.parametrize("name", ALL)
def test_suite_of_ours_loads_by_its_name(name: str) -> None:
    suite = suites.load(name)
    assert suite.name == name
    assert suite.tasks


@pytest.mark.full
def test_every_task_of_our_suites_is_known_to_lm_eval_or_ours() -> None:
    from llmkd.evaluation.harness import catalogue

    names = [entry.task for name in ALL for entry in suites.load(name).tasks]
    manager = catalogue.manager(names, (), (), {})
    assert all(catalogue.expand(manager, name) for name in names)


def test_the_command_line_comes_before_the_task_and_the_task_before_the_suite(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: s\ndescription: d\nsettings: {num_fewshot: 1, limit: 10, where_missing: skip}\n"
        "tasks: [a, {task: b, limit: 20, where_missing: fail}]\n"
    )
    plain, own = suites.wanted(suites.load(str(path)), Settings())
    assert (plain.settings.num_fewshot, plain.settings.limit, plain.optional) == (1, 10, True)
    assert (own.settings.num_fewshot, own.settings.limit, own.optional) == (1, 20, False)
    assert [want.settings.limit for want in suites.wanted(suites.load(str(path)), Settings(limit=3))] == [3, 3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: s\ndescription: d\ntask: [a]\n", "task: is not a key here: did you mean tasks?"),
        ("name: s\ndescription: d\ntasks: [{task: a, num_shots: 1}]\n",
         "tasks.0.num_shots: is not a key here: did you mean num_fewshot?"),
        ("name: s\ndescription: d\ntasks: []\n", "tasks: [] is not accepted"),
        ("name: s\ndescription: d\ntasks: [{limit: 3}]\n", "tasks.0.task: is missing"),
        ("name: s\ndescription: d\ntasks: [{task: a, limit: 0}]\n", "tasks.0.limit: 0 is not accepted"),
        ("name: s\ndescription: d\ntasks: [a]\nsettings: {where_missing: leave}\n", "settings.where_missing: 'leave'"),
        ("description: d\ntasks: [a]\n", "name: is missing"),
        ("- a\n", "is not a mapping"),
        ("name: [\n", "not valid YAML"),
    ],
)  # fmt: skip
def test_bad_suite_is_told_with_what_is_allowed(
    text: str, said: str, evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    assert evaluate("model", "--suite", path) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(path) in error
    assert "Traceback" not in error


def test_unknown_suite_names_the_nearest(evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("model", "--suite", "eval/suites/ofline.yaml") == 2
    assert "did you mean offline?" in capsys.readouterr().err
