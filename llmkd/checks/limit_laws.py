"""Laws that tie one formula to another: limits, special cases, symmetries and inequalities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmkd.checks import oracle
from llmkd.checks.law import Case, Finding, Law, Setting, at_most, normals, same
from llmkd.checks.oracle import Point
from llmkd.objectives.divergences import VALUES

GROUP = "formulas"
NEARER = (1e-2, 1e-4, 1e-6)
"""Distances from a limit."""
SHAPES = ((1, 2), (2, 5), (4, 11))


def laws(setting: Setting) -> list[Law]:
    def cases(**grid: Any) -> list[Case]:
        rest: list[dict[str, Any]] = [{}]
        for name, values in grid.items():
            rest = [{**case, name: value} for case in rest for value in values]
        return [{"tokens": n, "vocabulary": v, "seed": setting.seed, **case} for n, v in SHAPES for case in rest]

    def law(name: str, entry: str, holds: Callable[..., Finding | list[Finding]], **grid: Any) -> Law:
        return Law(name, GROUP, entry, cases(**grid), lambda tokens, vocabulary, seed, **case: holds(
            *pair(tokens, vocabulary, seed, setting.device), **case))  # fmt: skip

    return [
        law("tends to forward KL as alpha -> 0", "skew_forward_kl", skew_forward, alpha=(*NEARER, 0.0)),
        law("tends to reverse KL as alpha -> 0", "skew_reverse_kl", skew_reverse, alpha=(*NEARER, 0.0)),
        law("over beta tends to forward KL as beta -> 0", "jsd", jsd_to_forward, beta=NEARER),
        law("over 1 - beta tends to reverse KL as beta -> 1", "jsd", jsd_to_reverse, gap=NEARER),
        law("with the roles swapped is that of 1 - beta", "jsd", jsd_swapped, beta=(0.5, 0.1, 0.75)),
        law("is the named divergence at its special points", "alpha_beta", special_points, divergence=SPECIAL),
        law("is continuous at its singular points", "alpha_beta", continuity, point=SINGULAR, step=NEARER),
        law("is forward KL at t = 1 and nothing at t = 0", "taid", taid_ends),
        law("tends to forward KL as t -> 1 and to nothing as t -> 0", "taid", taid_limits, gap=NEARER),
        law("lies between forward and reverse KL", "adaptive_kl", between, mu=(0.0, 0.5, 0.9, 1.0)),
        law("of equal weights is their multiple of both KLs", "balanced_kl", even_balance, weight=(0.5, 1.0, 2.0)),
        law("weighs both KLs between low and high", "balanced_kl", balance_bounds, low=(0.0, 1.0), high=(1.0, 3.0)),
        law("of one part is that part", "mixture", lonely_mixture, part=PARTS),
        law("with student and teacher swapped is forward KL", "reverse_kl", swapped),
        law("is cross-entropy where the teacher is sure of the target", "forward_kl", sure_forward),
        law("is cross-entropy where the teacher is sure of the target", "nkd", sure_nkd, gamma=(0.0, 1.5)),
        law("expected under the teacher is its entropy and forward KL", "cross_entropy", expected_cross_entropy),
        law("squared Hellinger <= total variation <= sqrt(2) Hellinger", "hellinger", hellinger_beside_variation),
        law("squared Hellinger <= total variation <= sqrt(2) Hellinger", "total_variation", variation_beside_hellinger),
        law("sees a shift of all logits", "squared_logit", shifted, shift=(1.0, -2.0)),
    ]  # fmt: skip


def pair(tokens: int, vocabulary: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a teacher and a student."""
    logits = (normals(tokens, vocabulary, seed=seed + at) for at in range(2))
    logp, logq = (z.log_softmax(-1).to(device) for z in logits)
    return logp, logq


def value(kind: str, logp: Tensor, logq: Tensor, **knobs: Any) -> Tensor:
    """The code under test."""
    return VALUES[kind](logp, logq, **knobs)


def truth(kind: str, logp: Tensor, logq: Tensor, **knobs: Any) -> Tensor:
    """The independent formula."""
    return oracle.value(kind, Point(logp.exp(), logq.exp(), logq.exp()), knobs)


def within(found: Tensor, limit: Tensor, radius: Tensor, what: str = "value") -> Finding:
    """``|found - limit| <= radius``, and what rounding adds."""
    return at_most((found - limit).abs() - radius, 0.0, 1e-9, f"distance of the {what} from its limit, less the bound")


def spread_of(logp: Tensor, logq: Tensor) -> Tensor:
    """``1 + sum_v p_v^2 / q_v``: how far a mixture with a share of p can be from q, per share."""
    return 1 + (2 * logp - logq).exp().sum(-1)


