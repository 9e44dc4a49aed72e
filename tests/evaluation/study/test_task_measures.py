"""A study of what its arms solve: pass@k from the runs to the table."""

from typing import Any

import pytest

from runs import held_out

MEASURE = "tasks.known.pass@1"


def test_arm_that_solves_what_the_other_does_not(desk: Any, memoriser: Any) -> None:
    """Next to nothing is learned; the arms differ in the student they begin with: one knows two of four solutions."""
    study = desk.study(
        {
            "arms": {"blank": {}, "knows": {"overrides": {"student.model_name_or_path": str(memoriser.folder)}}},
            "varies": ["student"], "reference": "blank", "evaluations": {"measures": ["tasks.*"]},
        },
        {"train.learning_rate": 1e-12, "train.max_steps": 1, "eval.datasets": held_out(desk.inputs)[:1],
         "eval.tasks": [memoriser.task]},
    )  # fmt: skip
    assert desk.compare(study) == 0, desk.err
    found = desk.table()
    assert found["measures"] == {MEASURE: {"label": "known: pass@1", "better": "higher", "unit": "", "percent": True}}
    cells = {name: arm["measures"][MEASURE] for name, arm in found["arms"].items()}
    assert cells["blank"]["values"] == {"3": 0.0, "4": 0.0} and cells["knows"]["values"] == {"3": 0.5, "4": 0.5}
    assert cells["knows"]["difference"]["mean"] == pytest.approx(0.5)
    text = (desk.folder / "out" / "table.md").read_text()
    assert "## known: pass@1 (higher is better)" in text and "50.0%" in text and "+50.0%" in text


def test_options_of_a_task_are_refused_before_anything_is_started(desk: Any) -> None:
    arms = {"fine": {}, "six": {"overrides": {"eval.tasks": [{"task": "countdown", "options": {"numbers": 7}}]}}}
    assert desk.compare(desk.study({"arms": arms, "varies": ["eval"]})) == 2
    assert "study.yaml: arms.six: eval.tasks.0.options: countdown: numbers 7 is out of range; choose one of" in desk.err
    assert "arms.fine" not in desk.err and not (desk.folder / "out" / "arms").exists()
