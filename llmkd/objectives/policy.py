"""Estimators of reverse KL from the log-probabilities of sampled tokens, teacher first, one value per token.

They look at the token that was drawn alone, where the formulas of ``divergences`` look at all of the vocabulary.  What
one is worth as a *value* and whose gradient it has as a *loss* are two questions with two answers:

    name   as a value, tokens drawn from q      as a loss, on the student's own samples, in expectation
    k1     unbiased, of either sign             no gradient: it belongs in a reward or an advantage
    k2     biased, never negative               the gradient of reverse KL, KL(q || p)
    k3     unbiased, never negative             the gradient of forward KL, KL(p || q)

The gradient is the one through ``logq``, with the samples held fixed.  Of a sequence that is the sum over tokens of the
divergence given what stands before, with the distribution of what stands before held fixed; it is not the gradient of
the divergence of whole sequences, which needs the reward to go.

Schulman, Approximating KL Divergence, 2020 (joschu.net/blog/kl-approx.html), there with r = p / q.
"""

from __future__ import annotations

from torch import Tensor


def k1(logp: Tensor, logq: Tensor) -> Tensor:
    """``log q - log p`` of the sampled token.

    As a value an unbiased estimate of KL(q || p), with a large variance: negative wherever the teacher likes the token
    more than the student does.  As a loss on the student's own samples it has no gradient in expectation, since
    ``sum_v q_v dlog q_v = 0``: what it adds is noise.
    """
    return logq - logp


def k2(logp: Tensor, logq: Tensor) -> Tensor:
    """``1/2 (log q - log p)^2`` of the sampled token.

    As a value a biased estimate of KL(q || p), near it where p is near q.  As a loss on the student's own samples it
    has in expectation exactly the gradient of KL(q || p): ``sum_v q_v (log q_v - log p_v) dlog q_v``.
    """
    return 0.5 * (logq - logp).square()


def k3(logp: Tensor, logq: Tensor) -> Tensor:
    """``p / q - 1 - log(p / q)`` of the sampled token.

    As a value an unbiased estimate of KL(q || p), never negative and of a small variance: k1 and the control variate
    ``p / q - 1``, whose mean is 0.  As a loss on the student's own samples it has in expectation exactly the gradient
    of forward KL, KL(p || q): ``sum_v (q_v - p_v) dlog q_v``.  What differs from the note: (1) ``expm1``, so that
    nothing cancels where p is near q.
    """
    log_ratio = logp - logq
    return log_ratio.expm1() - log_ratio


def teacher_advantage(logp: Tensor, logq: Tensor) -> Tensor:
    """``log p - log q`` of the sampled token, in nats, without a gradient: -k1 as an advantage.

    At ratio 1 a surrogate ``-ratio d`` of it has the gradient of k2, token by token.
    """
    return (logp - logq).detach()
