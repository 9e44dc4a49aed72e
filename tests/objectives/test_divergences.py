"""Divergences against torch.distributions, textbook numbers, numerical differentiation, identities and limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from llmkd.objectives.divergences import (
    TERMS,
    cross_entropy,
    expect,
    forward_kl,
    forward_kl_gradient,
    reverse_kl,
    reverse_kl_gradient,
)

DIVERGENCES = [name for name, row in TERMS.items() if row.divergence]
CLOSED = {"forward_kl": (forward_kl, forward_kl_gradient), "reverse_kl": (reverse_kl, reverse_kl_gradient)}
# Always the same examples, and as slow as the machine is.
examples = settings(deadline=None, derandomize=True)
logits = st.lists(st.tuples(*[st.floats(-60, 60)] * 2), min_size=2, max_size=12)


def log_probs(*shape: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, dtype=torch.float64, generator=generator)).log_softmax(-1)


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


class ClosedForm(torch.autograd.Function):
    """A divergence of the student's logits whose backward pass is the closed form: what gradcheck is to judge."""

    @staticmethod
    def forward(ctx, z, logp, value, gradient):
        ctx.save_for_backward(gradient(logp, z.log_softmax(-1)))
        return value(logp, z.log_softmax(-1))

    @staticmethod
    def backward(ctx, upstream):
        return ctx.saved_tensors[0] * upstream.unsqueeze(-1), None, None, None


def test_forward_kl_is_the_kl_of_torch_distributions():
    logp, logq = log_probs(4, 5, 31), log_probs(4, 5, 31, seed=1)
    expected = kl_divergence(Categorical(logits=logp), Categorical(logits=logq))
    torch.testing.assert_close(forward_kl(logp, logq), expected, rtol=1e-12, atol=0)


def test_reverse_kl_is_the_kl_of_torch_distributions_the_other_way_round():
    logp, logq = log_probs(4, 5, 31), log_probs(4, 5, 31, seed=1)
    expected = kl_divergence(Categorical(logits=logq), Categorical(logits=logp))
    torch.testing.assert_close(reverse_kl(logp, logq), expected, rtol=1e-12, atol=0)


def test_two_coins_by_hand():
    fair, biased = logs(1 / 2, 1 / 2), logs(1 / 4, 3 / 4)
    # 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4) = 1/2 (ln 2 + ln 2/3) = 1/2 ln 4/3
    assert float(forward_kl(fair, biased)) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-14)
    # 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2) = 3/4 ln 3 - ln 2
    assert float(reverse_kl(fair, biased)) == pytest.approx(0.75 * math.log(3) - math.log(2), rel=1e-14)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_divergence_is_exactly_zero_where_student_equals_teacher(name, dtype):
    logp = log_probs(50, 211).to(dtype)
    assert (TERMS[name].value(logp, logp.clone()) == 0).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_gradient_of_a_divergence_is_exactly_zero_where_student_equals_teacher(name):
    logp = log_probs(50, 211).float()
    assert TERMS[name].gradient is not None
    assert (TERMS[name].gradient(logp, logp.clone()) == 0).all()


@pytest.mark.parametrize("name", DIVERGENCES)
@examples
@given(pairs=logits)
def test_a_divergence_is_never_negative(name, pairs):
    logp, logq = torch.tensor(pairs, dtype=torch.float64).t().log_softmax(-1)
    # Down to the rounding of a sum of a dozen float64 numbers below 120.
    assert float(TERMS[name].value(logp, logq)) >= -1e-12


@examples
@given(pairs=logits)
def test_pinsker_bounds_both_kls_by_total_variation(pairs):
    logp, logq = torch.tensor(pairs, dtype=torch.float64).t().log_softmax(-1)
    total_variation = float((logp.exp() - logq.exp()).abs().sum()) / 2
    assert min(float(forward_kl(logp, logq)), float(reverse_kl(logp, logq))) >= 2 * total_variation**2 - 1e-12


def test_an_impossible_token_of_the_teacher_adds_nothing_to_forward_kl():
    # 1 ln(1 / 1/4) + 0 = ln 4
    assert float(forward_kl(logs(1, 0), logs(1 / 4, 3 / 4))) == pytest.approx(math.log(4), rel=1e-14)


def test_an_impossible_token_of_the_student_adds_nothing_to_reverse_kl():
    assert float(reverse_kl(logs(1 / 4, 3 / 4), logs(1, 0))) == pytest.approx(math.log(4), rel=1e-14)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_a_token_that_is_impossible_for_both_changes_nothing(divergence):
    with_it = divergence(logs(1 / 2, 1 / 2, 0), logs(1 / 4, 3 / 4, 0))
    assert torch.equal(with_it, divergence(logs(1 / 2, 1 / 2), logs(1 / 4, 3 / 4)))


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_disjoint_supports_are_infinitely_far_apart(divergence):
    assert float(divergence(logs(1 / 2, 1 / 2, 0, 0), logs(0, 0, 1 / 4, 3 / 4))) == math.inf


