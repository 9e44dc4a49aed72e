"""Our own names beside lm_eval's: measured once, stored as the others, and told apart by teacher and rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkd.evaluation.results import Record, Store

from tiny import sentences, tiny_model

Evaluate = Callable[..., int]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in sentences()[100:112]))
    return path


def records(folder: Path) -> list[Record]:
    return list(Store(folder).records())


def test_a_run_is_measured_against_its_teacher(
    final_model: Path, rows: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    run = final_model.parent
    words = (run, "--tasks", "fidelity,calibration", "--data", rows)
    assert evaluate(*words) == 0
    found = {record.task: record for record in records(run / "eval")}
    assert 0 < found["fidelity"].metrics["forward_kl"].estimate.value < 20
    assert found["fidelity"].metrics["forward_kl"].estimate.n == 12
    assert {"ece", "teacher/ece"} <= set(found["calibration"].metrics)
    assert len(Store(run / "eval").items(found["fidelity"])) == 12
    capsys.readouterr()
    assert evaluate(*words) == 0
    assert capsys.readouterr().out.count("is there already") == 2


def test_a_model_against_itself_is_faithful(model_folder: Path, rows: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    words = ("--tasks", "fidelity", "--teacher", model_folder, "--data", rows, "--output_path", tmp_path)
    assert evaluate(model_folder, *words) == 0
    (found,) = records(tmp_path)
    assert found.metrics["agreement"].estimate.value == 1
    assert found.metrics["forward_kl"].estimate.value == pytest.approx(0, abs=1e-9)


def test_another_teacher_or_other_rows_are_measured_anew(
    model_folder: Path, rows: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    other = tiny_model(tmp_path / "other", seed=5)
    out = tmp_path / "out"
    common = ("--tasks", "fidelity", "--data", rows, "--output_path", out)
    for teacher in (model_folder, other, model_folder):
        assert evaluate(model_folder, *common, "--teacher", teacher) == 0
    assert len(records(out)) == 2
    with rows.open("a") as file:
        file.write(json.dumps({"text": sentences()[300]}) + "\n")
    assert evaluate(model_folder, *common, "--teacher", other) == 0
    assert len(records(out)) == 3


def test_a_baseline_is_measured_beside_the_student(
    final_model: Path, model_folder: Path, rows: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    """Any saved model, or a run; beside a copy of the student no difference is found, and that is no new measurement
    of the student alone."""
    student, run = final_model, final_model.parent
    common = ("--tasks", "fidelity,calibration", "--teacher", model_folder, "--data", rows, "--output_path", tmp_path)
    for beside in ((), ("--baseline", run), ("--baseline", model_folder)):
        assert evaluate(student, *common, *beside) == 0
    alone, same, perfect = (r for r in records(tmp_path) if r.task == "fidelity")
    assert not any(name.startswith("baseline/") for name in alone.metrics)
    assert same.metrics["difference/forward_kl"].estimate.value == pytest.approx(0, abs=1e-9)
    assert perfect.metrics["baseline/agreement"].estimate.value == 1
    assert perfect.metrics["difference/forward_kl"].estimate.value > 0
    assert any("baseline/ece" in r.metrics for r in records(tmp_path) if r.task == "calibration")


def test_a_baseline_that_is_none(
    model_folder: Path, rows: Path, evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--tasks", "fidelity", "--teacher", model_folder, "--data", rows, "--output_path", tmp_path)
    assert evaluate(model_folder, *words, "--baseline", tmp_path / "nowhere") != 0
    said = capsys.readouterr()
    assert "nowhere" in said.out + said.err and "Traceback" not in said.out + said.err


def test_fidelity_without_a_teacher_is_told_and_the_rest_is_done(
    model_folder: Path, rows: Path, evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--tasks", "fidelity,calibration", "--data", rows, "--output_path", tmp_path)
    assert evaluate(model_folder, *words) == 1
    assert "give --teacher MODEL" in capsys.readouterr().out
    assert [record.task for record in records(tmp_path)] == ["calibration"]


def test_bias_is_measured_beside_the_teacher_and_agrees_with_lm_eval(
    model_folder: Path, local_files: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    other = tiny_model(tmp_path / "other", seed=7)
    out = tmp_path / "out"
    assert evaluate(model_folder, "--tasks", "bias,llmkd_crows_pairs", "--teacher", other, "--output_path", out) == 0
    found = {record.task: record.metrics for record in records(out)}
    own = found["bias"]["stereotype"].estimate.value
    assert own == found["llmkd_crows_pairs"]["pct_stereotype"].estimate.value
    teacher = found["bias"]["teacher/stereotype"].estimate.value
    assert own != teacher
    assert found["bias"]["gap"].estimate.value == pytest.approx(own - teacher)
    assert {"stereotype/age", "stereotype/gender"} <= set(found["bias"])


@pytest.mark.usefixtures("local_files")
def test_bias_takes_pairs_from_a_file_and_says_what_is_wrong_with_it(
    model_folder: Path, rows: Path, evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(model_folder, "--tasks", "bias", "--data", rows, "--output_path", tmp_path) == 1
    assert "has no sent_more, sent_less, bias_type" in capsys.readouterr().out
    assert evaluate(model_folder, "--tasks", "bias", "--data", "nowhere.csv", "--output_path", tmp_path) == 1
    assert "nowhere.csv does not exist" in capsys.readouterr().out


def test_efficiency_is_measured_on_this_machine(model_folder: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    assert evaluate(model_folder, "--tasks", "efficiency", "--output_path", tmp_path, "--batch_size", 2) == 0
    (found,) = records(tmp_path)
    assert found.metrics["parameters"].estimate.value == 384 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    assert found.metrics["decode"].estimate.value > 0
    assert found.settings["batch_size"] == 2
