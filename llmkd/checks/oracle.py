"""The terms once more: each formula as ``llmkd.terms`` declares it, of probabilities, in float64, with nothing shared
with ``llmkd.objectives``.

What carries no gradient is a function of ``held``, the student's distribution once more: a constant for finite
differences and for autograd alike.  An impossible token (p = q = 0) adds nothing; where a formula says infinity, so
does this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmkd.terms import TERMS, settled


@dataclass(frozen=True)
class Point:
    """Where a formula is evaluated: p, q, held ``[..., V]``, target ``[...]``; y, x the logits, where there are any."""

    p: Tensor
    q: Tensor
    held: Tensor
    target: Tensor | None = None
    y: Tensor | None = None
    x: Tensor | None = None

    @classmethod
    def of_logits(cls, y: Tensor | None, x: Tensor, target: Tensor | None = None, held: Tensor | None = None) -> Point:
        """``held``: the student's logits in the parts without gradient; left out, ``x`` itself."""
        q = x.softmax(-1)
        own = x.detach() if held is None else held
        return cls(q.detach() if y is None else y.softmax(-1), q, own.softmax(-1), target, y, x)


def value(kind: str, at: Point, knobs: Mapping[str, Any]) -> Tensor:
    """``[...]``: the unweighted value of a term with these knobs and the declared defaults of the others."""
    return FORMULAS[kind](at, **settled(kind, knobs))


def kl(a: Tensor, b: Tensor) -> Tensor:
    """``sum_v a_v log(a_v / b_v)``; infinite where b = 0 < a."""
    possible = a > 0
    return (a * (torch.where(possible, a, 1.0).log() - torch.where(possible, b, 1.0).log())).sum(-1)


def entropy(a: Tensor) -> Tensor:
    return -(a * torch.where(a > 0, a, 1.0).log()).sum(-1)


def jsd(at: Point, beta: float) -> Tensor:
    m = beta * at.p + (1 - beta) * at.q
    return beta * kl(at.p, m) + (1 - beta) * kl(at.q, m)


def skew_reverse_kl(at: Point, alpha: float, detach_mixture: bool) -> Tensor:
    return kl(at.q, (1 - alpha) * at.p + alpha * (at.held if detach_mixture else at.q))


def hellinger(at: Point) -> Tensor:
    both = (at.p > 0) & (at.q > 0)
    roots = torch.where(both, at.p, 1.0).sqrt() - torch.where(both, at.q, 1.0).sqrt()
    return 0.5 * torch.where(both, roots.square(), at.p + at.q).sum(-1)


def alpha_beta(at: Point, alpha: float, beta: float) -> Tensor:
    """The five cases of Cichocki et al. 2011, each as it stands there."""
    possible = (at.p > 0) | (at.q > 0)
    p, q = torch.where(possible, at.p, 1.0), torch.where(possible, at.q, 1.0)  # p = q adds nothing
    if alpha == 0 and beta == 0:
        each = 0.5 * (p.log() - q.log()).square()
    elif alpha == -beta:
        ratio = p**alpha / q**alpha
        each = (ratio - 1 - ratio.log()) / alpha**2
    elif beta == 0:
        each = (_times_log(p**alpha, p**alpha / q**alpha) - p**alpha + q**alpha) / alpha**2
    elif alpha == 0:
        each = (_times_log(q**beta, q**beta / p**beta) - q**beta + p**beta) / beta**2
    else:
        both = alpha + beta
        each = -(p**alpha * q**beta - alpha / both * p**both - beta / both * q**both) / (alpha * beta)
    return each.sum(-1)


def _times_log(a: Tensor, ratio: Tensor) -> Tensor:
    return torch.where(a == 0, 0.0, a * torch.where(a == 0, 1.0, ratio).log())


def adaptive_kl(at: Point, mu: float) -> Tensor:
    gap = (at.p - at.held).abs()
    likeliest = at.p.argsort(-1, descending=True)
    within = at.p.gather(-1, likeliest).cumsum(-1) <= mu
    within[..., 0] = True
    head = torch.where(within, gap.gather(-1, likeliest), 0.0).sum(-1)
    whole = gap.sum(-1)
    share = torch.where(whole > 0, head / torch.where(whole > 0, whole, 1.0), 0.5)
    return _weighed_kl(share, at.p, at.q) + _weighed_kl(1 - share, at.q, at.p)


def balanced_kl(at: Point, low: float, high: float) -> Tensor:
    surer = entropy(at.held) < entropy(at.p)
    forward, reverse = (torch.where(surer, *pair).to(at.q.dtype) for pair in ((high, low), (low, high)))
    return _weighed_kl(forward, at.p, at.q) + _weighed_kl(reverse, at.q, at.p)


