"""The tasks of a recipe, asked of real models: what a run's result holds of them, and what is refused before it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkd.config import EvalTask
from llmkd.data.tasks import countdown
from llmkd.evaluation.pass_at import check
from llmkd.evaluation.table import run_tasks, table

from runs import main_with, make_inputs, one_message, recipe


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def asked(memoriser: Any, *changes: dict[str, Any]) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(memoriser.folder, dtype=torch.float32).eval()
    tasks = [EvalTask(**{**memoriser.task, **change}) for change in changes]
    return run_tasks(model, AutoTokenizer.from_pretrained(memoriser.folder), tasks)


# -- what a real model is worth ----------------------------------------------------------------------------------------


def test_model_that_knows_two_of_four_solutions(memoriser: Any) -> None:
    found = asked(memoriser, {})
    assert found["tasks"] == {"known": {"pass@1": 0.5}}
    share = found["task_intervals"]["known"]["pass@1"]
    assert share["n"] == 4 and share["value"] == 0.5 and 0 <= share["low"] < 0.5 < share["high"]


def test_samples_of_a_sure_model_are_its_greedy_answers(memoriser: Any) -> None:
    """At temperature 1 nearly every sample of a solution that is known by heart is that solution."""
    of = asked(memoriser, {"samples": 8, "k": [1, 4, 8], "n": 2}, {"name": "all", "samples": 8, "k": [8, 1]})["tasks"]
    assert list(of) == ["known", "all"] and list(of["all"]) == ["pass@8", "pass@1"]
    assert 0.5 < of["known"]["pass@1"] <= of["known"]["pass@4"] <= of["known"]["pass@8"] == 1.0
    assert 0.25 < of["all"]["pass@1"] <= 0.5 == of["all"]["pass@8"]


def test_share_that_is_never_right_has_an_interval_that_does_not_end_at_0(memoriser: Any) -> None:
    share = asked(memoriser, {"max_new_tokens": 2})["task_intervals"]["known"]["pass@1"]
    assert share["value"] == share["low"] == 0.0 and 0.3 < share["high"] < 0.7


@pytest.mark.parametrize("task", ["knights_and_knaves", "zebra", "programs"])
def test_other_tasks_are_asked_and_graded(memoriser: Any, task: str) -> None:
    found = asked(memoriser, {"task": task, "options": None, "n": 2, "max_new_tokens": 4})
    assert found["tasks"] == {"known": {"pass@1": 0.0}} and found["task_intervals"]["known"]["pass@1"]["n"] == 2


def test_arithmetic_is_by_level_without_samples_and_pass_at_k_with_them(memoriser: Any) -> None:
    arithmetic = {"task": "arithmetic", "options": None, "n": 2, "max_new_tokens": 4}
    found = asked(memoriser, {**arithmetic, "name": None}, {**arithmetic, "name": "drawn", "samples": 2, "levels": [1]})
    assert found["tasks"] == {"arithmetic": dict.fromkeys("1234", 0.0), "drawn": {"pass@1": 0.0}}
    assert found["task_intervals"]["arithmetic"]["3"]["n"] == 2


# -- refused before anything is trained --------------------------------------------------------------------------------


@pytest.mark.parametrize("task, said", [
    ({"task": "countdown", "options": {"number": 3}}, "eval.tasks.1.options: countdown has no option 'number'; did "),
    ({"task": "countdown", "options": {"numbers": "3"}}, "eval.tasks.1.options.numbers: '3' is not a whole number"),
    ({"task": "countdown", "options": {"numbers": 9}}, "eval.tasks.1.options: countdown: numbers 9 is out of range"),
    ({"task": "knights_and_knaves", "options": {"people": 99}}, "eval.tasks.1.options: knights_and_knaves: "),
])  # fmt: skip
def test_options_that_the_task_does_not_take(task: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        check([EvalTask(task="arithmetic"), EvalTask(**task)])
    assert str(caught.value).startswith(said)


def test_more_problems_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(countdown, "MOST_REPEATS", 50)
    with pytest.raises(ValueError, match=r"^eval\.tasks\.0\.options: countdown: 500 distinct problems asked for"):
        check([EvalTask(task="countdown", n=500, options={"numbers": 3, "largest": 5})])


def test_options_that_are_fine() -> None:
    check([EvalTask(task="zebra", n=2, options={"houses": 3, "seed": 4}),
           EvalTask(task="arithmetic", samples=2, levels=[4]), EvalTask(task="programs", n=2)])  # fmt: skip


def test_run_with_wrong_options_leaves_no_folder(inputs: Path, tmp_path: Path, capsys: Any) -> None:
    data = recipe(inputs, tmp_path / "run", {"eval.tasks": [{"task": "countdown", "options": {"largest": 1}}]})
    assert main_with(data) == 2
    assert "eval.tasks.0.options: countdown: largest 1 is out of range; choose 5 to 999" in one_message(capsys)
    assert not (tmp_path / "run").exists()


# -- a whole run -------------------------------------------------------------------------------------------------------


def test_run_measures_teacher_and_student_and_shows_both(
    memoriser: Any, inputs: Path, tmp_path: Path, capsys: Any
) -> None:
    """The student is trained at a learning rate of next to nothing, so that it still knows what it knew."""
    data = recipe(inputs, tmp_path / "run", {
        "student.model_name_or_path": str(memoriser.folder), "train.max_steps": 1, "train.learning_rate": 1e-12,
        "eval.tasks": [{**memoriser.task, "samples": 8, "k": [1, 8]}, {**memoriser.task, "name": "greedy"}],
    })  # fmt: skip
    assert main_with(data) == 0
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    student, teacher = results["student"]["tasks"], results["teacher"]["tasks"]
    assert student["greedy"] == {"pass@1": 0.5} and teacher["greedy"] == {"pass@1": 0.0}
    assert 0.25 < student["known"]["pass@1"] <= 0.5 == student["known"]["pass@8"]
    assert results["student"]["task_intervals"]["known"]["pass@8"]["n"] == 4
    rows = {f"known: pass@{k}": student["known"][f"pass@{k}"] for k in (1, 8)} | {"greedy: pass@1": 0.5}
    card = (tmp_path / "run" / "README.md").read_text()
    for label, share in rows.items():
        assert f"| {label} | 0.0% | {100 * share:.1f}% |" in card
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(results))
    said = console.export_text()
    assert all(label in said for label in rows)
