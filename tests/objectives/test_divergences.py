"""What every divergence has to be: against plain formulas, torch.distributions and numbers by hand; its range, its
zero, its gradient, and what it makes of tokens that are impossible."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from llmkd.objectives.divergences import (
    VALUES,
    alpha_beta,
    cross_entropy,
    expect,
    forward_kl,
    hellinger,
    jsd,
    log_mixture,
    nkd,
    reverse_kl,
    squared_logit,
    total_variation,
)
from llmkd.terms import TERMS

import dense
from dense import F64, FORMULAS, GRID, labels

INF = math.inf
DIVERGENCES = [(kind, knobs) for kind, knobs in GRID if TERMS[kind].divergence]
every_divergence = pytest.mark.parametrize("kind, knobs", DIVERGENCES, ids=labels(DIVERGENCES))
both_precisions = pytest.mark.parametrize("dtype", [torch.float32, F64])
# Always the same examples, and as slow as the machine is.
examples = settings(deadline=None, derandomize=True, max_examples=30)
logits = st.lists(st.tuples(*[st.floats(-60, 60)] * 2), min_size=2, max_size=12)


def log_probs(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, dtype=F64, generator=generator)).log_softmax(-1)


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=F64).log()


def gradient(kind: str, knobs: dict, logp: Tensor, z: Tensor, *extra: Tensor) -> Tensor:
    """Of the summed formula to the student's logits, by autograd through log_softmax."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(VALUES[kind](logp, z.log_softmax(-1), *extra, **knobs).sum(), z)[0]


# -- values -----------------------------------------------------------------------------------------------------------


@every_divergence
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (F64, 1e-11)])
def test_a_value_is_the_plain_formula_in_probabilities(kind, knobs, dtype, tolerance):
    logp, logq = log_probs(4, 5, 31).to(dtype), log_probs(4, 5, 31, seed=1).to(dtype)
    expected = FORMULAS[kind](logp.double().exp(), logq.double().exp(), **knobs)
    found = VALUES[kind](logp, logq, **knobs)
    assert found.dtype == dtype and found.shape == (4, 5)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5])
def test_nkd_is_the_plain_formula_in_probabilities(gamma):
    logp, logq, target = log_probs(20, 31), log_probs(20, 31, seed=1), torch.arange(20)
    expected = dense.nkd(logp.exp(), logq.exp(), target, gamma)
    torch.testing.assert_close(nkd(logp, logq, target, gamma=gamma), expected, rtol=1e-11, atol=0)


def test_forward_kl_is_the_kl_of_torch_distributions():
    logp, logq = log_probs(4, 5, 31), log_probs(4, 5, 31, seed=1)
    expected = kl_divergence(Categorical(logits=logp), Categorical(logits=logq))
    torch.testing.assert_close(forward_kl(logp, logq), expected, rtol=1e-12, atol=0)


def test_reverse_kl_is_the_kl_of_torch_distributions_the_other_way_round():
    logp, logq = log_probs(4, 5, 31), log_probs(4, 5, 31, seed=1)
    expected = kl_divergence(Categorical(logits=logq), Categorical(logits=logp))
    torch.testing.assert_close(reverse_kl(logp, logq), expected, rtol=1e-12, atol=0)


def test_cross_entropy_is_the_negative_log_probability_of_torch_distributions():
    logq, target = log_probs(4, 5, 31), torch.randint(0, 31, (4, 5), generator=torch.Generator().manual_seed(0))
    expected = -Categorical(logits=logq).log_prob(target)
    torch.testing.assert_close(cross_entropy(logq, target), expected, rtol=1e-12, atol=0)