def _weighed_kl(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A weight of 0 adds nothing, also where the divergence is infinite."""
    return weight * kl(a, torch.where(weight.unsqueeze(-1) == 0, a, b))


def taid(at: Point, t: float) -> Tensor:
    r = at.held ** (1 - t) * at.p**t
    return kl(r / r.sum(-1, keepdim=True), at.q)


def mixture(at: Point, of: Mapping[str, float]) -> Tensor:
    return torch.stack([weight * value(name, at, {}) for name, weight in of.items()]).sum(0)


def cross_entropy(at: Point) -> Tensor:
    assert at.target is not None
    return -at.q.gather(-1, at.target.unsqueeze(-1)).squeeze(-1).log()


def nkd(at: Point, gamma: float) -> Tensor:
    assert at.target is not None
    here = at.target.unsqueeze(-1)
    p_target, q_target = at.p.gather(-1, here), at.q.gather(-1, here)
    others = torch.ones_like(at.p).scatter(-1, here, 0.0)
    rest_p, rest_q = at.p * others, at.q * others
    rest_p = rest_p / rest_p.sum(-1, keepdim=True)
    rest_q = rest_q / rest_q.sum(-1, keepdim=True)
    log = torch.where(rest_p > 0, rest_q, 1.0).log()
    own = torch.where(p_target > 0, p_target * torch.where(p_target > 0, q_target, 1.0).log(), 0.0)
    return -own.squeeze(-1) - gamma * (rest_p * log).sum(-1)


def squared_logit(at: Point) -> Tensor:
    assert at.y is not None and at.x is not None
    return (at.y - at.x).square().sum(-1) / at.x.shape[-1]


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "forward_kl": lambda at: kl(at.p, at.q),
    "reverse_kl": lambda at: kl(at.q, at.p),
    "jsd": jsd,
    "skew_forward_kl": lambda at, alpha: kl(at.p, alpha * at.p + (1 - alpha) * at.q),
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": lambda at: 0.5 * (at.p - at.q).abs().sum(-1),
    "hellinger": hellinger,
    "alpha_beta": alpha_beta,
    "adaptive_kl": adaptive_kl,
    "balanced_kl": balanced_kl,
    "taid": taid,
    "mixture": mixture,
    "cross_entropy": cross_entropy,
    "nkd": nkd,
    "squared_logit": squared_logit,
}

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "jsd": [{"beta": 0.5}, {"beta": 0.1}, {"beta": 0.9}],
    "skew_forward_kl": [{"alpha": 0.1}, {"alpha": 0.0}, {"alpha": 0.7}],
    "skew_reverse_kl": [{"alpha": 0.1}, {"alpha": 0.0}, {"alpha": 0.7}, {"alpha": 0.3, "detach_mixture": True}],
    "alpha_beta": [{"alpha": alpha, "beta": beta} for alpha, beta in (
        (0.3, 0.7), (1, 0), (0, 1), (1, 1), (0, 0), (0.5, -0.5), (0.2, 0.7), (-0.4, 1.2), (0, -0.5), (-0.75, 0),
    )],
    "adaptive_kl": [{"mu": 0.5}, {"mu": 0.0}, {"mu": 0.9}],
    "balanced_kl": [{"low": 1.0, "high": 2.0}, {"low": 0.0, "high": 3.0}],
    "taid": [{"t": 0.4}, {"t": 0.0}, {"t": 1.0}],
    "mixture": [
        {"of": {"forward_kl": 0.25, "jsd": 0.5, "hellinger": 0.25}},
        {"of": {"skew_reverse_kl": 0.5, "total_variation": 0.25, "adaptive_kl": 0.25}},
    ],
    "nkd": [{"gamma": 1.5}, {"gamma": 0.0}],
}  # fmt: skip
"""The knobs that each term is tried with; what is not named is tried with its defaults."""


def settings_of(kind: str) -> list[dict[str, Any]]:
    return SETTINGS.get(kind, [{}])


def upper_bound(kind: str, knobs: Mapping[str, Any]) -> float:
    """The upper end of the range that the table declares, for these knobs.

    Raises KeyError for a range that is written in other words: a new one needs its number here.
    """
    filled = settled(kind, knobs)
    return BOUNDS[TERMS[kind].range](filled)  # type: ignore[index]


def _binary_entropy(beta: float) -> float:
    return -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)


BOUNDS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "[0, inf)": lambda knobs: math.inf,
    "[0, 1]": lambda knobs: 1.0,
    "[0, -log alpha]": lambda knobs: -math.log(knobs["alpha"]) if knobs["alpha"] else math.inf,
    "[0, H(beta)], at most ln 2": lambda knobs: min(_binary_entropy(knobs["beta"]), math.log(2)),
}
"""What the words of a declared range mean, as numbers."""


def finite_differences(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-4) -> Tensor:
    """``df/dx [n, V]`` of ``function: [..., n, V] -> [..., n]``, whose row depends on its own ``x`` alone; by central
    differences of fourth order."""
    one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).unsqueeze(1)

    def slope(size: float) -> Tensor:
        return (function(x + size * one) - function(x - size * one)) / (2 * size)

    return ((4 * slope(step) - slope(2 * step)) / 3).transpose(0, 1)
