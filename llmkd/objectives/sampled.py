"""What a model said of the tokens that were drawn, out of what it said of all."""

from __future__ import annotations

import torch
from torch import Tensor

from llmkd.types import Logits, Sampled, Signals, States

CHUNK_BYTES = 2**28
"""Float32 logits that exist at once."""


@torch.no_grad()
def sampled_logp(signals: Signals | Sampled, targets: Tensor, vocabulary: int, tau: float = 1.0) -> Tensor:
    """Log-probabilities ``[N]``, in float32, of the tokens ``targets [N]`` at temperature ``tau``, over the first
    ``vocabulary`` rows.

    Raises ValueError for signals that do not hold them: a stored top-k, or sampled ones at another temperature.
    """
    if isinstance(signals, Sampled):
        if tau != 1.0:
            raise ValueError(
                "a teacher that says the log-probabilities of sampled tokens alone says them at its own temperature, "
                f"not at {tau:g}: set objective.temperature.teacher to 1"
            )
        return signals.logp.float()
    if not isinstance(signals, States | Logits):
        raise ValueError("a teacher that says a few likely tokens does not know the others, which may be drawn: take "
                         "estimator: topk")  # fmt: skip
    count = targets.shape[0]
    out = torch.empty(count, dtype=torch.float32, device=targets.device)
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    for start in range(0, count, size):
        part = slice(start, start + size)
        logits = _logits(signals, part, vocabulary)
        logits = logits if tau == 1.0 else logits / tau
        out[part] = logits.gather(-1, targets[part].unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    return out


def _logits(signals: States | Logits, part: slice, vocabulary: int) -> Tensor:
    if isinstance(signals, Logits):
        return signals.logits[part, :vocabulary].float()
    return signals.head.rows(vocabulary).logits(signals.hidden[part]).float()


@torch.no_grad()
def likeliest(signals: Signals, k: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The ``k`` likeliest tokens ``[N, k]`` and their log-probabilities, in float32, over the first ``vocabulary``
    rows; ValueError for signals that do not hold the whole distribution."""
    if not isinstance(signals, States | Logits):
        raise ValueError("the likeliest tokens are taken from a whole distribution, which this teacher does not say")
    count = (signals.logits if isinstance(signals, Logits) else signals.hidden).shape[0]
    found = []
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    for start in range(0, max(count, 1), size):
        logits = _logits(signals, slice(start, start + size), vocabulary)
        top = logits.topk(min(k, vocabulary), dim=-1)
        found.append((top.indices, top.values - logits.logsumexp(-1, keepdim=True)))
    return torch.cat([ids for ids, _ in found]), torch.cat([logp for _, logp in found])
