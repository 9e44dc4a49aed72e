"""Divergences one by one: their limits, how they turn into each other, and what their knobs do."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from llmkd.objectives import divergences
from llmkd.objectives.divergences import (
    HEAD,
    adaptive_kl,
    alpha_beta,
    balanced_kl,
    cross_entropy,
    forward_kl,
    head_share,
    hellinger,
    interpolated,
    jsd,
    mixture,
    nkd,
    power_difference,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    squared_logit,
    surer_student,
    taid,
    total_variation,
)

import dense
from dense import F64

INF = math.inf


def log_probs(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, dtype=F64, generator=generator)).log_softmax(-1)


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=F64).log()


P, Q = log_probs(20, 31), log_probs(20, 31, seed=1)
NEAR_P, NEAR_Q = log_probs(20, 31, spread=1.0), log_probs(20, 31, seed=1, spread=1.0)


def slope(formula, z: Tensor = Q) -> Tensor:
    """The gradient of ``formula(logq)`` to the student's logits."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(formula(z.log_softmax(-1)).sum(), z)[0]


def assert_same(found: Tensor, expected: Tensor, rtol: float = 1e-12, atol: float = 1e-14) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


# -- skew and jsd -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew, plain", [(skew_forward_kl, forward_kl), (skew_reverse_kl, reverse_kl)])
def test_a_skew_of_0_is_the_kl(skew, plain):
    assert torch.equal(skew(P, Q, alpha=0.0), plain(P, Q))
    assert_same(skew(NEAR_P, NEAR_Q, alpha=1e-9), plain(NEAR_P, NEAR_Q), rtol=1e-6)
    assert torch.equal(slope(lambda q: skew(P, q, alpha=0.0)), slope(lambda q: plain(P, q)))


def test_the_reverse_skew_is_the_forward_one_of_the_other_two():
    assert_same(skew_reverse_kl(P, Q, alpha=0.3), skew_forward_kl(Q, P, alpha=0.3))


def test_a_detached_mixture_has_the_same_value_and_another_gradient():
    attached, detached = (lambda q, d=d: skew_reverse_kl(P, q, alpha=0.3, detach_mixture=d) for d in (False, True))
    assert torch.equal(attached(Q), detached(Q))
    held = (0.7 * P.exp() + 0.3 * Q.exp()).log()
    assert_same(slope(detached), slope(lambda q: reverse_kl(held, q)))
    assert float((slope(detached) - slope(attached)).abs().max()) > 0.01


def test_jsd_is_a_mixture_of_both_skews():
    for beta in (0.1, 0.5, 0.8):
        parts = beta * skew_forward_kl(P, Q, alpha=beta) + (1 - beta) * skew_reverse_kl(P, Q, alpha=1 - beta)
        assert_same(jsd(P, Q, beta=beta), parts)


@pytest.mark.parametrize("beta, plain", [(1e-7, forward_kl), (1 - 1e-7, reverse_kl)])
def test_jsd_over_its_smaller_weight_tends_to_a_kl(beta, plain):
    found, expected = jsd(NEAR_P, NEAR_Q, beta=beta) / 1e-7, plain(NEAR_P, NEAR_Q)
    assert_same(found, expected, rtol=1e-5)
    slopes = slope(lambda q: jsd(NEAR_P, q, beta=beta), NEAR_Q) / 1e-7
    assert dense.relative(slopes, slope(lambda q: plain(NEAR_P, q), NEAR_Q)) < 1e-5


def test_jsd_with_the_sides_swapped_is_jsd_of_1_minus_beta():
    assert_same(jsd(P, Q, beta=0.2), jsd(Q, P, beta=0.8))
    assert_same(jsd(P, Q), jsd(Q, P))


def test_the_root_of_the_even_jsd_keeps_the_triangle_inequality():
    third = log_probs(20, 31, seed=2)
    assert (jsd(P, Q).sqrt() <= jsd(P, third).sqrt() + jsd(third, Q).sqrt()).all()