# -- limits -----------------------------------------------------------------------------------------------------------


def skew_forward(logp: Tensor, logq: Tensor, alpha: float) -> Finding:
    """``|d skew / d alpha| <= sum_v p_v |p_v - q_v| / m_v <= (1 + sum_v p_v^2 / q_v) / (1 - alpha)``."""
    radius = alpha / (1 - alpha) * spread_of(logp, logq)
    return within(value("skew_forward_kl", logp, logq, alpha=alpha), truth("forward_kl", logp, logq), radius)


def skew_reverse(logp: Tensor, logq: Tensor, alpha: float) -> Finding:
    radius = alpha / (1 - alpha) * spread_of(logq, logp)
    return within(value("skew_reverse_kl", logp, logq, alpha=alpha), truth("reverse_kl", logp, logq), radius)


def jsd_to_forward(logp: Tensor, logq: Tensor, beta: float) -> Finding:
    """``KL(q || m)`` is of the order beta^2, so that ``KL(p || m)`` is what remains."""
    radius = 2 * beta / (1 - beta) * spread_of(logp, logq)
    return within(value("jsd", logp, logq, beta=beta) / beta, truth("forward_kl", logp, logq), radius)


def jsd_to_reverse(logp: Tensor, logq: Tensor, gap: float) -> Finding:
    radius = 2 * gap / (1 - gap) * spread_of(logq, logp)
    return within(value("jsd", logp, logq, beta=1 - gap) / gap, truth("reverse_kl", logp, logq), radius)


def jsd_swapped(logp: Tensor, logq: Tensor, beta: float) -> Finding:
    return same(value("jsd", logp, logq, beta=beta), value("jsd", logq, logp, beta=1 - beta), 1e-10, "value")


SINGULAR = ((1.0, 0.0), (-0.75, 0.0), (0.0, 1.0), (0.0, -0.5), (0.5, -0.5), (-0.4, 0.4), (0.0, 0.0))
"""Points (alpha, beta) where a divisor is 0."""


def continuity(logp: Tensor, logq: Tensor, point: tuple[float, float], step: float) -> list[Finding]:
    """From eight directions, in value and gradient: within a multiple of the step that the powers and logarithms in the
    formula allow."""
    alpha, beta = point
    mean = (p := logp.exp()) ** alpha * (q := logq.exp()) ** beta + p ** (alpha + beta) + q ** (alpha + beta)
    room = 10 * step * (mean * (1 + logp.abs() + logq.abs()) ** 3).sum(-1)
    limit, slope = _with_gradient(logp, logq, alpha, beta)
    expected = truth("alpha_beta", logp, logq, alpha=alpha, beta=beta)
    found = [same(limit, expected, 1e-9, f"value at {point}")]
    for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -2)):
        moved, its_slope = _with_gradient(logp, logq, alpha + right * step, beta + up * step)
        found.append(within(moved, limit, 2 * room, f"value from ({right}, {up})"))
        found.append(within(its_slope, slope, 2 * room.unsqueeze(-1), f"gradient from ({right}, {up})"))
    return found