ln, root = math.log, math.sqrt
FKL = 0.5 * ln(4 / 3)  # 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4) = 1/2 (ln 2 + ln 2/3)
RKL = 0.75 * ln(3) - ln(2)  # 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2)
TO_M, FROM_M = 0.5 * ln(4 / 3) + 0.5 * ln(4 / 5), 0.25 * ln(2 / 3) + 0.75 * ln(6 / 5)  # m = 3/8, 5/8
MEAN = [1 / (1 + root(3)), root(3) / (1 + root(3))]  # proportional to the square root of p q
COINS = [
    ("forward_kl", {}, FKL),
    ("reverse_kl", {}, RKL),
    ("jsd", {}, 0.5 * TO_M + 0.5 * FROM_M),
    ("skew_forward_kl", {"alpha": 0.5}, TO_M),
    ("skew_reverse_kl", {"alpha": 0.5}, FROM_M),
    ("total_variation", {}, 1 / 4),
    ("hellinger", {}, 1 - root(1 / 8) - root(3 / 8)),
    ("alpha_beta", {"alpha": 1, "beta": 1}, 1 / 16),  # 1/2 (1/16 + 1/16)
    ("alpha_beta", {"alpha": 2, "beta": -1}, 1 / 6),  # 1/2 (sum p^2 / q - 1): half of Pearson's chi squared
    # 1/4 sum(p^2 ln(p^2 / q^2) - p^2 + q^2)
    ("alpha_beta", {"alpha": 2, "beta": 0}, (0.25 * (ln(4) + ln(4 / 9)) - 0.5 + 0.625) / 4),
    ("alpha_beta", {"alpha": 0, "beta": 0}, 0.5 * (ln(2) ** 2 + ln(2 / 3) ** 2)),
    ("alpha_beta", {"alpha": 1, "beta": -1}, ln(3 / 4) + 2 / 3),  # sum ln(q / p) + p / q - 1
    ("adaptive_kl", {}, 0.5 * FKL + 0.5 * RKL),  # one of two equal tokens is the head, with half of the gap
    ("balanced_kl", {}, 2 * FKL + RKL),  # the biased student is the surer one
    ("taid", {"t": 0.5}, MEAN[0] * ln(MEAN[0] / 0.25) + MEAN[1] * ln(MEAN[1] / 0.75)),
    ("mixture", {"of": {"forward_kl": 0.25, "reverse_kl": 0.75}}, 0.25 * FKL + 0.75 * RKL),
]


@pytest.mark.parametrize("kind, knobs, expected", COINS, ids=labels([c[:2] for c in COINS]))
def test_two_coins_by_hand(kind, knobs, expected):
    fair, biased = logs(1 / 2, 1 / 2), logs(1 / 4, 3 / 4)
    assert float(VALUES[kind](fair, biased, **knobs)) == pytest.approx(expected, rel=1e-13)


def test_three_tokens_by_hand():
    p, q, target = logs(1 / 2, 1 / 4, 1 / 4), logs(1 / 4, 1 / 4, 1 / 2), torch.tensor(0)
    # 1/2 ln 4; without the first token P is even and Q is 1/3, 2/3: 1/2 ln 3 + 1/2 ln 3/2.
    assert float(nkd(p, q, target, gamma=0.0)) == pytest.approx(0.5 * ln(4), rel=1e-14)
    assert float(nkd(p, q, target, gamma=2.0)) == pytest.approx(0.5 * ln(4) + ln(3) + ln(3 / 2), rel=1e-14)
    y, x = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 4.0, -1.0])
    assert float(squared_logit(y, x)) == pytest.approx((0 + 4 + 16) / 3)


# -- zero and range ---------------------------------------------------------------------------------------------------

EXACT = ["forward_kl", "reverse_kl", "total_variation", "hellinger", "alpha_beta", "adaptive_kl", "balanced_kl"]


@every_divergence
@both_precisions
def test_a_divergence_is_zero_where_student_equals_teacher(kind, knobs, dtype):
    logp = log_probs(50, 211).to(dtype)
    found = VALUES[kind](logp, logp.clone(), **knobs)
    # Rounding of a log of sums is left in the others.
    assert float(found.abs().max()) <= (0 if kind in EXACT else 4 * torch.finfo(dtype).eps)


def largest_power(kind: str, knobs: dict, *logs: Tensor) -> float:
    """The largest number that is summed, 1 or more: rounding is relative to it."""
    power = sum(knobs.values()) if kind == "alpha_beta" else 1
    return max(1.0, float((power * torch.stack(logs)).exp().max()))