# -- alpha-beta -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alpha, beta, expected",
    [
        (1, 0, forward_kl),
        (0, 1, reverse_kl),
        (0.5, 0.5, lambda p, q: 4 * hellinger(p, q)),
        (1, 1, lambda p, q: 0.5 * (p.exp() - q.exp()).square().sum(-1)),
        (0, 0, lambda p, q: 0.5 * (p - q).square().sum(-1)),
        (2, -1, lambda p, q: 0.5 * ((2 * p - q).exp().sum(-1) - 1)),
        (-1, 2, lambda p, q: 0.5 * ((2 * q - p).exp().sum(-1) - 1)),
    ],
)
def test_alpha_beta_at_its_named_points(alpha, beta, expected):
    assert_same(alpha_beta(P, Q, alpha=alpha, beta=beta), expected(P, Q), rtol=1e-11)
    found = slope(lambda q: alpha_beta(P, q, alpha=alpha, beta=beta))
    wanted = slope(lambda q: expected(P, q))
    assert dense.relative(found, wanted) < 1e-11


@pytest.mark.parametrize("alpha, beta", [(0.3, 0.7), (1.5, -0.5), (1, 0), (0.5, -0.5), (-0.2, -0.7), (0, 0), (2, 2)])
def test_alpha_beta_with_the_sides_swapped_is_that_of_beta_and_alpha(alpha, beta):
    assert_same(alpha_beta(P, Q, alpha=alpha, beta=beta), alpha_beta(Q, P, alpha=beta, beta=alpha), rtol=1e-11)


@pytest.mark.parametrize("power", [0.5, 2.0, -1.0])
def test_alpha_beta_of_powers_is_that_of_multiplied_knobs(power):
    """``D(a, b)(p^c, q^c) = c^2 D(c a, c b)(p, q)``, for what need not sum to 1."""
    found = alpha_beta(power * P, power * Q, alpha=0.3, beta=0.6)
    assert_same(found, power**2 * alpha_beta(P, Q, alpha=power * 0.3, beta=power * 0.6), rtol=1e-11)


@pytest.mark.parametrize("a", [0.5, 2.0, -0.7])
def test_the_limits_of_alpha_beta_have_the_factor_of_one_over_a_squared(a):
    pa, qa = (a * P).exp(), (a * Q).exp()
    log_ratio = a * (P - Q)
    expected = {
        (a, 0): (pa * log_ratio - pa + qa).sum(-1) / a**2,
        (0, a): (qa * -log_ratio - qa + pa).sum(-1) / a**2,
        (a, -a): (-log_ratio + pa / qa - 1).sum(-1) / a**2,
    }
    for (alpha, beta), value in expected.items():
        assert_same(alpha_beta(P, Q, alpha=alpha, beta=beta), value, rtol=1e-10)


SINGULAR = [(1, 0), (-0.5, 0), (0, 1), (0, -0.5), (0.5, -0.5), (-1, 1), (0, 0)]