def test_expect_takes_an_impossible_event_for_nothing_whatever_its_value():
    p = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0])
    values = torch.tensor([2.0, 4.0, math.inf, -math.inf, math.nan])
    assert float(expect(p, values)) == 3.0


def test_kl_of_independent_pairs_is_the_sum_of_the_kls():
    p, q = log_probs(2, 7), log_probs(2, 7, seed=1)
    joint_p, joint_q = ((x[0][:, None] + x[1][None, :]).flatten() for x in (p, q))
    torch.testing.assert_close(forward_kl(joint_p, joint_q), forward_kl(p, q).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_nearby_both_kls_are_half_the_fisher_form(divergence):
    z, direction = log_probs(9), log_probs(9, seed=1)
    p = z.exp()
    # The Fisher matrix of a softmax is diag(p) - p p^T: its quadratic form is the variance of the direction.
    half_variance = 0.5 * ((p * direction**2).sum() - (p * direction).sum() ** 2)
    step = 1e-4
    found = divergence(z, (z + step * direction).log_softmax(-1)) / step**2
    assert float(found) == pytest.approx(float(half_variance), rel=1e-2)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_gradient_passes_gradcheck(name):
    z = log_probs(3, 8, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: ClosedForm.apply(z, log_probs(3, 8), *CLOSED[name]), z)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_gradient_passes_gradcheck_beside_tokens_impossible_for_both(name):
    free = log_probs(3, 6, seed=1).requires_grad_()
    never = torch.full((3, 2), -math.inf, dtype=torch.float64)
    logp = torch.cat([log_probs(3, 6), never], -1).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda z: ClosedForm.apply(torch.cat([z, never], -1), logp, *CLOSED[name]), free)


def test_closed_gradient_of_forward_kl_passes_gradcheck_where_the_teacher_has_zeros():
    z = log_probs(3, 8, seed=1).requires_grad_()
    logp = log_probs(3, 8).masked_fill(torch.arange(8) % 3 == 0, -math.inf).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda z: ClosedForm.apply(z, logp, *CLOSED["forward_kl"]), z)


def test_closed_gradient_of_reverse_kl_passes_gradcheck_where_the_student_has_zeros():
    free = log_probs(3, 6, seed=1).requires_grad_()
    never = torch.full((3, 2), -math.inf, dtype=torch.float64)
    closed, logp = CLOSED["reverse_kl"], log_probs(3, 8)
    assert torch.autograd.gradcheck(lambda z: ClosedForm.apply(torch.cat([z, never], -1), logp, *closed), free)
    gradient = reverse_kl_gradient(logp, torch.cat([free.detach(), never], -1).log_softmax(-1))
    assert (gradient[:, 6:] == 0).all()


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("zeros", ["none", "both"])
def test_closed_gradient_is_autograd_through_log_softmax(name, zeros):
    value, gradient = CLOSED[name]
    never = torch.arange(8) % 3 == 0 if zeros == "both" else torch.zeros(8, dtype=torch.bool)
    z = log_probs(5, 8, seed=1).masked_fill(never, -math.inf).requires_grad_()
    logp = log_probs(5, 8).masked_fill(never, -math.inf).log_softmax(-1)
    (expected,) = torch.autograd.grad(value(logp, z.log_softmax(-1)).sum(), z)
    torch.testing.assert_close(gradient(logp, z.detach().log_softmax(-1)), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", CLOSED)
def test_a_shift_of_all_logits_changes_nothing_so_gradients_sum_to_zero(name):
    gradient = CLOSED[name][1](log_probs(20, 31), log_probs(20, 31, seed=1))
    assert float(gradient.sum(-1).abs().max()) < 1e-14


def test_cross_entropy_is_the_negative_log_probability_of_the_target():
    logq, target = log_probs(4, 5, 31), torch.randint(0, 31, (4, 5), generator=torch.Generator().manual_seed(0))
    expected = -Categorical(logits=logq).log_prob(target)
    torch.testing.assert_close(cross_entropy(logq, target), expected, rtol=1e-12, atol=0)


def test_forward_kl_to_a_certain_teacher_is_cross_entropy():
    certain = logs(0, 0, 1, 0)
    logq = log_probs(4)
    assert float(forward_kl(certain, logq)) == pytest.approx(float(cross_entropy(logq, torch.tensor(2))), rel=1e-14)


def test_expected_cross_entropy_is_entropy_plus_forward_kl():
    logp, logq = log_probs(31), log_probs(31, seed=1)
    expected = float(Categorical(logits=logp).entropy() + forward_kl(logp, logq))
    every_token = cross_entropy(logq.expand(31, 31), torch.arange(31))
    assert float((logp.exp() * every_token).sum()) == pytest.approx(expected, rel=1e-12)
