"""Reinforcement learning with a teacher: what it is equal to, on tiny models that write for themselves.

"Equal" to TRL's is bitwise where the same operations run, and within float32's rounding where a gradient is the same by
a theorem.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from llmkd.trainers import hearing
from llmkd.trainers.policy_terms import PolicyTerm, TeacherTerm
from llmkd.trainers.rollouts import as_batch

from rollouts import GRPO, always, lines, models, rl, trls, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("models"))


def heard(estimator: str = "k2", weight: float = 0.1, **more: object) -> TeacherTerm:
    return TeacherTerm("kd", "t", estimator=estimator, weight=weight, **more)


def test_a_teacher_of_weight_0_is_trls_grpo_bitwise(folder: Path) -> None:
    assert torch.equal(weights(rl(folder, GRPO, [heard(weight=0.0)])), weights(trls(folder)))


def test_without_a_teacher_it_is_trls_grpo_bitwise_over_several_updates_a_rollout(folder: Path) -> None:
    several = {"num_iterations": 2, "steps_per_generation": 2, "max_steps": 5}
    assert torch.equal(weights(rl(folder, GRPO, **several)), weights(trls(folder, **several)))


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"])
def test_k3_is_trls_penalty_towards_a_reference_model(folder: Path, loss_type: str) -> None:
    """TRL's penalty with the teacher in the reference's place; so the normaliser is that of every loss type."""
    theirs = trls(folder, reference="teacher", beta=0.1, use_bias_correction_kl=False, loss_type=loss_type)
    ours = rl(folder, GRPO, [heard("k3")], loss_type=loss_type)
    assert_close(weights(ours), weights(theirs), rtol=0, atol=2e-6)
    assert not torch.allclose(weights(ours), weights(rl(folder, GRPO, loss_type=loss_type)), rtol=0, atol=1e-5)


def test_k2_has_the_gradient_of_trls_corrected_penalty(folder: Path) -> None:
    """The gradient of rho k3 is that of k2: with the correction TRL's penalty is KDRL's.  A teacher that is near, since
    in theirs p / q cancels."""
    theirs = trls(folder, reference="near", beta=0.1, use_bias_correction_kl=True)
    assert_close(weights(rl(folder, GRPO, [heard("k2")], teacher="near")), weights(theirs), rtol=0, atol=2e-6)


def test_k2_as_a_loss_is_k1_as_a_reward_at_ratio_1(folder: Path) -> None:
    loss, reward = (lines(rl(folder, GRPO, [heard(e)], max_steps=1))[0] for e in ("k2", "k1_reward"))
    assert reward["grad_norm"] == pytest.approx(loss["grad_norm"], rel=1e-5)


def test_accumulation_changes_nothing(folder: Path) -> None:
    """Of a loss that is divided by the tokens of the whole step: rows are only taken in other groups."""
    for estimator in ("k2", "exact"):
        whole = lines(rl(folder, GRPO, [heard(estimator)], max_steps=1))[0]
        halves = rl(folder, GRPO, [heard(estimator)], max_steps=1, per_device_train_batch_size=4,
                    gradient_accumulation_steps=2)  # fmt: skip
        assert lines(halves)[0]["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)
        assert lines(halves)[0]["kd/loss"] == pytest.approx(whole["kd/loss"], rel=1e-5)


@pytest.mark.parametrize("estimator", ["k2", "k3", "exact"])
def test_a_teacher_that_is_the_student_says_nothing(folder: Path, estimator: str) -> None:
    trainer = rl(folder, None, [heard(estimator, 1.0)], teacher="student", max_steps=1)
    assert lines(trainer)[0]["loss"] == pytest.approx(0, abs=1e-6)
    assert lines(trainer)[0]["grad_norm"] == pytest.approx(0, abs=1e-4)


def test_exact_is_the_reverse_kl_of_all_tokens(folder: Path) -> None:
    trainer = rl(folder, None, [heard("exact", 1.0)], train=False, max_steps=1)
    seen = {}
    inner = trainer._compute_loss

    def noted(model, inputs):
        loss = inner(model, inputs)
        batch = as_batch(inputs, inputs["completion_mask"])
        counted = batch["counted"][:, 1:]
        with torch.no_grad():
            logq, logp = (m(input_ids=batch["input_ids"]).logits[:, :-1][counted].double().log_softmax(-1)
                          for m in (trainer.model, trainer.teachers["t"].model))  # fmt: skip
        seen["by hand"] = (logq.exp() * (logq - logp)).sum(-1).mean()
        seen["loss"] = loss.detach().double()
        return loss

    trainer._compute_loss = noted
    trainer.train()
    assert_close(seen["loss"], seen["by hand"], rtol=1e-5, atol=0)
    assert lines(trainer)[0]["kd/reverse_kl"] == pytest.approx(float(seen["by hand"]), rel=1e-5)


def test_the_likeliest_of_all_tokens_are_all(folder: Path) -> None:
    whole, all_of_them = (rl(folder, GRPO, [heard(e, k=384)]) for e in ("exact", "topk"))
    assert_close(weights(all_of_them), weights(whole), rtol=0, atol=1e-5)


def test_few_likeliest_tokens_are_a_lower_bound(folder: Path) -> None:
    exact, few = (lines(rl(folder, GRPO, [heard(e, k=8)], max_steps=1))[0]["kd/loss"] for e in ("exact", "topk"))
    assert 0 < few < exact


def test_a_divergence_of_the_engine_with_its_knobs(folder: Path) -> None:
    jsd = heard("exact", 1.0, kind="jsd")
    assert 0 < lines(rl(folder, None, [jsd], knobs={"beta": 0.3}, max_steps=1))[0]["loss"] < 0.7


@pytest.mark.parametrize("normalize", ["all", "kept"])
@pytest.mark.parametrize("mask", ["incorrect", "group_all_wrong"])
@pytest.mark.parametrize("estimator", ["k2", "exact", "k1_reward"])
def test_where_all_is_right_a_masked_teacher_is_silent(folder: Path, estimator: str, mask: str, normalize: str) -> None:
    trainer = rl(folder, None, [heard(estimator, 1.0, mask=mask, normalize=normalize)], reward=always, max_steps=1)
    line = lines(trainer)[0]
    assert line["loss"] == 0 and line["grad_norm"] == 0 and line["kd/kept"] == 0


def test_kept_is_as_if_there_were_no_other_completions(folder: Path) -> None:
    """Of a mean over tokens: the loss of a term is then its own mean."""
    shares = {}
    for normalize in ("all", "kept"):
        term = heard("k2", 1.0, mask="incorrect", normalize=normalize)
        line = lines(rl(folder, None, [term], max_steps=1))[0]
        shares[normalize] = line["loss"] / line["kd/loss"]
    assert shares["kept"] == pytest.approx(1, rel=1e-5)
    assert 0 < shares["all"] < 0.95


def test_the_policys_mask_scales_its_advantages(folder: Path) -> None:
    masked = PolicyTerm("policy", mask="incorrect")
    assert lines(rl(folder, masked, reward=always, max_steps=1))[0]["grad_norm"] == 0
    assert not torch.equal(weights(rl(folder, masked)), weights(rl(folder, GRPO)))


def test_a_weight_follows_its_schedule_and_is_logged(folder: Path) -> None:
    term = heard("k2", lambda step: max(0.0, 0.4 - 0.2 * step))
    logged = lines(rl(folder, GRPO, [term], max_steps=3))
    assert [line["kd/weight"] for line in logged] == pytest.approx([0.2, 0.0, 0.0])
    assert "kd/loss" in logged[0] and "kd/loss" not in logged[2]


def test_a_teacher_that_is_first_heard_in_the_middle_of_a_rollout(folder: Path) -> None:
    """Its weight is 0 when the completions are drawn, and not when they are trained on again."""
    term = heard("k2", lambda step: 0.1 * (step % 2))
    logged = lines(rl(folder, GRPO, [term], num_iterations=2, max_steps=4))
    assert ["kd/loss" in line for line in logged] == [False, True, False, True]


@pytest.mark.parametrize("estimator", ["k1_reward", "k2"])
def test_a_teacher_that_is_first_heard_in_a_step_that_two_rollouts_share(folder: Path, estimator: str) -> None:
    """The second rollout begins in the middle of step 0, in which nobody is heard, and ends in step 1."""
    several = {"steps_per_generation": 2, "gradient_accumulation_steps": 3, "per_device_train_batch_size": 4}
    logged = lines(rl(folder, GRPO, [heard(estimator, lambda step: 0.1 * (step > 0))], max_steps=3, **several))
    assert ["kd/reverse_kl" in line for line in logged][1:] == [True, True]


def test_a_knob_follows_its_schedule(folder: Path) -> None:
    """The student stands still, so each step is as with the number that the schedule has there."""

    def losses(t: Any) -> list[dict[str, Any]]:
        term = TeacherTerm("kd", "t", kind="taid", estimator="exact")
        return lines(rl(folder, None, [term], knobs={"t": t}, learning_rate=0.0))

    moving, first, second = losses(lambda step: 0.3 + 0.5 * step), losses(0.3), losses(0.8)
    assert moving[0]["kd/loss"] == first[0]["kd/loss"] and moving[1]["kd/loss"] == second[1]["kd/loss"]
    assert moving[1]["kd/loss"] != pytest.approx(first[1]["kd/loss"], rel=0.1)
    assert [line["kd/t"] for line in moving] == pytest.approx([0.8, 1.3])


def test_completions_that_do_not_end_are_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rl(folder, GRPO, max_steps=3)
    assert caplog.text.count("not one completion of the step ended by itself") == 1


def test_an_end_that_is_not_the_teachers_own_is_not_heard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student ends with 1, the teacher with 2: there, and only there, the teacher's term looks away."""
    trainer = rl(folder, GRPO, [heard("k2")], ends=[2], train=False, max_steps=1)
    eos = trainer.processing_class.eos_token_id
    noted = {}
    inner = hearing.ask

    def ask(trainer: Any, name: str, out: dict[str, Any]) -> None:
        out["completion_ids"][:, 2] = eos
        inner(trainer, name, out)
        noted.update(out)

    monkeypatch.setattr("llmkd.trainers.rl.ask", ask)
    trainer.train()
    foreign = noted["completion_ids"] == eos
    assert foreign.any() and not noted["heard@t"][foreign].any()
    assert torch.equal(noted["heard@t"], noted["completion_mask"].bool() & ~foreign)