@every_divergence
@both_precisions
def test_its_gradient_is_zero_there(kind, knobs, dtype):
    logp = log_probs(50, 211).to(dtype)
    logq = logp.clone().requires_grad_()
    (g,) = torch.autograd.grad(VALUES[kind](logp, logq, **knobs).sum(), logq)
    to_logits = g - logp.exp() * g.sum(-1, keepdim=True)
    assert float(to_logits.abs().max()) <= 20 * largest_power(kind, knobs, logp) * torch.finfo(dtype).eps


UPPER = {
    "jsd": lambda beta: -beta * ln(beta) - (1 - beta) * ln(1 - beta),
    "skew_forward_kl": lambda alpha: -ln(alpha) if alpha else INF,
    "skew_reverse_kl": lambda alpha, detach_mixture=False: -ln(alpha) if alpha else INF,
    "total_variation": lambda: 1,
    "hellinger": lambda: 1,
}


@every_divergence
@examples
@given(pairs=logits)
def test_a_divergence_is_never_negative_nor_above_its_range(kind, knobs, pairs):
    logp, logq = torch.tensor(pairs, dtype=F64).t().log_softmax(-1)
    # Down to the rounding of a sum of a dozen float64 numbers below 120 times the largest.
    slack = 1e-12 * largest_power(kind, knobs, logp, logq)
    found = float(VALUES[kind](logp, logq, **knobs))
    assert -slack <= found <= (UPPER[kind](**knobs) + 1e-12 if kind in UPPER else INF)


@every_divergence
@examples
@given(pairs=logits)
def test_in_float32_it_is_no_worse_than_its_rounding(kind, knobs, pairs):
    logp, logq = torch.tensor(pairs).t().log_softmax(-1)
    if kind == "balanced_kl":  # it jumps where the entropies are equal
        assume(abs(float(expect(logp.exp(), logp) - expect(logq.exp(), logq))) > 1e-4)
    exact = float(VALUES[kind](logp.double().log_softmax(-1), logq.double().log_softmax(-1), **knobs))
    found, largest = float(VALUES[kind](logp, logq, **knobs)), 1e30  # the powers of a larger one may not fit float32
    assert min(found, largest) == pytest.approx(min(exact, largest), rel=1e-3, abs=3e-5)


@examples
@given(pairs=logits)
def test_pinsker_bounds_both_kls_by_total_variation(pairs):
    logp, logq = torch.tensor(pairs, dtype=F64).t().log_softmax(-1)
    bound = 2 * float(total_variation(logp, logq)) ** 2
    assert min(float(forward_kl(logp, logq)), float(reverse_kl(logp, logq))) >= bound - 1e-12


@examples
@given(pairs=logits)
def test_hellinger_total_variation_and_jsd_bound_each_other(pairs):
    logp, logq = torch.tensor(pairs, dtype=F64).t().log_softmax(-1)
    h, tv, js = (float(f(logp, logq)) for f in (hellinger, total_variation, jsd))
    assert h <= tv + 1e-12 and tv <= math.sqrt(2 * h) + 1e-7  # Le Cam
    assert js <= ln(2) * tv + 1e-12  # Lin 1991


@pytest.mark.parametrize(
    "kind, knobs, half",
    [
        ("forward_kl", {}, 1), ("reverse_kl", {}, 1), ("hellinger", {}, 1 / 4), ("adaptive_kl", {}, 1),
        ("jsd", {"beta": 0.3}, 0.3 * 0.7), ("skew_forward_kl", {"alpha": 0.3}, 0.7**2),
        ("skew_reverse_kl", {"alpha": 0.3}, 0.7**2), ("balanced_kl", {}, 3), ("taid", {"t": 0.3}, 0.3**2),
        ("alpha_beta", {"alpha": 0.3, "beta": 0.7}, 1), ("alpha_beta", {"alpha": -0.5, "beta": 1.5}, 1),
    ],
)  # fmt: skip
def test_nearby_a_divergence_is_so_many_halves_of_the_fisher_form(kind, knobs, half):
    z, direction = log_probs(9), log_probs(9, seed=1)
    p = z.exp()
    # The Fisher matrix of a softmax is diag(p) - p p^T: its quadratic form is the variance of the direction.
    variance = (p * direction**2).sum() - (p * direction).sum() ** 2
    step = 1e-4
    found = VALUES[kind](z, (z + step * direction).log_softmax(-1), **knobs) / step**2
    assert float(found) == pytest.approx(0.5 * half * float(variance), rel=1e-2)


