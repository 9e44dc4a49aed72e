"""By what GRPO divides, as a weight for each token: a loss is the sum of ``weight * value`` over all tokens.

In reinforcement learning every term is divided as the policy's own loss is, so that a teacher's weight means the same
whatever ``loss_type`` is chosen:

    grpo, sapo             mean over the tokens of a completion, then over the completions of a batch
    bnpo                   mean over the tokens of a batch
    dr_grpo                tokens over (completions x longest completion allowed)
    dapo, cispo, vespo     mean over the tokens of a whole optimizer step, on all ranks
    luspo                  sum over the tokens of a completion, mean over the completions
"""

from __future__ import annotations

import torch
from torch import Tensor

OVER_STEP = ("cispo", "dapo", "vespo")


def token_weights(loss_type: str, mask: Tensor, *, longest: int, items: Tensor | float, accumulation: float) -> Tensor:
    """Weights ``[B, T]`` of one micro-batch, 0 where ``mask [B, T]`` is.

    Args:
        longest: tokens that a completion may have (``dr_grpo``).
        items: counted tokens of the whole optimizer step over the number of ranks (``dapo``, ``cispo``, ``vespo``).
        accumulation: micro-batches of an optimizer step, by which the other types are divided.

    Raises:
        ValueError: an unknown loss type.
    """
    mask = mask.to(torch.float32)
    rows = mask.shape[0]
    if loss_type in OVER_STEP:
        return mask / items
    if loss_type in ("grpo", "sapo"):
        return mask / mask.sum(-1, keepdim=True).clamp(min=1.0) / rows / accumulation
    if loss_type == "bnpo":
        return mask / mask.sum().clamp(min=1.0) / accumulation
    if loss_type == "dr_grpo":
        return mask / (rows * longest) / accumulation
    if loss_type == "luspo":
        return mask / rows / accumulation
    raise ValueError(f"train.loss_type: {loss_type!r} is not known here: give grpo, bnpo, dr_grpo, dapo or luspo")
