"""Value and gradient of a term together, in closed form: what the row block of the engine runs.

Each is a function ``f(logp, logq, p, q, *, knobs) -> (value [n], dz [n, V])``: the value of ``divergences`` and its
gradient to the student's logits at temperature 1.  For a sum over tokens of ``f_v(log p_v, log q_v)`` with
``g_v = df_v / dlog q_v`` that gradient is ``g - q sum_v g_v``.

They are written for speed and know nothing of log-probabilities of -inf: where they meet one the value is not a
number, and the row block takes the formula itself, by autograd.  A term without an entry here always does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.linalg import vecdot

from llmkd.objectives.divergences import head_share, interpolated, power_difference

Closed = tuple[Tensor, Tensor]


def forward_kl(logp: Tensor, logq: Tensor, p: Tensor, q: Tensor) -> Closed:
    return vecdot(p, logp - logq), q - p


def reverse_kl(logp: Tensor, logq: Tensor, p: Tensor, q: Tensor) -> Closed:
    ratio = logq - logp
    value = vecdot(q, ratio)
    return value, ratio.sub_(value.unsqueeze(-1)).mul_(q)


def jsd(logp: Tensor, logq: Tensor, p: Tensor, q: Tensor, *, beta: float = 0.5) -> Closed:
    """g = -(1 - beta) q log(m / q)."""
    above = _log_of_mixture(p, q, beta)
    towards_p = vecdot(p, (logp - logq).sub_(above))
    mean = vecdot(q, above)
    return beta * towards_p - (1 - beta) * mean, _centred(above, q, mean, beta - 1)


def skew_forward_kl(logp: Tensor, logq: Tensor, p: Tensor, q: Tensor, *, alpha: float = 0.1) -> Closed:
    """g = -(1 - alpha) q p / m."""
    if alpha == 0:
        return forward_kl(logp, logq, p, q)
    value = vecdot(p, (logp - logq).sub_(_log_of_mixture(p, q, alpha)))
    part = p / torch.lerp(q, p, alpha)
    return value, _centred(part, q, vecdot(q, part), alpha - 1)


def skew_reverse_kl(
    logp: Tensor, logq: Tensor, p: Tensor, q: Tensor, *, alpha: float = 0.1, detach_mixture: bool = False
) -> Closed:
    """g = -q (log(m / q) - 1 + alpha q / m); without the last part where the mixture is detached."""
    if alpha == 0:
        return reverse_kl(logp, logq, p, q)
    above = _log_of_mixture(p, q, 1 - alpha)
    mean = vecdot(q, above)
    value = -mean
    if not detach_mixture:
        above.add_(q / torch.lerp(p, q, alpha), alpha=alpha)
        mean = vecdot(q, above)
    return value, _centred(above, q, mean, -1.0)


def total_variation(logp: Tensor, logq: Tensor, p: Tensor, q: Tensor) -> Closed:
    """g = q sign(q - p) / 2."""
    gap = q - p
    sign = gap.sign()
    return 0.5 * vecdot(gap, sign), _centred(sign, q, vecdot(q, sign), 0.5)


def hellinger(logp: Tensor, logq: Tensor, p: Tensor, q: Tensor) -> Closed:
    """g = (q - sqrt(p q)) / 2."""
    root_p, root_q = p.sqrt(), q.sqrt()
    gap = root_p - root_q
    root = root_p.mul_(root_q)
    mass = root.sum(-1, keepdim=True)
    return 0.5 * gap.square_().sum(-1), torch.addcmul(root, q, mass, value=-1).mul_(-0.5)


def alpha_beta(logp: Tensor, logq: Tensor, p: Tensor, q: Tensor, *, alpha: float, beta: float) -> Closed:
    """g = (q^(alpha+beta) - p^alpha q^beta) / alpha, continued where alpha is 0."""
    step, base = logp - logq, logq * (alpha + beta)
    mixed = power_difference(base + alpha * step, base, alpha, step)
    if max(abs(alpha), abs(beta)) < torch.finfo(logq.dtype).eps ** 0.5:
        value = 0.5 * step.square().sum(-1)
    elif abs(beta) >= abs(alpha):
        both = power_difference(logp * (alpha + beta), base, alpha + beta, step)
        value = (both - mixed).sum(-1) / beta
    else:
        top = logp * (alpha + beta)
        both = power_difference(base, top, alpha + beta, -step)
        value = (both - power_difference(top - beta * step, top, beta, -step)).sum(-1) / alpha
    value += 0 * step.sum(-1)  # a log-probability of -inf must show
    return value, mixed.sum(-1, keepdim=True).mul(q).sub_(mixed)


def adaptive_kl(logp: Tensor, logq: Tensor, p: Tensor, q: Tensor, *, mu: float = 0.5) -> Closed:
    share = head_share(logp, logq, mu)
    return _both(share, 1 - share, logp, logq, p, q)


def balanced_kl(logp: Tensor, logq: Tensor, p: Tensor, q: Tensor, *, low: float = 1.0, high: float = 2.0) -> Closed:
    surer = vecdot(q, logq) > vecdot(p, logp)
    forward = torch.where(surer, high, low).to(q.dtype)
    return _both(forward, low + high - forward, logp, logq, p, q)


def _both(forward: Tensor, reverse: Tensor, logp: Tensor, logq: Tensor, p: Tensor, q: Tensor) -> Closed:
    """``forward KL(p || q) + reverse KL(q || p)`` with weights per token that carry no gradient."""
    value_f, dz_f = forward_kl(logp, logq, p, q)
    value_r, dz_r = reverse_kl(logp, logq, p, q)
    dz = dz_f.mul_(forward.unsqueeze(-1)).addcmul_(dz_r, reverse.unsqueeze(-1))
    return forward * value_f + reverse * value_r, dz


def taid(logp: Tensor, logq: Tensor, p: Tensor, q: Tensor, *, t: float) -> Closed:
    logr = interpolated(logp, logq, t)
    return forward_kl(logr, logq, logr.exp(), q)


def mixture(logp: Tensor, logq: Tensor, p: Tensor, q: Tensor, *, of: Mapping[str, float]) -> Closed:
    value, dz = torch.zeros_like(q[..., 0]), torch.zeros_like(q)
    for name, weight in of.items():
        part, gradient = CLOSED[name](logp, logq, p, q)
        value += weight * part
        dz.add_(gradient, alpha=weight)
    return value, dz


def _log_of_mixture(p: Tensor, q: Tensor, share: float) -> Tensor:
    """``log(m / q)`` of ``m = share p + (1 - share) q``: exactly 0 where p = q; no number where q has vanished."""
    return torch.addcdiv(q.new_zeros(()), p - q, q, value=share).log1p_()


def _centred(values: Tensor, q: Tensor, mean: Tensor, factor: float = 1.0) -> Tensor:
    """``factor q (values - mean)``; the values are overwritten."""
    values.sub_(mean.unsqueeze(-1))
    return values.mul_(q) if factor == 1 else torch.addcmul(q.new_zeros(()), values, q, value=factor)


CLOSED: dict[str, Callable[..., Closed]] = {
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
}