def test_kl_of_independent_pairs_is_the_sum_of_the_kls():
    p, q = log_probs(2, 7), log_probs(2, 7, seed=1)
    joint_p, joint_q = ((x[0][:, None] + x[1][None, :]).flatten() for x in (p, q))
    torch.testing.assert_close(forward_kl(joint_p, joint_q), forward_kl(p, q).sum(), rtol=1e-12, atol=0)


# -- tokens that are impossible ---------------------------------------------------------------------------------------


def test_expect_takes_an_impossible_event_for_nothing_whatever_its_value():
    p = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0], requires_grad=True)
    values = torch.tensor([2.0, 4.0, INF, -INF, math.nan], requires_grad=True)
    with torch.no_grad():
        assert float(expect(p, values)) == 3.0
    for found in torch.autograd.grad(expect(p, values), (p, values)):
        assert found.isfinite().all()


def test_expect_does_not_hide_what_is_not_a_number_where_something_is_possible():
    p = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    values = torch.tensor([[1.0, math.nan], [1.0, INF], [1.0, math.nan]])
    torch.testing.assert_close(expect(p, values), torch.tensor([math.nan, INF, 1.0]), equal_nan=True)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mixture_of_logs_by_hand(share):
    found = log_mixture(logs(1 / 2, 1 / 2, 0, 0), logs(1 / 4, 0, 3 / 4, 0), share)
    expected = logs(share / 2 + (1 - share) / 4, share / 2, 3 * (1 - share) / 4, 0)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)


BEYOND = [("nkd", {"gamma": 1.5}), *DIVERGENCES]


@pytest.mark.parametrize("kind, knobs", BEYOND, ids=labels(BEYOND))
@both_precisions
def test_a_token_that_is_impossible_for_both_changes_nothing_and_has_no_gradient(kind, knobs, dtype):
    logp, z = log_probs(5, 8).to(dtype), log_probs(5, 8, seed=1).to(dtype)
    never = torch.full((5, 2), -INF, dtype=dtype)
    extra = (torch.arange(5),) if kind == "nkd" else ()
    wide, wide_z = torch.cat([logp, never], -1), torch.cat([z, never], -1)
    close = {"rtol": 100 * torch.finfo(dtype).eps, "atol": 10 * torch.finfo(dtype).eps}
    found = VALUES[kind](wide, wide_z.log_softmax(-1), *extra, **knobs)
    torch.testing.assert_close(found, VALUES[kind](logp, z.log_softmax(-1), *extra, **knobs), **close)
    slopes = gradient(kind, knobs, wide, wide_z, *extra)
    torch.testing.assert_close(slopes[:, :8], gradient(kind, knobs, logp, z, *extra), **close)
    assert (slopes[:, 8:] == 0).all()


def test_nkd_of_a_target_that_is_the_only_possible_token_for_both_is_0_with_no_gradient():
    certain, z = logs(1, 0, 0), torch.tensor([1.0, -INF, -INF], dtype=F64)
    assert float(nkd(certain, z.log_softmax(-1), torch.tensor(0))) == 0
    assert (gradient("nkd", {}, certain, z, torch.tensor(0)) == 0).all()


ZEROS_OF_TEACHER = logs(1, 0, 0), logs(1 / 4, 1 / 4, 1 / 2)


