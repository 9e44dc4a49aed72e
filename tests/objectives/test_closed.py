"""Closed forms against autograd of the formula that they stand for, finite differences, and each other's precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmkd.objectives.closed import CLOSED
from llmkd.objectives.distribution import Softmax, distribution
from llmkd.objectives.divergences import VALUES
from llmkd.terms import TERMS

from dense import F64, GRID, labels, relative

INF = math.inf
FORMS = [(kind, knobs) for kind, knobs in GRID if kind in CLOSED] + [("taid", {"t": 0.0})]
every_form = pytest.mark.parametrize("kind, knobs", FORMS, ids=labels(FORMS))
examples = settings(deadline=None, derandomize=True, max_examples=30)


def log_probs(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, dtype=F64, generator=generator)).log_softmax(-1)


def closed(kind: str, knobs: dict, logp: Tensor, logq: Tensor) -> tuple[Tensor, Tensor]:
    return CLOSED[kind](softmax(logp), softmax(logq), **knobs)


def softmax(log: Tensor) -> Softmax:
    """Of log-probabilities: their own logits."""
    return Softmax(log, log.exp(), torch.zeros_like(log[..., 0]))


def by_autograd(kind: str, knobs: dict, logp: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Value of the formula and its gradient to the student's logits."""
    z = z.detach().requires_grad_()
    value = VALUES[kind](logp, z.log_softmax(-1), **knobs)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


class ClosedForm(torch.autograd.Function):
    """A divergence of the student's logits whose backward pass is the closed form: what gradcheck is to judge."""

    @staticmethod
    def forward(ctx, z, logp, kind, knobs):
        value, slope = closed(kind, knobs, logp, z.log_softmax(-1))
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx, upstream):
        return ctx.saved_tensors[0] * upstream.unsqueeze(-1), None, None, None


def holds_something_fixed(kind: str, knobs: dict) -> bool:
    """Whether the gradient leaves out a part of the formula on purpose: finite differences cannot judge it."""
    detached = kind in ("adaptive_kl", "taid") or "detach_mixture" in knobs
    return detached or any(holds_something_fixed(part, {}) for part in knobs.get("of", ()))


def test_every_divergence_has_a_closed_form():
    assert set(CLOSED) == {kind for kind, row in TERMS.items() if row.divergence}


@every_form
@pytest.mark.parametrize("shape", [(5, 8), (64, 211)])
def test_a_closed_form_is_autograd_of_its_formula(kind, knobs, shape):
    logp, z = log_probs(*shape), log_probs(*shape, seed=1)
    value, slope = closed(kind, knobs, logp, z)
    expected, expected_slope = by_autograd(kind, knobs, logp, z)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-10, atol=1e-13)


JUDGED = [form for form in FORMS if not holds_something_fixed(*form) and form[0] != "total_variation"]


@pytest.mark.parametrize("kind, knobs", [*JUDGED, ("total_variation", {})])
def test_a_closed_gradient_passes_gradcheck(kind, knobs):
    z = log_probs(3, 8, seed=1, spread=1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: ClosedForm.apply(z, log_probs(3, 8, spread=1.0), kind, knobs), z)


@every_form
def test_a_shift_of_all_logits_changes_nothing_so_gradients_sum_to_zero(kind, knobs):
    _, slope = closed(kind, knobs, log_probs(20, 31), log_probs(20, 31, seed=1))
    assert float((slope.sum(-1) / slope.abs().sum(-1).clamp(min=1)).abs().max()) < 1e-13


@every_form
def test_what_it_is_given_is_left_as_it_was(kind, knobs):
    sides = [softmax(log_probs(5, 8)), softmax(log_probs(5, 8, seed=1))]
    given = [x for side in sides for x in (side.logits, side.prob, side.normalizer)]
    before = [x.clone() for x in given]
    CLOSED[kind](*sides, **knobs)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


# -- near and at equality ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, knobs", [("forward_kl", {}), ("reverse_kl", {}), ("jsd", {"beta": 0.5}),
                                         ("skew_forward_kl", {"alpha": 0.1})])  # fmt: skip