@pytest.mark.parametrize("alpha, beta", SINGULAR)
@pytest.mark.parametrize("direction", [(1, 1), (1, -1), (0, 1), (1, 0), (-0.6, 0.8)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_alpha_beta_is_continuous_where_a_divisor_is_0(alpha, beta, direction, dtype):
    p, q = NEAR_P.to(dtype), NEAR_Q.to(dtype)

    def at(step: float) -> tuple[Tensor, Tensor]:
        knobs = {"alpha": alpha + step * direction[0], "beta": beta + step * direction[1]}
        return alpha_beta(p, q, **knobs).double(), slope(lambda x: alpha_beta(p, x, **knobs), q).double()

    for step in (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-13):
        for found, expected in zip(at(step), at(0.0), strict=True):
            assert dense.relative(found, expected) < 20 * step + 500 * torch.finfo(dtype).eps


@pytest.mark.parametrize("power", [1.0, -0.5, 1e-3, 1e-9, 0.0])
def test_a_difference_of_powers_keeps_its_digits(power):
    """Against ``exp(y) expm1(power step) / power``, whose digits are all right."""
    y, step = torch.linspace(-5, 0, 11, dtype=F64), torch.logspace(-12, 1, 11, dtype=F64)
    expected = y.exp() * (torch.expm1(power * step) / power if power else step)
    assert_same(power_difference(y + power * step, y, power, step), expected, rtol=1e-13)
    assert (power_difference(y, y, power, torch.zeros_like(y)) == 0).all()


# -- adaptive and balanced --------------------------------------------------------------------------------------------


def test_adaptive_kl_lies_between_both_kls_with_weights_that_sum_to_1():
    share = head_share(P, Q, 0.5)
    assert ((share >= 0) & (share <= 1)).all() and float(share.std()) > 0.1
    assert_same(adaptive_kl(P, Q), share * forward_kl(P, Q) + (1 - share) * reverse_kl(P, Q))


def test_the_weights_of_adaptive_kl_carry_no_gradient():
    share = head_share(P, Q, 0.5).unsqueeze(-1)
    expected = share * slope(lambda q: forward_kl(P, q)) + (1 - share) * slope(lambda q: reverse_kl(P, q))
    assert_same(slope(lambda q: adaptive_kl(P, q)), expected)


@pytest.mark.parametrize("mu, head", [(0.0, 2), (0.39, 2), (0.69, 2), (0.71, 3), (0.89, 3), (0.91, 6), (1.0, 8)])
def test_the_head_is_what_stays_within_mu_and_the_likeliest_token_always(mu, head):
    # From the likeliest on 0.4, 0.3, 0.2, 0.1; their gaps to the student 0.02, 0.01, 0.03, 0.02, which sum to 0.08.
    p, q = logs(0.2, 0.4, 0.1, 0.3), logs(0.2 - 0.03, 0.4 + 0.02, 0.1 + 0.02, 0.3 - 0.01)
    assert float(head_share(p, q, mu)) == pytest.approx(head / 8, rel=1e-10)


def test_a_token_with_which_the_mass_is_exactly_mu_is_in_the_head():
    p = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert p.exp().cumsum(-1).tolist() == [0.5, 0.75, 0.875, 1.0]
    q = torch.tensor([0.375, 0.125, 0.25, 0.25]).log()  # gaps of 1, 1, 1 and 1 eighths
    assert float(head_share(p, q, 0.75)) == pytest.approx(1 / 2)
    assert float(head_share(p, q, 0.7499)) == pytest.approx(1 / 4)


@pytest.mark.parametrize("size, flat", [(HEAD - 1, 0.0), (HEAD + 1, 0.0), (1000, 0.0), (1000, 0.3), (5000, 0.0)])
@pytest.mark.parametrize("mu", [0.1, 0.5, 0.9])
def test_a_head_of_more_tokens_than_are_looked_at_first(size, flat, mu):
    p, q = log_probs(4, size, spread=flat + 1e-3), log_probs(4, size, seed=1)
    assert_same(adaptive_kl(p, q, mu=mu), dense.adaptive_kl(p.exp(), q.exp(), mu), rtol=1e-10)


def test_how_many_tokens_are_looked_at_first_changes_nothing(monkeypatch):
    p, q = log_probs(20, 500), log_probs(20, 500, seed=1)
    expected = adaptive_kl(p, q, mu=0.8)
    for size in (1, 2, 7, 500, 1000):
        monkeypatch.setattr(divergences, "HEAD", size)
        assert_same(adaptive_kl(p, q, mu=0.8), expected)


def test_adaptive_kl_where_mu_is_1_is_forward_kl():
    """Though the sum of all probabilities is above 1 by rounding."""
    p, q = (log_probs(200, 5000, seed=s).float().log_softmax(-1) for s in (0, 1))
    assert float(p.exp().sort(descending=True).values.cumsum(-1).max()) > 1
    assert_same(adaptive_kl(p, q, mu=1.0), forward_kl(p, q), rtol=1e-5)


def test_adaptive_kl_of_equal_distributions_is_0_at_even_weights():
    assert (head_share(P, P, 0.5) == 0.5).all() and (adaptive_kl(P, P) == 0).all()


def test_balanced_kl_turns_where_the_student_becomes_surer_than_the_teacher():
    even, flat, sharp = logs(0.3, 0.7), logs(0.4, 0.6), logs(0.2, 0.8)
    forward, reverse = (lambda q: forward_kl(even, q)), (lambda q: reverse_kl(even, q))
    assert surer_student(even, sharp) and not surer_student(even, flat)
    assert float(balanced_kl(even, sharp)) == pytest.approx(float(2 * forward(sharp) + reverse(sharp)), rel=1e-14)
    assert float(balanced_kl(even, flat)) == pytest.approx(float(forward(flat) + 2 * reverse(flat)), rel=1e-14)


def test_balanced_kl_of_equally_sure_models_has_the_weights_of_a_flat_student():
    p, q = logs(0.25, 0.75), logs(0.75, 0.25)  # the same entropy to the last bit: a sum of two numbers
    assert not surer_student(p, q)
    assert float(balanced_kl(p, q)) == pytest.approx(float(forward_kl(p, q) + 2 * reverse_kl(p, q)), rel=1e-14)
    barely = logs(0.75 + 1e-12, 0.25 - 1e-12)
    assert surer_student(p, barely)


@pytest.mark.parametrize("weight", [0.5, 1.0, 3.0])
def test_balanced_kl_with_equal_weights_is_that_times_the_sum(weight):
    found = balanced_kl(P, Q, low=weight, high=weight)
    assert_same(found, weight * (forward_kl(P, Q) + reverse_kl(P, Q)))


def test_the_weights_of_balanced_kl_carry_no_gradient():
    surer = surer_student(P, Q).unsqueeze(-1)
    assert surer.any() and not surer.all()
    f, r = torch.where(surer, 5.0, 0.5), torch.where(surer, 0.5, 5.0)
    expected = f * slope(lambda q: forward_kl(P, q)) + r * slope(lambda q: reverse_kl(P, q))
    assert_same(slope(lambda q: balanced_kl(P, q, low=0.5, high=5.0)), expected)


def test_a_kl_that_weighs_nothing_adds_nothing_even_where_it_is_infinite():
    p, sharp = logs(1 / 2, 1 / 2, 0), logs(0.9, 0.05, 0.05)  # the student is the surer one: reverse KL weighs `low`
    assert float(balanced_kl(p, sharp, low=0.0)) == pytest.approx(2 * float(forward_kl(p, sharp)), rel=1e-14)
    q, flat = logs(0.9, 0.05, 0.05), logs(1 / 2, 1 / 2, 0)
    assert float(balanced_kl(q, flat, low=0.0)) == pytest.approx(2 * float(reverse_kl(q, flat)), rel=1e-14)


# -- taid and mixture -------------------------------------------------------------------------------------------------


def test_taid_at_1_is_forward_kl():
    assert torch.equal(taid(P, Q, t=1.0), forward_kl(P, Q))
    assert torch.equal(slope(lambda q: taid(P, q, t=1.0)), slope(lambda q: forward_kl(P, q)))


def test_taid_at_0_is_0_with_no_gradient():
    assert (taid(P, Q, t=0.0) == 0).all()
    assert float(slope(lambda q: taid(P, q, t=0.0)).abs().max()) < 1e-15


def test_taid_grows_with_t():
    found = [taid(P, Q, t=t / 10) for t in range(11)]
    assert all((below < above).all() for below, above in itertools.pairwise(found))


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_the_gradient_of_taid_is_that_of_a_cross_entropy_to_the_interpolated_teacher(t):
    r = (Q.exp() ** (1 - t) * P.exp() ** t).log().log_softmax(-1)
    assert_same(interpolated(P, Q, t), r)
    assert_same(slope(lambda q: taid(P, q, t=t)), slope(lambda q: -(r.exp() * q).sum(-1)))
    assert_same(taid(P, Q, t=t), forward_kl(r, Q))


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_what_is_impossible_for_either_side_is_so_for_the_interpolated_teacher(t):
    found = interpolated(logs(0, 1 / 2, 1 / 2, 0), logs(1 / 4, 0, 3 / 4, 0), t)
    assert found.tolist() == [-INF, -INF, 0.0, -INF]


def test_a_mixture_of_one_is_that_divergence_with_its_defaults():
    assert_same(mixture(P, Q, of={"jsd": 1.0}), jsd(P, Q, beta=0.5))
    assert_same(mixture(P, Q, of={"skew_forward_kl": 1.0}), skew_forward_kl(P, Q, alpha=0.1))


def test_a_mixture_is_the_weighted_sum_of_its_parts_in_value_and_gradient():
    of = {"total_variation": 0.2, "reverse_kl": 0.3, "balanced_kl": 0.5}
    parts = [(0.2, total_variation), (0.3, reverse_kl), (0.5, balanced_kl)]
    assert_same(mixture(P, Q, of=of), sum(weight * part(P, Q) for weight, part in parts))
    expected = sum(weight * slope(lambda q, part=part: part(P, q)) for weight, part in parts)
    assert_same(slope(lambda q: mixture(P, q, of=of)), expected)


# -- nkd and squared logits -------------------------------------------------------------------------------------------

TARGET = torch.arange(20)


def others(logp: Tensor, logq: Tensor, target: Tensor) -> Tensor:
    """The part of nkd that looks at the tokens beside the target, at gamma 1."""
    return nkd(logp, logq, target, gamma=1.0) - nkd(logp, logq, target, gamma=0.0)


def test_a_soft_cross_entropy_is_both_parts_of_nkd_and_the_odds_of_the_target():
    soft = -(P.exp() * Q).sum(-1)
    p, q = (x.gather(-1, TARGET[:, None]).squeeze(-1).exp() for x in (P, Q))
    expected = -p * q.log() + (1 - p) * others(P, Q, TARGET) - (1 - p) * torch.log1p(-q)
    assert_same(soft, expected, rtol=1e-10)


def test_the_part_beside_the_target_sees_the_others_among_themselves_alone():
    """However sure either side is of the target."""
    moved_p, moved_q = P.clone(), Q.clone()
    moved_p[TARGET, TARGET] += 5.0
    moved_q[TARGET, TARGET] -= 2.0
    found = others(moved_p.log_softmax(-1), moved_q.log_softmax(-1), TARGET)
    assert_same(found, others(P, Q, TARGET), rtol=1e-10)
    assert float(slope(lambda q: others(P, q, TARGET))[TARGET, TARGET].abs().max()) < 1e-15


def test_nkd_without_gamma_is_the_cross_entropy_times_the_teachers_probability():
    p = P.exp()[TARGET, TARGET]
    assert_same(nkd(P, Q, TARGET, gamma=0.0), p * cross_entropy(Q, TARGET))


def test_nkd_is_linear_in_gamma():
    low, mid, high = (nkd(P, Q, TARGET, gamma=g) for g in (0.0, 1.5, 3.0))
    assert_same(mid, (low + high) / 2)
    assert torch.equal(nkd(P, Q, TARGET), mid)


def test_of_two_tokens_the_other_one_is_certain():
    p, q = log_probs(20, 2), log_probs(20, 2, seed=1)
    assert (others(p, q, TARGET % 2).abs() < 1e-15).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nkd_of_a_certain_teacher_is_cross_entropy(dtype):
    certain, q = logs(0, 1, 0, 0).to(dtype), log_probs(4).to(dtype)
    found = nkd(certain, q, torch.tensor(1))
    assert float(found) == pytest.approx(float(cross_entropy(q, torch.tensor(1))), rel=1e-6)
    assert slope(lambda q: nkd(certain, q, torch.tensor(1)), q).isfinite().all()


def test_nkd_of_a_target_that_the_teacher_excludes_is_its_other_part_alone():
    never = P.clone()
    never[TARGET, TARGET] = -INF
    never = never.log_softmax(-1)
    assert (nkd(never, Q, TARGET, gamma=0.0) == 0).all()
    assert_same(nkd(never, Q, TARGET, gamma=1.0), others(P, Q, TARGET), rtol=1e-10)
    assert slope(lambda q: nkd(never, q, TARGET)).isfinite().all()


def test_nkd_of_a_target_that_is_impossible_for_both_is_its_other_part_alone():
    p, z = logs(0, 1 / 2, 1 / 2), torch.tensor([-INF, 0.0, 1.0], dtype=F64)
    others_alone = -0.5 * logs(1 / (1 + math.e), math.e / (1 + math.e)).sum()
    assert float(nkd(p, z.log_softmax(-1), torch.tensor(0), gamma=1.0)) == pytest.approx(float(others_alone), rel=1e-12)
    assert slope(lambda q: nkd(p, q, torch.tensor(0)), z).isfinite().all()


def test_squared_logit_sees_a_shift_that_no_probability_shows():
    y, x = log_probs(5, 31), log_probs(5, 31, seed=1)
    assert_same(squared_logit(y, x), ((y - x) ** 2).sum(-1) / 31)
    assert_same(squared_logit(x, x + 3.0), torch.full((5,), 9.0, dtype=F64))
    assert (squared_logit(x, x) == 0).all()
