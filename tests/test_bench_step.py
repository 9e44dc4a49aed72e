"""The benchmark of a training step: it compares like with like, times no wrong trainer, counts every second once."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "eval" / "bench"))

import step
import step_goals
import step_measure
from step_arms import ARMS, CHECKED, TEACHER_WEIGHT, Case
from step_measure import PHASES, Clock

TINY = Case((64, 1), (128, 1), vocabulary=64, prompt=5, completion=4)
SIZES = ["--student", "64,1", "--teacher", "128,1", "--vocabulary", "64", "--prompt", "5", "--completion", "4"]


def served(arm: str, rounds: int = 0) -> list[dict]:
    """What a worker would answer, in this process."""
    answers = io.StringIO()
    job = {"arm": arm, "case": TINY.as_json(), "threads": 1, "rounds": rounds}
    step_measure.serve(job, iter(["round\n"] * rounds), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


@pytest.fixture(scope="module")
def first() -> dict[str, dict]:
    """The first answers of every arm: what is compared before anything is timed."""
    return {arm: served(arm)[0] for arm in ARMS}


# -- like with like ---------------------------------------------------------------------------------------------------


def test_grpo_is_trls_bitwise(first: dict[str, dict]) -> None:
    assert step_goals.refusal("llmkd_grpo", first, 0.0) == ({"loss": 0.0, "grad_norm": 0.0}, None)
    assert first["llmkd_grpo"]["checked"] == first["trl_grpo"]["checked"]
    assert all(line["grad_norm"] > 1e-3 for line in first["llmkd_grpo"]["checked"]), "the reward says nothing"


@pytest.mark.parametrize("arm", ["llmkd_onpolicy", "llmkd_kdrl_k2", "llmkd_kdrl_exact"])
def test_the_others_are_their_peers_within_rounding(first: dict[str, dict], arm: str) -> None:
    errors, why = step_goals.refusal(arm, first, 1e-5)
    assert why is None and errors
    assert first[arm]["checked"][0]["loss"] > 0.01, "the teacher says nothing"


def test_every_arm_writes_as_many_tokens_and_others_after_an_update(first: dict[str, dict]) -> None:
    assert {tuple(answer["lengths"]) for answer in first.values()} == {(TINY.completion,)}
    assert all(len({line["drawn"] for line in answer["checked"]}) == CHECKED for answer in first.values())


def test_a_weight_of_the_teacher_is_said_once() -> None:
    assert step_goals.TEACHER_WEIGHT == TEACHER_WEIGHT


# -- what is wrong is not timed ---------------------------------------------------------------------------------------


def answer(*losses: float, drawn: str = "a", grad_norm: float = 1.0, **more: float) -> dict:
    return {"checked": [{"drawn": drawn, "loss": loss, "grad_norm": grad_norm, **more} for loss in losses]}


@pytest.mark.parametrize(
    ("ours", "why"),
    [
        (answer(2.0, 3.0), None),
        (answer(2.0, 3.003), "relative error to trl_grpo above 1e-05: loss 0.001"),
        (answer(2.0, 3.0, grad_norm=1.01), "above 1e-05: grad_norm 0.0099"),
        (answer(2.0, float("nan")), "above 1e-05: loss inf"),
        (answer(2.0, 3.0, drawn="b"), "its completions are not those of trl_grpo"),
    ],
)
def test_another_loss_gradient_or_completion_is_refused(ours: dict, why: str | None) -> None:
    found = step_goals.refusal("llmkd_grpo", {"llmkd_grpo": ours, "trl_grpo": answer(2.0, 3.0)}, 1e-5)[1]
    assert (found is None) == (why is None) and (why is None or why in found)


def test_a_term_may_add_to_the_loss_only_what_it_says() -> None:
    first = {"llmkd_grpo": answer(0.5), "llmkd_kdrl_k2": answer(0.5 + TEACHER_WEIGHT * 2.0, term=2.0)}
    assert step_goals.refusal("llmkd_kdrl_k2", first, 1e-5)[1] is None
    first["llmkd_kdrl_k2"] = answer(0.5 + TEACHER_WEIGHT * 2.0, term=2.01)
    assert "loss 0.0014" in str(step_goals.refusal("llmkd_kdrl_k2", first, 1e-5)[1])


def test_what_has_no_peer_here_is_not_compared() -> None:
    assert step_goals.refusal("llmkd_grpo", {"llmkd_grpo": answer(1.0)}, 1e-5) == ({}, None)


# -- every second once ------------------------------------------------------------------------------------------------


def test_a_second_belongs_to_the_innermost_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(step_measure, "cpu_seconds", lambda: now[0])
    clock = Clock("cpu")

    def spend(seconds: float) -> None:
        now[0] += seconds

    def prepare() -> None:
        spend(2)
        clock.of("generate", spend)(5)
        clock.of("teacher", spend, lambda seconds: seconds > 100)(1)
        spend(3)

    spend(10)
    clock.of("prepare", prepare)()
    spend(20)
    found = clock.read()
    assert found == dict.fromkeys(PHASES, 0.0) | {"train": 30, "prepare": 6, "generate": 5}
    clock.start()
    assert sum(clock.read().values()) == 0


@pytest.mark.parametrize(
    ("arm", "heard", "floor"),
    [("trl_grpo", False, None), ("trl_distillation", True, None), ("llmkd_onpolicy", True, None),
     ("llmkd_kdrl_k2", True, False), ("llmkd_kdrl_exact", True, True)],
)  # fmt: skip
def test_a_round_is_split_into_phases(arm: str, heard: bool, floor: bool | None) -> None:
    _, line = served(arm, rounds=1)
    phases = line["phases"]
    assert tuple(phases) == PHASES and line["seconds"] == pytest.approx(sum(phases.values()))
    assert phases["generate"] > 0 and phases["train"] > 0 and phases["prepare"] > 0 and phases["sync"] == 0
    assert (phases["teacher"] > 0) == heard and (phases["reward"] > 0) == (arm in ("trl_grpo", "llmkd_kdrl_k2",
                                                                                 "llmkd_kdrl_exact"))  # fmt: skip
    assert ("forward" in line) == (floor is not None)
    assert floor is None or (line["forward"] > 0 and (line["products"] > 0) == floor)
    if "alone" in line:
        assert line["alone"]["phases"]["teacher"] == 0 < line["alone"]["seconds"], "the term was heard"
    assert ("alone" in line) == (floor is not None)


# -- goals ------------------------------------------------------------------------------------------------------------


def row(arm: str, *seconds: float, generate: float = 0.5, **more: Any) -> dict:
    rounds = [{"seconds": s, "phases": dict.fromkeys(PHASES, 0.0) | {"generate": generate}, **more} for s in seconds]
    return {"implementation": arm, "status": "ok", "rounds": rounds}


def heard(arm: str, seconds: float, alone: float, **floor: float) -> dict:
    """A row with 0.5 s of drawing in the step, and 0.8 s in the one beside it without the term."""
    without = {"seconds": alone, "phases": dict.fromkeys(PHASES, 0.0) | {"generate": 0.8}}
    return row(arm, seconds, alone=without, **floor)


def test_ratios_are_those_of_rounds_that_stand_beside_each_other() -> None:
    """The machine was twice as slow in the second round: that says nothing of either."""
    rows = [row("trl_grpo", 1.0, 2.0, 1.0), row("llmkd_grpo", 0.9, 1.8, 0.9)]
    assert step_goals.with_ratios(rows)[1]["ratios"]["step/peer"] == pytest.approx(0.9)


def test_goals() -> None:
    rows = [
        row("trl_grpo", 1.0), row("llmkd_grpo", 1.2),
        heard("llmkd_kdrl_k2", 1.3, 1.4, forward=0.25, products=0.0),
        heard("llmkd_kdrl_exact", 1.4, 1.4, forward=0.25, products=0.1),
        row("trl_distillation", 1.0) | {"status": "failed"}, row("llmkd_onpolicy", 1.0),
    ]  # fmt: skip
    found = {target.where: (target.found, target.reached) for target in step_goals.evaluate(rows)}
    assert found["llmkd_grpo"] == (pytest.approx(1.2), False)
    assert found["llmkd_kdrl_k2"] == (pytest.approx(0.8), True)
    assert found["llmkd_kdrl_exact"] == (pytest.approx(0.3 / 0.35), True)
    assert step_goals.with_ratios(rows)[3]["ratios"]["term/forward"] == pytest.approx(0.3 / 0.25)
    assert found["llmkd_onpolicy"] == (None, None)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_phases_ratios_and_goals(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out.json"
    step.main([*SIZES, "--arm", "trl_grpo,llmkd_grpo", "--rounds", "1", "--out", str(out)])
    document = json.loads(out.read_text())
    theirs, ours = document["rows"]
    assert (theirs["status"], ours["status"]) == ("ok", "ok") and ours["errors"] == {"loss": 0.0, "grad_norm": 0.0}
    assert ours["ratios"]["step/peer"] == ours["seconds"] / theirs["seconds"]
    assert ours["student"] == [64, 1] and ours["completion"] == 4 and len(ours["rounds"]) == 1
    assert document["versions"]["trl"] and document["machine"]["threads"] == 1
    assert [target["what"] for target in document["targets"]] == ["step over trl_grpo"]
    assert "| llmkd_grpo " in (said := capsys.readouterr().out) and "step over trl_grpo" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arm", "trl"], "--arm: there is no trl: one or more of trl_grpo, llmkd_grpo"),
        (["--student", "100,2"], "--student: '100,2': give a width that is a multiple of 64"),
        (["--teacher", "64"], "--teacher: '64' is no size: give WIDTH,LAYERS"),
        (["--rounds", "0"], "--rounds: 0 is not above 0"),
        (["--group", "1"], "--group: 1, but an advantage"),
        (["--out", "/nowhere/at/all.json"], "--out: there is no folder /nowhere/at"),
    ],
)
def test_a_mistake_on_the_command_line_is_said_in_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        step.parse(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err