def test_in_float32_a_value_keeps_its_digits_where_one_model_has_much_larger_logits(kind, knobs):
    """Its logits are 64 above the other's, which no probability shows: a mean of their differences would."""
    z = log_probs(256, 500).float()
    y = z + log_probs(256, 500, seed=1, spread=1.0).float() + 64
    value, _ = CLOSED[kind](distribution(y), distribution(z), **knobs)
    exact = VALUES[kind](y.double().log_softmax(-1), z.double().log_softmax(-1), **knobs)
    assert float(((value.double() - exact) / exact).abs().max()) < 1.5e-4


@every_form
@pytest.mark.parametrize("noise", [1e-1, 1e-3])
def test_in_float32_a_gradient_near_equality_keeps_its_digits(kind, knobs, noise):
    """A gradient that is the difference of two numbers a thousand times as large has lost three digits, not all."""
    z = log_probs(64, 211).float()
    logp = (z + noise * log_probs(64, 211, seed=1, spread=1.0).float()).log_softmax(-1)
    logq = z.log_softmax(-1)
    _, exact = by_autograd(kind, knobs, logp.double().log_softmax(-1), logq.double())
    _, found = closed(kind, knobs, logp, logq)
    if knobs != {"t": 0.0}:
        assert relative(found, exact) < 3e-6 / noise


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_at_equality_there_is_no_value_and_no_gradient(kind, knobs, dtype):
    logp = log_probs(50, 211).to(dtype)
    value, slope = closed(kind, knobs, logp, logp.clone())
    rounding = 20 * torch.finfo(dtype).eps
    power = sum(knobs.values()) if kind == "alpha_beta" else 1
    assert float(slope.abs().max()) <= rounding * max(1.0, float((power * logp).exp().max()))
    # Only the interpolated teacher is normalised again.
    assert float(value.abs().max()) <= (rounding if kind == "taid" else 0)


EXACT = ["forward_kl", "reverse_kl", "jsd", "total_variation", "alpha_beta", "adaptive_kl", "balanced_kl"]


@pytest.mark.parametrize("kind, knobs", [form for form in FORMS if form[0] in EXACT])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_at_equality_the_gradient_is_exactly_zero(kind, knobs, dtype):
    logp = log_probs(50, 211).to(dtype)
    assert (closed(kind, knobs, logp, logp.clone())[1] == 0).all()


# -- where they give up -----------------------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("side", ["teacher", "student", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_beside_an_impossible_token_a_closed_form_is_right_or_its_value_is_no_number(kind, knobs, side, dtype):
    """What makes the row block take the formula itself: never a finite value with a wrong gradient."""
    never = torch.arange(8) % 3 == 0
    logp, logq = log_probs(5, 8).to(dtype), log_probs(5, 8, seed=1).to(dtype)
    if side != "student":
        logp = logp.masked_fill(never, -INF).log_softmax(-1)
    if side != "teacher":
        logq = logq.masked_fill(never, -INF).log_softmax(-1)
    value, slope = closed(kind, knobs, logp, logq)
    expected, expected_slope = by_autograd(kind, knobs, logp, logq)
    well = value.isfinite()
    close = {"rtol": 1e3 * torch.finfo(dtype).eps, "atol": 100 * torch.finfo(dtype).eps}
    torch.testing.assert_close(value[well], expected[well], **close)
    torch.testing.assert_close(slope[well], expected_slope[well], **close)


@every_form
@examples
@given(pairs=st.lists(st.tuples(*[st.floats(-60, 60, width=32)] * 2), min_size=2, max_size=12))
def test_in_float32_a_finite_value_has_a_finite_gradient_however_far_apart(kind, knobs, pairs):
    logp, logq = torch.tensor(pairs).t().log_softmax(-1)
    value, slope = closed(kind, knobs, logp.unsqueeze(0), logq.unsqueeze(0))
    assert slope.isfinite().all() or not value.isfinite().all()


@every_form
def test_a_student_at_the_smallest_numbers_of_float32_has_a_finite_gradient(kind, knobs):
    """Probabilities of 1e-45 to 1e-38, which have lost their digits, beside a teacher for whom they are 0."""
    logq = torch.cat([torch.zeros(200, 1), -torch.linspace(85, 104, 200)[:, None], torch.full((200, 1), -20.0)], -1)
    logp = torch.cat([torch.zeros(200, 1), torch.full((200, 1), -200.0), torch.full((200, 1), -19.0)], -1)
    value, slope = closed(kind, knobs, logp, logq)
    assert slope[value.isfinite()].isfinite().all()
