"""Negative-aware fine-tuning: wrong answers teach through the policy that they imply, without a teacher."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

PASS_RATES = (0.02, 0.98)
"""Within which the pass rate of a group is kept."""
LARGEST_LOG_RATIO = 10.0
GroupWeight = Literal["grpo", "dr_grpo", "none"]


def negative_aware(
    logq: Tensor,
    logq_old: Tensor,
    correct: Tensor,
    pass_rate: Tensor,
    *,
    weight: GroupWeight = "grpo",
    negative_weight: float = 1.0,
    eps: float = 1.0,
) -> Tensor:
    """Loss per token, in nats, of completions that are right (1) or wrong (0).

    ``-w(r) (c log R + (1 - c) n log max_v((1 - r R) / (1 - r), eps))`` with ``R = q / q_old`` of the sampled token, c
    its completion's correctness, r the share of its group that is right, n the ``negative_weight``: 1, or 0 for
    rejection fine-tuning; w as in ``group_weight``.  All shapes broadcast.  ``max_v(x, eps) = x + sg(max(x, eps) - x)``
    has the gradient of x also where it is clamped.  r is kept within [0.02, 0.98], also in w; log R at most 10.  Groups
    that are ``without_contrast`` and completions whose correctness is neither 0 nor 1 get 0.

    At R = 1 the gradient to log q is minus the advantage: GRPO's (c - r) / sqrt(r (1 - r)) for ``grpo``, Dr. GRPO's
    c - r for ``dr_grpo``.  Raises ValueError for another weight, and for an eps that is not above 0.
    Chen et al., Bridging Supervised Learning and Reinforcement Learning in Math Reasoning, 2025.  What differs: (1) the
    released code divides the sum over tokens by 1000; nothing is summed here.
    """
    if eps <= 0:
        raise ValueError(f"eps: {eps} is not above 0: its logarithm is taken; give 1.0, as the paper does")
    right, wrong = correct == 1, correct == 0
    used = (right | wrong) & ~without_contrast(pass_rate)
    rate = torch.where(without_contrast(pass_rate), 0.5, pass_rate).clamp(*PASS_RATES)
    log_ratio = (logq - logq_old).clamp(max=LARGEST_LOG_RATIO)
    implied = (1 - rate * log_ratio.exp()) / (1 - rate)
    negative = negative_weight * straight_through_max(implied, eps).log()
    loss = -group_weight(rate, weight) * torch.where(right, log_ratio, negative)
    return torch.where(used, loss, 0.0)


def without_contrast(pass_rate: Tensor) -> Tensor:
    """True where a group teaches nothing: all right, all wrong, or not graded (NaN).  Its sum is the number to log."""
    return ~((pass_rate > 0) & (pass_rate < 1))


def group_weight(pass_rate: Tensor, weight: GroupWeight) -> Tensor:
    """``sqrt((1 - r) / r)`` for grpo, ``1 - r`` for dr_grpo, 1 for none."""
    if weight == "grpo":
        return ((1 - pass_rate) / pass_rate).sqrt()
    if weight == "dr_grpo":
        return 1 - pass_rate
    if weight == "none":
        return torch.ones_like(pass_rate)
    raise ValueError(f"weight: {weight!r} is not known: give grpo, dr_grpo or none")


def straight_through_max(x: Tensor, eps: float) -> Tensor:
    """The value of ``max(x, eps)``, the gradient of ``x``."""
    return x + (x.clamp(min=eps) - x).detach()
