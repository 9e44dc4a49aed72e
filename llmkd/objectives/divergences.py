"""Divergences between a teacher p and a student q, per token and unreduced.

Each is a function ``f(logp, logq) -> [...]`` of log-probabilities over the last axis, teacher first, in float32 or
better.  No hidden factors: no temperature squared, no dropped entropy, no half.  ``TERMS`` is the one table that the
recipe, the engine and the documentation read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def expect(p: Tensor, values: Tensor) -> Tensor:
    """``sum_v p_v values_v`` over the last axis, where an impossible event (p = 0) adds nothing: 0 * inf = 0.

    The values are replaced before the product, not after it: so its gradient is a number too.  On a CPU, where that
    replacement costs ten times the product, it is made only for rows that turn out to need it.
    """
    if p.is_cuda or p.requires_grad or values.requires_grad:
        return (p * torch.where(p == 0, 0.0, values)).sum(-1)
    total = torch.linalg.vecdot(p, values)
    doubtful = total.isnan()
    if doubtful.any():
        total[doubtful] = (p * torch.where(p == 0, 0.0, values)).sum(-1)[doubtful]
    return total


def forward_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """Forward Kullback-Leibler divergence, KL(p || q): the student covers what the teacher does.

    ``sum_v p_v (log p_v - log q_v)``, in [0, inf); 0 exactly at q = p; infinite where q = 0 < p.
    Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (there times tau^2; here without).
    """
    return expect(logp.exp(), logp - logq)


def reverse_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """Reverse Kullback-Leibler divergence, KL(q || p): the student stays within what the teacher does.

    ``sum_v q_v (log q_v - log p_v)``, in [0, inf); 0 exactly at q = p; infinite where p = 0 < q.
    Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2023.
    """
    return forward_kl(logq, logp)


def cross_entropy(logq: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of the target token, ``-log q_target``, in [0, inf); not a divergence: its lowest value
    is the entropy of the data.  logq ``[..., V]``, target ``[...]`` of token ids."""
    return -logq.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def forward_kl_gradient(logp: Tensor, logq: Tensor) -> Tensor:
    """Gradient of ``forward_kl`` to the student's logits: ``q - p``."""
    return logq.exp() - logp.exp()


def reverse_kl_gradient(logp: Tensor, logq: Tensor) -> Tensor:
    """Gradient of ``reverse_kl`` to the student's logits: ``q (log q - log p - KL(q || p))``."""
    q, ratio = logq.exp(), logq - logp
    mean = expect(q, ratio).unsqueeze(-1)
    if q.is_cuda or not ratio.sum().isfinite():
        ratio = torch.where(q == 0, 0.0, ratio)
    return q * (ratio - mean)


@dataclass(frozen=True)
class TermKind:
    """One row of the table of terms.

    value        the formula; ``(logp, logq)`` of a divergence, ``(logq, target)`` of a loss against the data
    gradient     its gradient to the student's logits at tau = 1, if there is a closed form; autograd otherwise
    needs_teacher
    divergence   True if it is 0 at q = p and never negative
    """

    value: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None
    needs_teacher: bool = True
    divergence: bool = True


TERMS: dict[str, TermKind] = {
    "forward_kl": TermKind(forward_kl, forward_kl_gradient),
    "reverse_kl": TermKind(reverse_kl, reverse_kl_gradient),
    "cross_entropy": TermKind(cross_entropy, needs_teacher=False, divergence=False),
}
