"""DistiLLM-2's contrastive pair, and when DistiLLM trains on what the student wrote.

The formulas of the pair are the paper's, read in full; those of the share of the student's own are the released code's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmkd.objectives.divergences import skew_forward_kl, skew_reverse_kl

SHARE_STEP = 0.1
LOSS_MARGIN = 0.1


def contrastive(
    logp: Tensor,
    logq: Tensor,
    from_teacher: Tensor,
    *,
    alpha_teacher: float = 0.1,
    alpha_student: float = 0.1,
    share: float = 0.5,
    detach_mixture: bool = False,
) -> Tensor:
    """``(1 - b) SKL(a_t)`` on the teacher's completions and ``b SRKL(a_s)`` on the student's, b the ``share``.

    logp, logq ``[..., V]``, from_teacher ``[...]``: who wrote the token.  The skew divergences are those of
    ``divergences``.  Ko et al., DistiLLM-2, 2025.  What differs from the released code: (1) the weights sum to 1, there
    to 2; (2) the gradient goes through the mixture of SRKL unless ``detach_mixture``; (3) no mean per sequence.
    """
    ours = share * skew_reverse_kl(logp, logq, alpha=alpha_student, detach_mixture=detach_mixture)
    return torch.where(from_teacher, (1 - share) * skew_forward_kl(logp, logq, alpha=alpha_teacher), ours)


def curriculum_share(epoch: int, epochs: int, step: int, steps: int, lowest: float = 0.5) -> float:
    """``b = clip(e / E + tau / T, b_0, 1)``.  What differs from the released code: (1) there it is off, and where it is
    turned on the share goes from 0.5 to 0.75."""
    return min(1.0, max(lowest, epoch / epochs + step / steps))


def adaptive_alpha(
    log_writer: Tensor, log_other: Tensor, mean_gap: Tensor | float, *, start: float = 0.1,
    bounds: tuple[float, float] = (0.01, 0.1),
) -> Tensor:  # fmt: skip
    """``clip(1 - (1 - a_0) m / (g + 1e-5))`` per completion, with ``g = exp(log_writer) - exp(log_other)``.

    log_writer, log_other: mean log-probability of the completion's tokens, under who wrote it and under the other:
    teacher and student for ``alpha_teacher``, student and teacher for ``alpha_student``.  m is the mean of g over the
    batch or longer.  No gradient.  The paper keeps a_0 through the first epoch.  What differs from the released code:
    (1) there it is off.  The 1e-5 is the code's, for student = teacher.
    """
    gap = (log_writer.exp() - log_other.exp()).detach()
    return (1 - (1 - start) * mean_gap / (gap + 1e-5)).clamp(*bounds)


def raised_share(share: float, loss_before: float, loss: float) -> tuple[float, float]:
    """After an evaluation: ``(share, loss_before)`` for the next one.

    Where the validation loss is at least 0.1 above the one before, the share of the student's own rises by 0.1, to at
    most 1, and this loss is the one to compare with; else both stay.  It starts at 0 and with the loss before training.
    Ko et al., DistiLLM, 2024, from the released code.
    """
    if loss >= loss_before + LOSS_MARGIN:
        return min(1.0, share + SHARE_STEP), loss
    return share, loss_before


def source(draw: float, share: float, done: float, full: bool) -> Literal["fresh", "replay", "data"]:
    """What a step trains on, by one ``draw`` from U(0, 1): completions written now, written before, or the data set's.

    ``done`` is the fraction of training done.  Fresh with chance ``share (1 - done)``, and in the rest of the share as
    long as the buffer is not full; else from the buffer; outside the share from the data.
    """
    if draw < share * (1 - done) or (draw < share and not full):
        return "fresh"
    return "replay" if draw < share else "data"
