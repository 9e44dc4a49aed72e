"""The table from hand-made runs: what is said, and what is not."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkd.evaluation.intervals import Estimate
from llmkd.evaluation.results import Metric, Record, Store
from llmkd.evaluation.study import curves, showing, table
from llmkd.evaluation.study.outcomes import Outcome, Value, outcome
from llmkd.evaluation.study.sections import Budget, Evaluations

KL, RIGHT = "held_out.code.kl", "tasks.arithmetic.2"


def runs(kl: list[float | None], right: list[float] | None = None) -> dict[int, Outcome]:
    rights = right or [0.5] * len(kl)
    return {seed: Outcome("finished", f"arms/x/seed-{seed}", {KL: Value(a), RIGHT: Value(b)}, steps=9, tokens=100)
            for seed, (a, b) in enumerate(zip(kl, rights, strict=True))}  # fmt: skip


def found(reference: str | None = "base", notes: Any = (), **arms: Any) -> dict[str, Any]:
    seeds = list(next(iter(arms.values())))
    study = SimpleNamespace(name="made", seeds=seeds, budget=Budget(steps=9), evaluations=Evaluations())
    return table.contents(study, arms, {name: {} for name in arms}, reference, notes)


@pytest.mark.parametrize("kl, right, verdicts", [
    ([0.50, 0.52, 0.51], [0.9, 0.8, 0.85], ["better", "better"]),
    ([1.50, 1.52, 1.51], [0.1, 0.2, 0.15], ["worse", "worse"]),
    ([0.9, 1.1, 1.0], [0.5, 0.45, 0.56], ["no difference", "no difference"]),
])  # fmt: skip
def test_which_way_is_better_is_the_measures_own(kl: list, right: list, verdicts: list[str]) -> None:
    contents = found(base=runs([1.0, 1.01, 1.02], [0.5, 0.51, 0.49]), arm=runs(kl, right))
    assert [cell["difference"]["verdict"] for cell in contents["arms"]["arm"]["measures"].values()] == verdicts


def test_difference_is_paired_by_seed() -> None:
    """Seeds far apart, and every time the arm is 0.1 lower: far clearer than either mean."""
    cell = found(base=runs([1.0, 5.0, 9.0]), arm=runs([0.9, 4.89, 8.91]))["arms"]["arm"]["measures"][KL]
    assert cell["difference"]["verdict"] == "better" and cell["difference"]["mean"] == pytest.approx(-0.1)
    assert cell["interval"][1] > 5 and (cell["low"], cell["high"]) == (0.9, 8.91)


def test_same_difference_with_every_seed_is_no_certainty() -> None:
    """A share of few answers moves in steps, and equal steps have no spread."""
    difference = found(base=runs([1.0, 1.0], [0.5, 0.5]), arm=runs([1.0, 1.0], [0.52, 0.52]))
    cell = difference["arms"]["arm"]["measures"][RIGHT]["difference"]
    assert cell["interval"] is None and cell["verdict"] is None
    assert "| +2.0% | withheld | the same with every seed |" in showing.markdown(difference)


def test_seed_that_is_missing_leaves_the_others_paired() -> None:
    contents = found(base=runs([1.0, 2.0, 4.0]), arm=runs([0.5, None, 3.4]))
    cell = contents["arms"]["arm"]["measures"][KL]
    assert cell["values"] == {"0": 0.5, "1": None, "2": 3.4}
    assert cell["difference"]["values"] == {"0": -0.5, "2": pytest.approx(-0.6)}


def test_reference_that_failed_leaves_nothing_to_compare_with() -> None:
    contents = found(base={0: Outcome("failed", "f"), 1: Outcome("failed", "f")}, arm=runs([1.0, 2.0]))
    assert contents["arms"]["arm"]["measures"][KL]["difference"] is None
    assert "not comparable" in showing.markdown(contents) and contents["arms"]["base"]["status"] == "failed"


def test_study_without_a_reference_has_no_differences() -> None:
    contents = found(None, trial=runs([1.0, 2.0]))
    assert contents["arms"]["trial"]["measures"][KL]["difference"] is None
    assert "difference" not in showing.markdown(contents)


def test_contents_are_json_without_numbers_that_are_not_finite() -> None:
    json.dumps(found(base=runs([1.0, 2.0]), arm=runs([None, None])), allow_nan=False)


def test_how_many_verdicts_chance_alone_would_give_is_said() -> None:
    arms = {f"a{i}": runs([1.0, 2.0, 3.5]) for i in range(20)}
    assert any("20 differences to base are judged" in note and "about 1 would" in note
               for note in found(base=runs([1.0, 2.0, 3.0]), **arms)["notes"])  # fmt: skip


# -- what a run folder says --------------------------------------------------------------------------------------------


def write_run(folder: Path, lines: list[dict[str, Any]], held_out: dict[str, float] | None) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if held_out is not None:
        result = {"held_out": {"code": held_out}, "tasks": {"arithmetic": {"1": 0.5}}, "tokens": 7, "seconds": 1.0}
        (folder / "summary.json").write_text(json.dumps({"results": {"student": result}, "steps": 2}))
    return folder


NAN = float("nan")
FINE = [{"step": 1, "loss": 2.0, "kd/value": 2.0}, {"step": 2, "loss": 1.0, "kd/value": 1.0}]
BAD = [FINE[0], {"step": 2, "loss": 0.0, "kd/value": NAN}]


@pytest.mark.parametrize("lines, held_out, failed, state, at", [
    (FINE, {"kl": 1.0}, False, "finished", None),
    (FINE, {"kl": 1.0}, True, "finished", None),
    (FINE, {"kl": NAN}, False, "diverged", None),
    (BAD, {"kl": 1.0}, False, "diverged", 2),
    (BAD, None, True, "diverged", 2),
    (BAD, None, False, "missing", None),
    (FINE, None, True, "failed", None),
    (FINE, None, False, "missing", None),
])  # fmt: skip
def test_state_of_a_run(tmp_path: Path, lines: Any, held_out: Any, failed: bool, state: str, at: int | None) -> None:
    run = outcome(write_run(tmp_path / "run", lines, held_out), "run", failed)
    assert (run.state, run.diverged_at) == (state, at)


def test_answers_of_a_model_whose_measures_are_not_finite_do_not_count(tmp_path: Path) -> None:
    run = outcome(write_run(tmp_path / "run", BAD, {"kl": NAN, "agreement": 0.0}), "run")
    assert {path: value.number for path, value in run.values.items()} == {
        "held_out.code.kl": None, "held_out.code.agreement": None, "tasks.arithmetic.1": None,
    }  # fmt: skip


def test_loss_beside_numbers_that_are_not_finite_is_no_point_of_its_curve(tmp_path: Path) -> None:
    run = outcome(write_run(tmp_path / "run", BAD, {"kl": NAN}), "run")
    found = curves.contents({"arm": {0: run}}, tmp_path)["arms"]["arm"]["0"]
    assert found["loss"] == [[1, 2.0], [2, None]] and found["held_out.code.kl"] == [[2, None]]


def test_records_of_llmkd_eval_are_measures(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", FINE, {"kl": 1.0})
    record = Record("gsm8k", "1", "m", metrics={"exact": Metric(Estimate(0.25, 0.2, 0.3, 100), "higher")})
    Store(folder / "eval").write(record)
    run = outcome(folder, "run")
    assert run.values["eval.gsm8k.exact"] == Value(0.25, "higher")
    other = replace(run, values={**run.values, "eval.gsm8k.exact": Value(0.75, "higher")})
    third = replace(run, values={**run.values, "eval.gsm8k.exact": Value(0.76, "higher")})
    contents = found(base={0: run, 1: run}, arm={0: other, 1: third})
    assert contents["arms"]["arm"]["measures"]["eval.gsm8k.exact"]["difference"]["verdict"] == "better"
    assert contents["measures"]["eval.gsm8k.exact"]["label"] == "gsm8k: exact"
