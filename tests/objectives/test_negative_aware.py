"""Negative-aware fine-tuning against the advantages that it must have on-policy."""

import math

import pytest
import torch

from llmkd.objectives.negative_aware import negative_aware, without_contrast

F64 = torch.float64


def gradient(correct, rate, log_ratio=0.0, **knobs):
    logq = torch.full_like(correct, -1.3).requires_grad_()
    value = negative_aware(logq, logq.detach() - log_ratio, correct, rate, **knobs)
    return torch.autograd.grad(value.sum(), logq)[0], value.detach()


def group(right: int, of: int = 8):
    correct = (torch.arange(of) < right).to(F64)
    return correct, correct.mean().expand(of)


@pytest.mark.parametrize("right", range(1, 8))
@pytest.mark.parametrize("weight", ["grpo", "dr_grpo", "none"])
def test_on_policy_the_gradient_is_minus_the_advantage(right, weight):
    correct, rate = group(right)
    r = right / 8
    scale = {"grpo": 1 / math.sqrt(r * (1 - r)), "dr_grpo": 1.0, "none": 1 / (1 - r)}[weight]
    found, _ = gradient(correct, rate, weight=weight)
    torch.testing.assert_close(found, -(correct - r) * scale, rtol=0, atol=1e-12)


@pytest.mark.parametrize("right", range(1, 8))
def test_of_a_group_it_is_proportional_to_the_advantages_of_trl(right):
    correct, rate = group(right)
    trl = (correct - correct.mean()) / (correct.std() + 1e-4)  # as GRPOTrainer has it: the sample's deviation
    ratio = -gradient(correct, rate)[0] / trl
    torch.testing.assert_close(ratio, ratio[:1].expand(8), rtol=1e-12, atol=0)
    assert ratio[0] > 0


@pytest.mark.parametrize("right", [0, 8])
def test_groups_without_contrast_get_nothing_and_are_countable(right):
    correct, rate = group(right)
    found, value = gradient(correct, rate)
    assert (found == 0).all() and (value == 0).all()
    assert without_contrast(rate).sum() == 8


def test_what_was_not_graded_gets_nothing():
    nan = torch.tensor([math.nan, 1.0], dtype=F64)
    found, value = gradient(nan, torch.tensor([0.5, math.nan], dtype=F64))
    assert (found == 0).all() and (value == 0).all()


def test_off_policy_below_ratio_1_the_negative_gradient_is_that_of_the_implied_policy():
    wrong, rate, ratio = torch.zeros(1, dtype=F64), torch.full((1,), 0.25, dtype=F64), 0.6
    found, value = gradient(wrong, rate, math.log(ratio), weight="none")
    implied = (1 - 0.25 * ratio) / 0.75
    assert float(value) == pytest.approx(-math.log(implied), rel=1e-12)
    assert float(found) == pytest.approx(0.25 * ratio / 0.75 / implied, rel=1e-12)


@pytest.mark.parametrize("log_ratio", [math.log(2) - 1e-9, math.log(2), math.log(2) + 1e-9, 9.0])
@pytest.mark.parametrize("eps", [1.0, 1e-3])
def test_where_the_implied_policy_ends_nothing_breaks_and_the_gradient_is_that_of_the_clamp(log_ratio, eps):
    wrong, rate = torch.zeros(1, dtype=F64), torch.full((1,), 0.5, dtype=F64)
    found, value = gradient(wrong, rate, log_ratio, weight="none", eps=eps)
    assert float(value) == pytest.approx(-math.log(eps), abs=1e-6)
    assert float(found) == pytest.approx(math.exp(log_ratio) / eps, rel=1e-6)


def test_a_ratio_beyond_all_measure_stays_finite():
    found, value = gradient(torch.tensor([0.0, 1.0], dtype=F64), torch.full((2,), 0.5, dtype=F64), 2000.0)
    assert found.isfinite().all() and value.isfinite().all()
    assert float(value[1]) == -10.0


def test_pass_rates_are_kept_off_the_ends():
    correct, rate = torch.ones(1, dtype=F64), torch.full((1,), 0.001, dtype=F64)
    assert float(gradient(correct, rate)[0]) == pytest.approx(-math.sqrt(0.98 / 0.02), rel=1e-12)


def test_negative_weight_0_is_rejection_fine_tuning():
    correct, rate = group(3)
    found, _ = gradient(correct, rate, negative_weight=0.0)
    torch.testing.assert_close(found, -correct * math.sqrt(5 / 3), rtol=1e-12, atol=0)


def test_bad_knobs_are_refused():
    with pytest.raises(ValueError, match="eps: 0"):
        negative_aware(*[torch.ones(1)] * 4, eps=0)
    with pytest.raises(ValueError, match="weight: 'half'"):
        negative_aware(*[torch.ones(1)] * 4, weight="half")
