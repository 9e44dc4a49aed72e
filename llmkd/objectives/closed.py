"""Value and gradient of a term together, in closed form: what the row block of the engine runs.

Each is a function ``f(teacher, student, *, knobs) -> (value [n], dz [n, V])`` of two softmaxes: the value of
``divergences`` and its gradient to the student's logits at temperature 1.  For a sum over tokens of
``f_v(log p_v, log q_v)`` with ``g_v = df_v / dlog q_v`` that gradient is ``g - q sum_v g_v``.

They are written for speed and know nothing of log-probabilities of -inf: where they meet one the value is not a
number, and the row block takes the formula itself, by autograd.  A term without an entry here always does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.linalg import vecdot

from llmkd.objectives.distribution import Softmax
from llmkd.objectives.divergences import head_share, interpolated, power_difference

Closed = tuple[Tensor, Tensor]


def forward_kl(teacher: Softmax, student: Softmax) -> Closed:
    p, q = teacher.prob, student.prob
    return vecdot(p, _gap(teacher, student)), q - p


def reverse_kl(teacher: Softmax, student: Softmax) -> Closed:
    ratio = _gap(student, teacher)
    value = vecdot(student.prob, ratio)
    return value, ratio.sub_(value.unsqueeze(-1)).mul_(student.prob)


def jsd(teacher: Softmax, student: Softmax, *, beta: float = 0.5) -> Closed:
    """g = -(1 - beta) q log(m / q)."""
    p, q = teacher.prob, student.prob
    above = _excess(p, q, beta).log1p_()
    towards_p = vecdot(p, _gap(teacher, student).sub_(above))
    towards_q, dz = _centred(above, q, beta - 1)
    return beta * towards_p + towards_q, dz


def skew_forward_kl(teacher: Softmax, student: Softmax, *, alpha: float = 0.1) -> Closed:
    """g = -(1 - alpha) q p / m."""
    if alpha == 0:
        return forward_kl(teacher, student)
    p, q = teacher.prob, student.prob
    excess = _excess(q, p, 1 - alpha)
    value = -vecdot(p, excess.log1p())
    excess.add_(1)
    g = torch.addcdiv(q.new_zeros(()), q, excess, value=alpha - 1, out=excess)
    return value, g.addcmul_(q, g.sum(-1, keepdim=True), value=-1)


def skew_reverse_kl(teacher: Softmax, student: Softmax, *, alpha: float = 0.1, detach_mixture: bool = False) -> Closed:
    """g = -q (log(m / q) - 1 + alpha q / m); without the last part where the mixture is detached."""
    if alpha == 0:
        return reverse_kl(teacher, student)
    q = student.prob
    excess = _excess(teacher.prob, q, 1 - alpha)
    above = excess.log1p()
    if detach_mixture:
        return _centred(above, q, -1.0)
    value = -vecdot(q, above)
    above.addcdiv_(q.new_tensor(alpha), excess.add_(1))
    return value, _centred(above, q, -1.0)[1]


def total_variation(teacher: Softmax, student: Softmax) -> Closed:
    """g = q sign(q - p) / 2."""
    q = student.prob
    gap = q - teacher.prob
    sign = gap.sign()
    value = 0.5 * vecdot(gap, sign)
    return value, _centred(sign, q, 0.5)[1]


def hellinger(teacher: Softmax, student: Softmax) -> Closed:
    """g = (q - sqrt(p q)) / 2."""
    root_p, root_q = teacher.prob.sqrt(), student.prob.sqrt()
    gap = root_p - root_q
    root = root_p.mul_(root_q)
    mass = root.sum(-1, keepdim=True)
    return 0.5 * gap.square_().sum(-1), torch.addcmul(root, student.prob, mass, value=-1).mul_(-0.5)


def alpha_beta(teacher: Softmax, student: Softmax, *, alpha: float, beta: float) -> Closed:
    """g = (q^(alpha+beta) - p^alpha q^beta) / alpha, continued where alpha is 0."""
    logp, logq = teacher.log, student.log
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
    return value, mixed.sum(-1, keepdim=True).mul(student.prob).sub_(mixed)


def adaptive_kl(teacher: Softmax, student: Softmax, *, mu: float = 0.5) -> Closed:
    share = head_share(teacher.log, student.log, mu)
    return _both(share, 1 - share, teacher, student)


def balanced_kl(teacher: Softmax, student: Softmax, *, low: float = 1.0, high: float = 2.0) -> Closed:
    surer = vecdot(student.prob, student.log) > vecdot(teacher.prob, teacher.log)
    forward = torch.where(surer, high, low).to(student.prob.dtype)
    return _both(forward, low + high - forward, teacher, student)


def _both(forward: Tensor, reverse: Tensor, teacher: Softmax, student: Softmax) -> Closed:
    """``forward KL(p || q) + reverse KL(q || p)`` with weights per token that carry no gradient."""
    value_f, dz_f = forward_kl(teacher, student)
    value_r, dz_r = reverse_kl(teacher, student)
    dz = dz_f.mul_(forward.unsqueeze(-1)).addcmul_(dz_r, reverse.unsqueeze(-1))
    return forward * value_f + reverse * value_r, dz


def taid(teacher: Softmax, student: Softmax, *, t: float) -> Closed:
    between = interpolated(teacher.log, student.log, t)
    return forward_kl(Softmax(between, between.exp(), torch.zeros_like(between[..., 0])), student)


def mixture(teacher: Softmax, student: Softmax, *, of: Mapping[str, float]) -> Closed:
    value, dz = torch.zeros_like(student.normalizer), torch.zeros_like(student.prob)
    for name, weight in of.items():
        part, gradient = CLOSED[name](teacher, student)
        value += weight * part
        dz.add_(gradient, alpha=weight)
    return value, dz


def _gap(one: Softmax, other: Softmax) -> Tensor:
    """Difference of the log-probabilities, in two passes instead of three.

    The normalizers are taken off before a mean is: afterwards a small divergence would be what is left of two large
    numbers.
    """
    return (one.logits - other.logits).sub_((one.normalizer - other.normalizer).unsqueeze(-1))


def _excess(other: Tensor, own: Tensor, share: float) -> Tensor:
    """``m / own - 1`` of ``m = share other + (1 - share) own``: exactly 0 where the two are alike; no number where
    ``own`` has vanished."""
    gap = other - own
    return torch.addcdiv(own.new_zeros(()), gap, own, value=share, out=gap)


def _centred(values: Tensor, q: Tensor, factor: float) -> Closed:
    """``factor`` times the mean of the values under q, and ``factor q (values - mean)``; the values are overwritten."""
    weighted = torch.addcmul(q.new_zeros(()), values, q, value=factor, out=values)
    total = weighted.sum(-1, keepdim=True)
    return total.squeeze(-1), weighted.addcmul_(q, total, value=-1)


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
