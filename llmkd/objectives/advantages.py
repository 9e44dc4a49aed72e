"""Reward and teacher in one advantage per token: what the methods that mix them are made of.

With A the advantage of the reward, ``d`` the teacher's, c 1 where a completion is right, C 1 where a group has none:
``d`` is on-policy distillation, ``A + beta d`` KDRL, ``A + (1 - c) beta d`` KDRL with its mask, ``A + C beta d`` HDPO,
``c A + (1 - c) d`` SRPO.
"""

from __future__ import annotations

from torch import Tensor


def teacher_advantage(logp: Tensor, logq: Tensor) -> Tensor:
    """``d = log p - log q`` of the sampled token, in nats, without a gradient.

    At ratio 1 a surrogate ``-ratio d`` has the gradient of ``policy.k2``, token by token.
    """
    return (logp - logq).detach()


def incorrect(correct: Tensor) -> Tensor:
    """True ``[samples]`` where a completion is wrong (0); not where it is right (1) or was not graded (NaN)."""
    return correct == 0


def group_all_wrong(correct: Tensor, group: int) -> Tensor:
    """True ``[samples]`` where all completions of a group are wrong: a subset of ``incorrect``.

    Samples stand group by group.  Raises ValueError where they are no whole number of groups.
    """
    if group < 1 or correct.numel() % group:
        raise ValueError(f"group: {correct.numel()} samples are no whole number of groups of {group}")
    return incorrect(correct).view(-1, group).all(1).repeat_interleave(group)
