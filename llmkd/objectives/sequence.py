"""Reverse KL of whole sequences, as MiniLLM takes it apart: the next token exactly, what follows by its reward.

The gradient of KL(q || p) between sequences is that of the sum over visited prefixes of ``divergences.reverse_kl`` and,
added to it, that of ``long_term``, in expectation over the student's own samples.  Tensors are ``[..., T]`` of sampled
tokens in order, ``mask`` True on those of the completion, the end of sequence included: what else holds never enters.

Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2023.  What differs from the released code, all of
it towards the paper: (1) the reward to go begins after the current token, whose part is the exact term's (the code
counts it twice); (2) no discount (0.95 there); (3) rewards are neither doubled nor clipped; (4) the normalised returns
are not whitened, and padding has no part in them; (5) weights are not clipped with the ratio of the policies, since
there is none: ``-w A log q`` has the gradient that ratio 1 gives, for one update per sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmkd.objectives.divergences import log_mixture


def token_reward(logp: Tensor, logq: Tensor) -> Tensor:
    """``log p - log q`` of the sampled token, in nats, without a gradient."""
    return (logp - logq).detach()


def future_return(reward: Tensor, mask: Tensor) -> Tensor:
    """``R_(t+1) = sum_(s > t) r_s`` over the tokens of the mask: the current one is not among them.  0 outside."""
    inside = torch.where(mask, reward, 0.0)
    to_go = inside.flip(-1).cumsum(-1).flip(-1)
    return torch.where(mask, to_go - inside, 0.0)


def normalised_return(reward: Tensor, mask: Tensor) -> Tensor:
    """``R_(t+1) / (T - t - 1)``, the mean reward of the tokens that follow, T of them in all; 0 for the last one."""
    following = future_return(torch.ones_like(reward), mask)
    return future_return(reward, mask) / following.clamp(min=1.0)


def long_term(logq: Tensor, advantage: Tensor, mask: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """``-w_t A_t log q_t`` per token, A and w without a gradient; 0 outside the mask.

    With ``A = future_return`` the gradient is exact; ``normalised_return`` keeps long completions from weighing more.
    """
    scale = torch.where(mask, (torch.as_tensor(weight) * advantage).detach(), 0.0)
    return -scale * torch.where(mask, logq, 0.0)


def teacher_mixed(logp: Tensor, logq: Tensor, share: float = 0.2) -> Tensor:
    """``log(a p + (1 - a) q)`` with a the ``share``: what MiniLLM samples from, so that no reward can be hacked far."""
    return log_mixture(logp, logq, share)


def importance_weight(logp: Tensor, logq: Tensor, share: float = 0.2) -> Tensor:
    """``w_t = q / (a p + (1 - a) q)`` of a token drawn from ``teacher_mixed``, without a gradient.

    Its mean over that distribution is 1.  The weights of the tokens before are left out, as in the paper: less
    variance, and a bias.  It scales the exact term of the step as well as the long one.
    """
    return (logq - teacher_mixed(logp, logq, share)).exp().detach()