def _with_gradient(logp: Tensor, logq: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    leaf = logq.clone().requires_grad_()
    found = value("alpha_beta", logp, leaf, alpha=alpha, beta=beta)
    (slope,) = torch.autograd.grad(found.sum(), leaf)
    return found.detach(), slope


def taid_limits(logp: Tensor, logq: Tensor, gap: float) -> list[Finding]:
    radius = 4 * gap * ((1 + (logp - logq).abs()) ** 2 * (1 + (logp - logq).exp())).amax(-1)
    forward = truth("forward_kl", logp, logq)
    return [
        within(value("taid", logp, logq, t=1 - gap), forward, radius),
        within(value("taid", logp, logq, t=gap), torch.zeros_like(forward), radius),
    ]


# -- special cases ----------------------------------------------------------------------------------------------------

SPECIAL: tuple[str, ...] = (
    "forward_kl", "reverse_kl", "4 hellinger", "1/2 euclidean distance^2", "1/2 distance^2 of logs"
)  # fmt: skip


def special_points(logp: Tensor, logq: Tensor, divergence: str) -> Finding:
    p, q = logp.exp(), logq.exp()
    knobs, expected = {
        "forward_kl": ((1.0, 0.0), truth("forward_kl", logp, logq)),
        "reverse_kl": ((0.0, 1.0), truth("reverse_kl", logp, logq)),
        "4 hellinger": ((0.5, 0.5), 4 * (1 - (p * q).sqrt().sum(-1))),
        "1/2 euclidean distance^2": ((1.0, 1.0), 0.5 * (p - q).square().sum(-1)),
        "1/2 distance^2 of logs": ((0.0, 0.0), 0.5 * (logp - logq).square().sum(-1)),
    }[divergence]
    return same(value("alpha_beta", logp, logq, alpha=knobs[0], beta=knobs[1]), expected, 1e-9, "value")


def taid_ends(logp: Tensor, logq: Tensor) -> list[Finding]:
    forward = truth("forward_kl", logp, logq)
    return [
        same(value("taid", logp, logq, t=1.0), forward, 1e-10, "value at t = 1"),
        same(value("taid", logp, logq, t=0.0), torch.zeros_like(forward), 1e-10, "value at t = 0"),
    ]


def both_kls(logp: Tensor, logq: Tensor) -> Tensor:
    return torch.stack([truth("forward_kl", logp, logq), truth("reverse_kl", logp, logq)])


def between(logp: Tensor, logq: Tensor, mu: float) -> list[Finding]:
    found, kls = value("adaptive_kl", logp, logq, mu=mu), both_kls(logp, logq)
    return [at_most(found, kls.amax(0), 1e-10, "value"), at_most(-found, -kls.amin(0), 1e-10, "minus the value")]


def even_balance(logp: Tensor, logq: Tensor, weight: float) -> Finding:
    found = value("balanced_kl", logp, logq, low=weight, high=weight)
    return same(found, weight * both_kls(logp, logq).sum(0), 1e-10, "value")


def balance_bounds(logp: Tensor, logq: Tensor, low: float, high: float) -> list[Finding]:
    found, total = value("balanced_kl", logp, logq, low=low, high=high), both_kls(logp, logq).sum(0)
    bounds = sorted((low, high))
    return [
        at_most(found, bounds[1] * total, 1e-10, "value"),
        at_most(-found, -bounds[0] * total, 1e-10, "minus the value"),
    ]


PARTS = ("forward_kl", "reverse_kl", "jsd", "total_variation", "hellinger", "adaptive_kl", "balanced_kl")


def lonely_mixture(logp: Tensor, logq: Tensor, part: str) -> Finding:
    return same(value("mixture", logp, logq, of={part: 1.0}), truth(part, logp, logq), 1e-10, "value")


def swapped(logp: Tensor, logq: Tensor) -> Finding:
    return same(value("reverse_kl", logq, logp), truth("forward_kl", logp, logq), 1e-10, "value")


def sure(logp: Tensor) -> tuple[Tensor, Tensor]:
    """A teacher that gives all to one token, and that token."""
    target = logp.argmin(-1)
    return torch.full_like(logp, -math.inf).scatter(-1, target.unsqueeze(-1), 0.0), target


def sure_forward(logp: Tensor, logq: Tensor) -> Finding:
    certain, target = sure(logp)
    hit = logq.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return same(value("forward_kl", certain, logq), -hit, 1e-10, "value")


def sure_nkd(logp: Tensor, logq: Tensor, gamma: float) -> Finding:
    certain, target = sure(logp)
    hit = logq.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return same(VALUES["nkd"](certain, logq, target, gamma=gamma), -hit, 1e-10, "value")


def expected_cross_entropy(logp: Tensor, logq: Tensor) -> Finding:
    size = logp.shape[-1]
    each = VALUES["cross_entropy"](logq.unsqueeze(-2).expand(-1, size, -1), _all_targets(logq))
    expected = oracle.entropy(logp.exp()) + truth("forward_kl", logp, logq)
    return same((logp.exp() * each).sum(-1), expected, 1e-10, "mean over the targets")


def _all_targets(logq: Tensor) -> Tensor:
    return torch.arange(logq.shape[-1], device=logq.device).expand(logq.shape)


# -- inequalities -----------------------------------------------------------------------------------------------------


def hellinger_beside_variation(logp: Tensor, logq: Tensor) -> list[Finding]:
    return _nested(value("hellinger", logp, logq), truth("total_variation", logp, logq))


def variation_beside_hellinger(logp: Tensor, logq: Tensor) -> list[Finding]:
    return _nested(truth("hellinger", logp, logq), value("total_variation", logp, logq))


def _nested(squared: Tensor, distance: Tensor) -> list[Finding]:
    return [
        at_most(squared, distance, 1e-10, "squared Hellinger distance"),
        at_most(distance, (2 * squared).sqrt(), 1e-10, "total variation"),
    ]


def shifted(logp: Tensor, logq: Tensor, shift: float) -> Finding:
    """Which changes no probability: so the term is a loss and no divergence."""
    found = VALUES["squared_logit"](logp, logp + shift)
    return same(found, torch.full_like(found, shift**2), 1e-10, "value")
