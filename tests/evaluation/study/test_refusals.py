"""Mistakes of a user: one clear message, exit code 2, and nothing has been started."""

import fcntl
import os
from typing import Any

import pytest

CE = {"objective.terms": {"kd": {"term": "cross_entropy"}}}


def refused(desk: Any, *arguments: str, **changes: Any) -> str:
    """The one line that is said; nothing of a run is there."""
    assert desk.compare(desk.study(changes), *arguments) == 2, desk.out
    assert not (desk.folder / "out" / "arms").exists()
    lines = desk.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("llmkd compare: "), desk.err
    return lines[0].replace(f"{desk.folder}/", "")


@pytest.mark.parametrize("changes, said", [
    ({"arms": {"ce": {}, "bad": {"overrides": {"train.learning_rat": 1}}}, "varies": ["train"]},
     "arms.bad: base.yaml: train.learning_rat: is not a key of train: did you mean learning_rate?"),
    ({"arms": {"ce": {}, "bad": {"overrides": {"objective.terms.kd.term": "forward"}}}}, "did you mean forward_kl?"),
    ({"arms": {"kl": {}, "fast": {"overrides": {"train.learning_rate": 0.5}}}},
     "study.yaml: arms.fast: train.learning_rate: 0.5, but 0.001 in kl: name it in varies"),
    ({"arms": {"kl": {}, "warm": {"overrides": {"train.warmup_steps": 1}}}},
     "study.yaml: arms.warm: train.warmup_steps: 1, but not given in kl"),
    ({"arms": {"kl": {}, "long": {"overrides": {"train.max_steps": 9}}}, "varies": ["train"]},
     "arms.long: train.max_steps: 9, but 3 in kl: arms have one budget"),
    ({"arms": {"kl": {}, "long": {"overrides": {"train.max_steps": 9}}}, "budget": {"steps": 4}},
     "arms.long: train.max_steps: 9 is given beside a budget of {\"steps\": 4}: leave it out"),
    ({"arms": {"kl": {"overrides": {"run.seed": 9}}}}, "arms.kl: run.seed: belongs to the study"),
    ({"budget": {"steps": 3, "tokens": 100}}, "budget: both steps and tokens are given: give one of them"),
    ({"varies": ["objektive"]}, "varies: 'objektive' is not a key of a recipe: did you mean objective?"),
    ({"varies": ["train.learning_rat"]}, "did you mean train.learning_rate?"),
    ({"reference": "kd"}, "reference: 'kd' is not one of ce, kl"),
    ({"seeds": [1, 1]}, "seeds: [1, 1] names a seed twice"),
    ({"seeds": []}, "seeds: is empty"),
    ({"seed": [1]}, "seed: is not a key of a study: did you mean seeds?"),
    ({"arms": None}, "arms: is missing: give at least one arm"),
    ({"arms": {"a/b": {}}}, "'a/b' is not a name"),
    ({"arms": {"a": {"override": {}}}}, "arms.a.override: is not a key of arms.a: did you mean overrides?"),
    ({"recipe": "nothing.yaml"}, "recipe: nothing.yaml is neither in"),
    ({"recipe": None}, "recipe: is missing: give the base recipe"),
])  # fmt: skip
def test_mistake_in_the_study(desk: Any, changes: dict[str, Any], said: str) -> None:
    assert said in refused(desk, **changes)


@pytest.mark.parametrize("arguments, said", [
    (["seeds=[0"], "override seeds=[0: the value '[0' cannot be read"),
    (["seed=[0]"], "seed: is not a key of a study: did you mean seeds?"),
    (["overrides.train.max_step=2"], "did you mean max_steps?"),
    (["--jobs", "0"], "--jobs: 0 is not a number of runs"),
    (["--gpus", "a"], "--gpus: 'a' is not a list of GPU numbers"),
])  # fmt: skip
def test_mistake_on_the_command_line(desk: Any, arguments: list[str], said: str) -> None:
    line = refused(desk, *arguments, arms={"kl": {}})
    assert said in line


@pytest.mark.parametrize("text, said", [
    (None, "no such file: give the path of a study"),
    ("", "the file is empty: give name, output_dir, recipe"),
    ("- 1", "[1] is not a mapping"),
    ("arms: {a: {}, a: {}}", "the key 'a' is given twice"),
])  # fmt: skip
def test_file_that_is_no_study(desk: Any, text: str | None, said: str) -> None:
    path = desk.folder / "other.yaml"
    if text is not None:
        path.write_text(text)
    assert desk.compare(path) == 2 and said in desk.err


def test_every_problem_is_named_at_once(desk: Any) -> None:
    arms = {"a": {"overrides": {"train.x": 1}}, "b": {"overrides": {"student.y": 1}}}
    assert desk.compare(desk.study({"arms": arms})) == 2
    assert "arms.a: " in desk.err and "arms.b: " in desk.err


def test_two_in_one_folder_are_refused(desk: Any) -> None:
    (desk.folder / "out").mkdir()
    with (desk.folder / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        said = refused(desk)
    assert f"another llmkd compare (process {os.getpid()}) is at work in it" in said


def test_changed_study_does_not_take_the_runs_of_another(desk: Any) -> None:
    arms = {"kl": {"overrides": {"train.max_steps": 1}}}
    assert desk.compare(desk.study({"arms": arms, "seeds": [3]})) == 0
    arms["kl"]["overrides"]["train.learning_rate"] = 0.5
    assert desk.compare(desk.study({"arms": arms, "seeds": [3]})) == 2
    assert "arms.kl: train.learning_rate: 0.5, but the run in" in desk.err
    assert "was started with 0.001: put it back, remove that folder, or give another --output-dir" in desk.err


def test_dry_run_starts_nothing(desk: Any) -> None:
    assert desk.compare(desk.study(), "--dry-run") == 0
    assert "4 of 4 runs are still to be made" in desk.out and desk.out.count("run.seed=3") == 2
    assert not (desk.folder / "out").exists()


def test_budget_of_tokens_becomes_the_fewest_steps_that_have_room(desk: Any) -> None:
    """8 rows of at most 48 tokens are 384 a step."""
    for tokens, steps in ((384, 1), (385, 2), (3840, 10)):
        assert desk.compare(desk.study({"budget": {"tokens": tokens}}), "--dry-run") == 0
        assert desk.out.count(f"train.max_steps={steps} ") == 4
