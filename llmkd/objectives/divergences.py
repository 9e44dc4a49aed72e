"""The formulas of the terms, per token and unreduced.

Each is a function ``f(logp, logq, *, knobs) -> [...]`` of log-probabilities over the last axis, teacher first, in
float32 or better.  No hidden factors: no temperature squared, no dropped entropy, no half.  They are safe where a
probability is 0 (log-probability -inf), and so are their gradients by autograd.  ``llmkd.terms`` declares their ranges
and knobs, ``closed`` holds fast gradients, ``VALUES`` pairs names with functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

HEAD = 256
"""Tokens among which the head of ``adaptive_kl`` is looked for first."""


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


def log_mixture(logp: Tensor, logq: Tensor, share: float) -> Tensor:
    """``log(share p + (1 - share) q)``; -inf where both are, with a gradient of 0 there."""
    if share in (0.0, 1.0):
        return logp if share else logq
    never = (logp == -math.inf) & (logq == -math.inf)
    mixed = torch.logaddexp(
        logp.masked_fill(never, 0.0) + math.log(share), logq.masked_fill(never, 0.0) + math.log1p(-share)
    )
    return mixed.masked_fill(never, -math.inf)


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


def jsd(logp: Tensor, logq: Tensor, *, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence with the mixture ``m = beta p + (1 - beta) q``.

    ``beta KL(p || m) + (1 - beta) KL(q || m)``, in [0, H(beta)] with H(beta) = -beta ln beta - (1-beta) ln(1-beta),
    at most ln 2; finite for disjoint supports.  ``jsd / beta`` tends to forward KL as beta -> 0 and
    ``jsd / (1 - beta)`` to reverse KL as beta -> 1: the value and the gradient themselves vanish there.
    Agarwal et al., On-Policy Distillation of Language Models, 2023.  What differs: (1) beta = 0 and 1 are not special
    names of the two KLs, which would be a jump by a factor 1 / beta.
    """
    logm = log_mixture(logp, logq, beta)
    return beta * forward_kl(logp, logm) + (1 - beta) * forward_kl(logq, logm)


def skew_forward_kl(logp: Tensor, logq: Tensor, *, alpha: float = 0.1) -> Tensor:
    """Skew KL divergence, KL(p || alpha p + (1 - alpha) q).

    In [0, -ln alpha]; forward KL at alpha = 0.  Ko et al., DistiLLM, 2024.  What differs: (1) the entropy of p, which
    the released code drops, is part of the value; the gradient is the same.
    """
    return forward_kl(logp, log_mixture(logp, logq, alpha))


def skew_reverse_kl(logp: Tensor, logq: Tensor, *, alpha: float = 0.1, detach_mixture: bool = False) -> Tensor:
    """Skew reverse KL divergence, KL(q || (1 - alpha) p + alpha q).

    In [0, -ln alpha]; reverse KL at alpha = 0.  The gradient goes through the mixture; with ``detach_mixture`` it does
    not, as in the released code of DistiLLM-2: the same value, another gradient.
    Ko et al., DistiLLM, 2024; DistiLLM-2, 2025.
    """
    return forward_kl(logq, log_mixture(logp, logq.detach() if detach_mixture else logq, 1 - alpha))


def total_variation(logp: Tensor, logq: Tensor) -> Tensor:
    """Total variation distance, ``1/2 sum_v |p_v - q_v|``, in [0, 1].  Its gradient takes 0 for the sign of 0.
    Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation, 2023."""
    return 0.5 * (logp.exp() - logq.exp()).abs().sum(-1)


def hellinger(logp: Tensor, logq: Tensor) -> Tensor:
    """Squared Hellinger distance, ``1/2 sum_v (sqrt p_v - sqrt q_v)^2 = 1 - sum_v sqrt(p_v q_v)``, in [0, 1]."""
    return 0.5 * ((logp / 2).exp() - (logq / 2).exp()).square().sum(-1)


def power_difference(x: Tensor, y: Tensor, power: float, step: Tensor) -> Tensor:
    """``(e^x - e^y) / power`` where ``x - y = power * step``, without cancellation; ``e^y step`` at power 0.

    The building block of ``alpha_beta``: it is continuous in ``power``, and exactly 0 where ``step`` is.
    """
    weight = y.exp()
    if power == 0:
        return weight * torch.where(weight == 0, 0.0, step)
    gap = power * step
    close = gap.abs() < 1
    return torch.where(close, weight * torch.where(close, gap, 0.0).expm1(), x.exp() - weight) / power