@pytest.mark.parametrize(
    "kind, knobs, expected",
    [
        ("forward_kl", {}, ln(4)), ("reverse_kl", {}, INF), ("total_variation", {}, 3 / 4), ("hellinger", {}, 1 / 2),
        ("skew_forward_kl", {"alpha": 0.5}, -ln(5 / 8)), ("adaptive_kl", {}, INF), ("balanced_kl", {}, INF),
        ("taid", {"t": 0.5}, ln(4)), ("alpha_beta", {"alpha": 1, "beta": 0}, ln(4)),
        ("alpha_beta", {"alpha": 1, "beta": 1}, 1 / 2 * (9 / 16 + 1 / 16 + 1 / 4)),
        *(("alpha_beta", {"alpha": a, "beta": b}, INF) for a, b in (
            (0, 1), (0, 0), (1, -1), (-1, 1), (-1, -1), (-1, 0), (0, -1), (-0.5, 1.5), (-0.5, -0.25), (0.5, -1.5),
        )),
    ],
)  # fmt: skip
def test_impossible_tokens_of_the_teacher_by_hand(kind, knobs, expected):
    assert float(VALUES[kind](*ZEROS_OF_TEACHER, **knobs)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("alpha, beta, expected", [(0, 1, ln(4)), (1, 0, INF), (-1, -1, INF), (-1.5, 0.5, INF)])
def test_impossible_tokens_of_the_student_by_hand(alpha, beta, expected):
    teacher, student = reversed(ZEROS_OF_TEACHER)
    assert float(alpha_beta(teacher, student, alpha=alpha, beta=beta)) == pytest.approx(expected, rel=1e-14)


@every_divergence
@both_precisions
def test_where_a_value_is_finite_beside_impossible_tokens_so_is_its_gradient(kind, knobs, dtype):
    zeros = torch.arange(12) % 3 == 0
    logp = log_probs(6, 12).to(dtype).masked_fill(zeros, -INF).log_softmax(-1)
    for teacher, z in ((logp, log_probs(6, 12, seed=1).to(dtype)), (log_probs(6, 12).to(dtype), logp)):
        if VALUES[kind](teacher, z.log_softmax(-1), **knobs).isfinite().all():
            assert gradient(kind, knobs, teacher, z).isfinite().all()


DISJOINT = [
    ("forward_kl", {}, INF), ("reverse_kl", {}, INF),
    ("jsd", {}, ln(2)), ("jsd", {"beta": 0.25}, 0.25 * ln(4) + 0.75 * ln(4 / 3)),
    ("skew_forward_kl", {"alpha": 0.1}, ln(10)), ("skew_reverse_kl", {"alpha": 0.1}, ln(10)),
    ("skew_reverse_kl", {"alpha": 0.1, "detach_mixture": True}, ln(10)), ("skew_forward_kl", {"alpha": 0.0}, INF),
    ("total_variation", {}, 1), ("hellinger", {}, 1), ("alpha_beta", {"alpha": 0.5, "beta": 0.5}, 4),
    ("alpha_beta", {"alpha": 0.3, "beta": 0.7}, 1 / 0.21), ("adaptive_kl", {}, INF), ("balanced_kl", {}, INF),
    ("mixture", {"of": {"jsd": 0.5, "hellinger": 0.5}}, (1 + ln(2)) / 2),
]  # fmt: skip


@pytest.mark.parametrize("kind, knobs, expected", DISJOINT, ids=labels([d[:2] for d in DISJOINT]))
@both_precisions
def test_disjoint_supports_are_at_the_end_of_the_range(kind, knobs, expected, dtype):
    logp, logq = logs(1 / 2, 1 / 2, 0, 0).to(dtype), logs(0, 0, 1 / 4, 3 / 4).to(dtype)
    assert float(VALUES[kind](logp, logq, **knobs)) == pytest.approx(expected, rel=10 * torch.finfo(dtype).eps)
    if math.isfinite(expected):
        assert gradient(kind, knobs, logp, logq).isfinite().all()


# -- cross-entropy ----------------------------------------------------------------------------------------------------


def test_forward_kl_to_a_certain_teacher_is_cross_entropy():
    certain = logs(0, 0, 1, 0)
    logq = log_probs(4)
    assert float(forward_kl(certain, logq)) == pytest.approx(float(cross_entropy(logq, torch.tensor(2))), rel=1e-14)


def test_expected_cross_entropy_is_entropy_plus_forward_kl():
    logp, logq = log_probs(31), log_probs(31, seed=1)
    expected = float(Categorical(logits=logp).entropy() + forward_kl(logp, logq))
    every_token = cross_entropy(logq.expand(31, 31), torch.arange(31))
    assert float((logp.exp() * every_token).sum()) == pytest.approx(expected, rel=1e-12)