def alpha_beta(logp: Tensor, logq: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Alpha-beta divergence, for all real alpha and beta, continuous where a divisor is 0.

    ``-1/(alpha beta) sum_v (p^alpha q^beta - alpha/(alpha+beta) p^(alpha+beta) - beta/(alpha+beta) q^(alpha+beta))``,
    in [0, inf).  (1, 0) is forward KL, (0, 1) reverse KL, (1/2, 1/2) four times the squared Hellinger distance, (1, 1)
    half the squared Euclidean distance, (0, 0) half the sum of squared differences of log-probabilities.
    Cichocki et al., Generalized Alpha-Beta Divergences, 2011; Wang et al., ABKD, 2025.  What differs: (1) the limits
    beta -> 0, alpha -> 0 and alpha -> -beta have the second factor 1/alpha, 1/beta, 1/alpha that the released code
    leaves out.
    """
    if abs(beta) < abs(alpha):  # the same divergence with the roles swapped, so that the divisor is the larger one
        logp, logq, alpha, beta = logq, logp, beta, alpha
    never = (logp == -math.inf) & (logq == -math.inf)  # adds nothing, as a token of equal probabilities
    logp, logq = logp.masked_fill(never, 0.0), logq.masked_fill(never, 0.0)
    step = logp - logq
    if abs(beta) < torch.finfo(logq.dtype).eps ** 0.5:
        return 0.5 * step.square().sum(-1)
    powers = _power(logq, alpha + beta)
    both = power_difference(_power(logp, alpha + beta), powers, alpha + beta, step)
    mixed = power_difference(_power(logp, alpha) + _power(logq, beta), powers, alpha, step)
    each = (both - mixed) / beta
    # Beside an impossible token, or one that is nearly so, two infinite parts stand for an infinite sum.
    return torch.where(each.isnan() & ~step.isnan(), math.inf, each).sum(-1)


def _power(log: Tensor, exponent: float) -> Tensor:
    """``log(x^exponent)``, where x^0 = 1 also at x = 0."""
    return exponent * log if exponent else torch.zeros_like(log)


def adaptive_kl(logp: Tensor, logq: Tensor, *, mu: float = 0.5) -> Tensor:
    """Adaptive KL divergence: forward KL where the head of the teacher fits badly, reverse KL where the tail does.

    ``(a forward_kl + b reverse_kl) / (a + b)`` with ``a = sum_head |p - q|``, ``b = sum_tail |p - q|``, which carry no
    gradient; a half each where both are 0.  The head holds the teacher's likeliest tokens as long as their mass stays
    within mu, and the likeliest always.  Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation
    for Large Language Models, 2024.
    """
    share = head_share(logp, logq.detach(), mu)
    return weighed_kl(share, logp, logq) + weighed_kl(1 - share, logq, logp)


def head_share(logp: Tensor, logq: Tensor, mu: float) -> Tensor:
    """``a / (a + b)`` of ``adaptive_kl``."""
    p = logp.exp()
    gap = (p - logq.exp()).abs()
    size = min(HEAD, p.shape[-1])
    top, where = p.topk(size, dim=-1)
    if size < p.shape[-1] and (mu >= 1 or not (top.sum(-1) > mu).all()):
        top, where = p.sort(dim=-1, descending=True)
    inside = top.cumsum(-1) <= (mu if mu < 1 else math.inf)  # by rounding the whole mass may be above 1
    inside[..., 0] = True
    head = (gap.gather(-1, where) * inside).sum(-1)
    total = gap.sum(-1)
    return torch.where(total == 0, 0.5, head / total.clamp(min=torch.finfo(total.dtype).tiny)).clamp(max=1.0)


def balanced_kl(logp: Tensor, logq: Tensor, *, low: float = 1.0, high: float = 2.0) -> Tensor:
    """Both KLs, the more pressing one with the larger weight: adapted from BD-KD, whose exact rule was not read.

    ``f forward_kl + r reverse_kl``: (f, r) = (high, low) where the student is surer than the teacher, H(q) < H(p), so
    that it is pulled to cover more; (low, high) otherwise.  The weights carry no gradient.
    Amara et al., BD-KD: Balancing the Divergences for Online Knowledge Distillation, 2022.
    """
    surer = surer_student(logp, logq.detach())
    forward = torch.where(surer, high, low).to(logq.dtype)
    return weighed_kl(forward, logp, logq) + weighed_kl(low + high - forward, logq, logp)


def weighed_kl(weight: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
    """``weight KL(p || q)``; where the weight is 0 a distribution is compared with itself: no value and no gradient,
    even where the divergence is infinite."""
    return weight * forward_kl(logp, torch.where((weight == 0).unsqueeze(-1), logp, logq))


def surer_student(logp: Tensor, logq: Tensor) -> Tensor:
    """Whether H(q) < H(p)."""
    return expect(logq.exp(), logq) > expect(logp.exp(), logp)


def taid(logp: Tensor, logq: Tensor, *, t: float) -> Tensor:
    """Forward KL to a teacher that is brought near the student: ``KL(r || q)``.

    ``r = softmax((1 - t) log q + t log p)``, where q carries no gradient; t = 1 is forward KL, t = 0 is 0.
    Shing et al., TAID: Temporally Adaptive Interpolated Distillation, 2025.  What differs: (1) the released code leaves
    out the entropy of r: a cross-entropy, with the same gradient.
    """
    return forward_kl(interpolated(logp, logq.detach(), t), logq)


def interpolated(logp: Tensor, logq: Tensor, t: float) -> Tensor:
    """``log softmax((1 - t) log q + t log p)``."""
    if t in (0.0, 1.0):
        return logp if t else logq
    return torch.lerp(logq, logp, t).nan_to_num(nan=-math.inf, neginf=-math.inf).log_softmax(-1)


def mixture(logp: Tensor, logq: Tensor, *, of: Mapping[str, float]) -> Tensor:
    """Convex mixture of divergences, ``sum_i a_i D_i(p, q)``, each with its default knobs."""
    parts = [weight * VALUES[name](logp, logq) for name, weight in of.items()]
    return torch.stack(parts).sum(0)


def cross_entropy(logq: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of the target token, ``-log q_target``, in [0, inf); not a divergence: its lowest value
    is the entropy of the data.  logq ``[..., V]``, target ``[...]`` of token ids."""
    return -logq.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def nkd(logp: Tensor, logq: Tensor, target: Tensor, *, gamma: float = 1.5) -> Tensor:
    """Normalised knowledge distillation: what the teacher says of the target, and of the others among themselves.

    ``-p_y log q_y - gamma sum_(v != y) P_v log Q_v`` with P and Q the distributions without the target y, normalised
    again; in [0, inf), not a divergence.  A teacher that is sure of the target leaves P as it is, where plain KL
    would weigh it by 1 - p_y.
    Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, 2023.  What differs: (1) the target's part
    is at the temperature of the objective too; (2) no gamma tau^2: gamma alone.
    """
    at = target.unsqueeze(-1)
    logp_rest, logq_rest = without_target(logp, at), without_target(logq, at)
    part = logp.gather(-1, at).exp() * -logq.gather(-1, at)
    part = torch.where(logp.gather(-1, at) == -math.inf, 0.0, part)
    return part.squeeze(-1) - gamma * expect(logp_rest.exp(), logq_rest)


def without_target(log: Tensor, at: Tensor) -> Tensor:
    """Log-probabilities without the token ``at [..., 1]``, normalised again; all -inf where nothing is left."""
    rest = log.scatter(-1, at, -math.inf)
    nothing = (rest == -math.inf).all(-1, keepdim=True)  # the gradient of its logsumexp would be no number
    left = rest.masked_fill(nothing, 0.0).logsumexp(-1, keepdim=True)
    return torch.where(rest == -math.inf, -math.inf, rest - left)


def squared_logit(y: Tensor, x: Tensor) -> Tensor:
    """Mean squared difference of logits, ``1/V sum_v (y_v - x_v)^2``, teacher's first; in [0, inf).

    Not a divergence: a shift of all logits, which changes no probability, changes it.
    Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2014 (there a sum, halved).
    """
    return (y - x).square().mean(-1)


VALUES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": total_variation,
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
"""What a term takes: ``(logq, target)`` for cross_entropy, ``(logp, logq, target)`` for nkd, the logits ``(y, x)`` for
squared_logit, ``(logp, logq)`` for all others."""
