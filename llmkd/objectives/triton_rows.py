"""The programs of ``kernels``, in Triton: one for each row of logits, which walks over its vocabulary in tiles.

A sum over the row is kept apart for every lane of a tile and added up once, behind the loop, so that no tile waits for
another thread.  A probability of 0 (a logit of -inf, on either side or both) adds nothing: 0 * inf = 0.
"""

# mypy: ignore-errors
# What is compiled here is Triton's language: its values are not Python's types.

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e20)
"""Stands for -inf in a running maximum, so that differences stay numbers."""
LOG2_E = tl.constexpr(1.4426950408889634)
IMPOSSIBLE = tl.constexpr(-float("inf"))

# The columns of what ``statistics`` finds: ``kernels.FOUND`` names them.
TOP, SUM, ENTROPY, TAU_SUM, TAU_ENTROPY = (tl.constexpr(i) for i in range(5))
TEACHER = tl.constexpr(5)  # the same five
AGREEMENT, FORWARD_KL, REVERSE_KL = (tl.constexpr(i) for i in range(10, 13))

# Where the weights of the divergences begin that are taken point by point; ``kernels.POINTWISE`` names those.
FIRST = tl.constexpr(3)

JSD, SKEW_FORWARD, SKEW_REVERSE, SKEW_REVERSE_DETACHED, TOTAL_VARIATION, HELLINGER, ALPHA_BETA = (
    tl.constexpr(i) for i in range(7)
)


# -- sums -------------------------------------------------------------------------------------------------------------


@triton.jit
def _larger(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def _smaller(a, b):
    return tl.where(a < b, a, b)


@triton.jit
def _plus(a, b):
    return a + b


@triton.jit
def _exp(x):
    """In the one instruction that GPUs have for it; ``tl.exp`` takes three more for results below 1e-38."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def _weighed(share, x):
    """``share x``, and 0 where the share is 0, whatever x is."""
    return tl.where(share == 0, 0.0, share * x)


# -- statistics -------------------------------------------------------------------------------------------------------


@triton.jit
def _nothing_seen(BLOCK: tl.constexpr):
    """Of each lane: the largest logit, its tile, and the sums of ``e^d`` and ``d e^d``, d being relative to it, at
    temperature 1 and at tau."""
    zero = tl.full([BLOCK], 0.0, tl.float32)
    return tl.full([BLOCK], LOWEST, tl.float32), tl.full([BLOCK], 0, tl.int32), zero, zero, zero, zero


@triton.jit
def _shares(d, inverse):
    """What a sum so far and a new logit, ``d`` above the maximum so far, count for: one of the two is 1."""
    e = tl.exp2(-tl.abs(d) * (inverse * LOG2_E))
    return tl.where(d > 0, e, 1.0), tl.where(d > 0, 1.0, e)


@triton.jit
def _seen(state, x, start, inverse, TAU: tl.constexpr, TAU_ENTROPY_TOO: tl.constexpr):
    """The state with one more tile, and the shares at tau of what was there and of what came."""
    top, at, total, moment, tau_total, tau_moment = state
    x = tl.maximum(x, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    d = x - top
    above, below = tl.where(d > 0, d, 0.0), tl.where(d > 0, 0.0, d)
    old, new = _shares(d, 1.0)
    moment = (moment - above * total) * old + below * new
    total = total * old + new
    if TAU:
        old, new = _shares(d, inverse)
        if TAU_ENTROPY_TOO:
            tau_moment = (tau_moment - above * inverse * tau_total) * old + below * inverse * new
        tau_total = tau_total * old + new
    at = tl.where(d > 0, start, at)
    top = tl.where(d > 0, x, top)
    return (top, at, total, moment, tau_total, tau_moment), old, new


@triton.jit
def _summed(top, best, total, moment, inverse):
    """Log-sum-exp relative to the largest logit, the entropy, and the shares of the lanes, at one temperature."""
    gap = (top - best) * inverse
    share = _exp(gap)
    whole = tl.reduce(share * total, 0, _plus)
    log_sum = tl.log(whole)
    return log_sum, log_sum - tl.reduce(share * (moment + gap * total), 0, _plus) / whole, share, whole


@triton.jit
def _stored(row, state, inverse, size, BLOCK: tl.constexpr, FROM: tl.constexpr, TAU: tl.constexpr):
    """Store five columns on one model; returns what the divergences need, and the likeliest token."""
    top, at, total, moment, tau_total, tau_moment = state
    best = tl.reduce(top, 0, _larger)
    token = tl.reduce(tl.where(top == best, at + tl.arange(0, BLOCK), size), 0, _smaller)
    log_sum, entropy, share, whole = _summed(top, best, total, moment, 1.0)
    tl.store(row + FROM + SUM, log_sum)
    # A row of -inf alone is no distribution: its normalizer and its entropy must not look like numbers.
    tl.store(row + FROM + ENTROPY, tl.where(best > LOWEST, entropy, float("nan")))
    if TAU:
        log_sum, entropy, share, whole = _summed(top, best, tau_total, tau_moment, inverse)
    tl.store(row + FROM + TAU_SUM, log_sum)
    tl.store(row + FROM + TAU_ENTROPY, entropy)
    best = tl.where(best > LOWEST, best, IMPOSSIBLE)
    tl.store(row + FROM + TOP, best)
    return best, log_sum, share, whole, token


@triton.jit
def _loaded(pointer, tau_pointer, stride, TAU: tl.constexpr):
    """A row of logits and the inverse of its temperature."""
    row = tl.program_id(0).to(tl.int64)
    inverse = 1.0
    if TAU:
        inverse = 1.0 / tl.load(tau_pointer + row)
    return pointer + row * stride, inverse


@triton.jit
def _kl(mean_gap, best, other_best, inverse, other_inverse, log_sum, other_log_sum):
    value = mean_gap - (best * inverse - other_best * other_inverse) - (log_sum - other_log_sum)
    return tl.where(value < 0, 0.0, value)


@triton.jit
def statistics(
    z_pointer, y_pointer, z_tau_pointer, y_tau_pointer, found_pointer, z_stride, y_stride, size,
    COLUMNS: tl.constexpr, TAUGHT: tl.constexpr, Z_TAU: tl.constexpr, Y_TAU: tl.constexpr, FORWARD: tl.constexpr,
    REVERSE: tl.constexpr, TAU_ENTROPY_TOO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Reads both rows once; the two KL divergences come with it."""
    lanes = tl.arange(0, BLOCK)
    found = found_pointer + tl.program_id(0).to(tl.int64) * COLUMNS
    z_row, z_inverse = _loaded(z_pointer, z_tau_pointer, z_stride, Z_TAU)
    student = _nothing_seen(BLOCK)
    if TAUGHT:
        y_row, y_inverse = _loaded(y_pointer, y_tau_pointer, y_stride, Y_TAU)
        teacher = _nothing_seen(BLOCK)
        forward = tl.full([BLOCK], 0.0, tl.float32)
        reverse = tl.full([BLOCK], 0.0, tl.float32)
    for start in range(0, size, BLOCK):
        at = start + lanes
        z = tl.load(z_row + at, mask=at < size, other=IMPOSSIBLE)
        student, z_old, z_new = _seen(student, z, start, z_inverse, Z_TAU, TAU_ENTROPY_TOO)
        if TAUGHT:
            y = tl.load(y_row + at, mask=at < size, other=IMPOSSIBLE)
            teacher, y_old, y_new = _seen(teacher, y, start, y_inverse, Y_TAU, TAU_ENTROPY_TOO)
            if FORWARD:
                forward = _weighed(y_old, forward) + _weighed(y_new, y * y_inverse - z * z_inverse)
            if REVERSE:
                reverse = _weighed(z_old, reverse) + _weighed(z_new, z * z_inverse - y * y_inverse)
    z_best, z_sum, z_share, z_whole, z_token = _stored(found, student, z_inverse, size, BLOCK, 0, Z_TAU)
    if TAUGHT:
        y_best, y_sum, y_share, y_whole, y_token = _stored(found, teacher, y_inverse, size, BLOCK, TEACHER, Y_TAU)
        tl.store(found + AGREEMENT, tl.where(z_token == y_token, 1.0, 0.0))
        if FORWARD:
            mean = tl.reduce(_weighed(y_share, forward), 0, _plus) / y_whole
            tl.store(found + FORWARD_KL, _kl(mean, y_best, z_best, y_inverse, z_inverse, y_sum, z_sum))
        if REVERSE:
            mean = tl.reduce(_weighed(z_share, reverse), 0, _plus) / z_whole
            tl.store(found + REVERSE_KL, _kl(mean, z_best, y_best, z_inverse, y_inverse, z_sum, y_sum))


# -- divergences, point by point --------------------------------------------------------------------------------------


@triton.jit
def _normalizers(found):
    """Of the student and of the teacher: the largest logit, and the log-sum-exp at tau relative to it."""
    teacher = found + TEACHER
    return tl.load(found + TOP), tl.load(found + TAU_SUM), tl.load(teacher + TOP), tl.load(teacher + TAU_SUM)


@triton.jit
def _weights(pointer, COUNT: tl.constexpr):
    """Of the divergences that are taken point by point."""
    out = (tl.load(pointer),)
    for i in tl.static_range(1, COUNT):
        out = out + (tl.load(pointer + i),)
    return out


@triton.jit
def _pair(z, y, z_inverse, y_inverse, normalizers):
    """``log p``, ``log q``, their difference (0 where both are -inf), the larger probability, the smaller one relative
    to it, p and q.

    With the ratio from the difference of logarithms, ``p - q`` keeps its digits where the two are nearly equal.
    """
    z_top, z_sum, y_top, y_sum = normalizers
    logq = (z - z_top) * z_inverse - z_sum
    logp = (y - y_top) * y_inverse - y_sum
    step = tl.where(logp == logq, 0.0, logp - logq)
    large = _exp(_larger(logp, logq))
    ratio = _exp(-tl.abs(step))
    small = large * ratio
    return logp, logq, step, large, ratio, tl.where(step >= 0, large, small), tl.where(step >= 0, small, large)


@triton.jit
def _mixed(step, ratio, share):
    """Of the mixture ``m = share p + (1 - share) q``: m over the larger probability, log(p / m) and log(q / m)."""
    other = tl.where(step >= 0, 1.0 - share, share)
    mass = 1.0 - other * (1.0 - ratio)
    log_mass = tl.log(mass)
    return mass, tl.where(step >= 0, 0.0, step) - log_mass, tl.where(step >= 0, -step, 0.0) - log_mass


@triton.jit
def _expm1(x):
    """For |x| < 1."""
    out = x / 11 + 1.0
    for i in tl.static_range(9):
        out = out * x / (10 - i) + 1.0
    return x * out


@triton.jit
def _power(log, exponent):
    """``log(x^exponent)``, where x^0 = 1 also at x = 0."""
    return tl.where(exponent == 0, 0.0, exponent * log)


@triton.jit
def _power_difference(x, y, power, step):
    """``(e^x - e^y) / power`` where ``x - y = power * step``; ``e^y step`` at power 0."""
    weight = _exp(y)
    gap = _power(step, power)
    close = tl.abs(gap) < 1
    curved = tl.where(close, weight * _expm1(tl.where(close, gap, 0.0)), _exp(x) - weight)
    return tl.where(power == 0, _weighed(weight, step), curved / tl.where(power == 0, 1.0, power))


@triton.jit
def _alpha_beta(logp, logq, step, alpha, beta):
    """The terms of the sum: with the roles swapped where alpha is the larger exponent, so that the divisor is."""
    never = (logp == IMPOSSIBLE) & (logq == IMPOSSIBLE)
    logp, logq = tl.where(never, 0.0, logp), tl.where(never, 0.0, logq)
    both = alpha + beta
    mixed = _power(logp, alpha) + _power(logq, beta)
    p_both, q_both = _power(logp, both), _power(logq, both)
    g = -_power_difference(mixed, q_both, alpha, step)
    swap = tl.abs(beta) < tl.abs(alpha)
    step, base, other = tl.where(swap, -step, step), tl.where(swap, p_both, q_both), tl.where(swap, q_both, p_both)
    power, divisor = tl.where(swap, beta, alpha), tl.where(swap, alpha, beta)
    value = _power_difference(other, base, both, step) - _power_difference(mixed, base, power, step)
    tiny = tl.abs(divisor) < 3.45e-4
    return tl.where(tiny, 0.5 * step * step, value / tl.where(tiny, 1.0, divisor)), g


@triton.jit
def _point(KIND: tl.constexpr, a, b, logp, logq, step, large, ratio, p, q):
    """What one token adds to the value of a divergence, and ``g``: its derivative to ``log q``, up to a multiple of q,
    which the gradient to the logits ``g - q sum g`` does not see.

    Values that are a sum of both signs have ``c (q - p)`` added, which sums to 0: so no part of them is negative.
    """
    gap = tl.where(step >= 0, -large, large) * (1.0 - ratio)  # q - p
    if KIND == JSD:
        mass, log_p_over, log_q_over = _mixed(step, ratio, a)
        g = (1.0 - a) * _weighed(q, log_q_over)
        value = a * _weighed(p, log_p_over) + g
    elif KIND == SKEW_FORWARD:
        mass, log_p_over, log_q_over = _mixed(step, ratio, a)
        value = _weighed(p, log_p_over) + (1.0 - a) * gap
        g = (a - 1.0) * q * (tl.where(step >= 0, 1.0, ratio) / mass)
    elif KIND == SKEW_REVERSE or KIND == SKEW_REVERSE_DETACHED:  # noqa: SIM109 - Triton knows no other way
        mass, log_p_over, log_q_over = _mixed(step, ratio, 1.0 - a)
        g = _weighed(q, log_q_over)
        value = g - (1.0 - a) * gap
        if KIND == SKEW_REVERSE:
            g -= a * q * (tl.where(step >= 0, ratio, 1.0) / mass)
    elif KIND == TOTAL_VARIATION:
        value = 0.5 * large * (1.0 - ratio)
        g = 0.5 * q * tl.where(step > 0, -1.0, tl.where(step < 0, 1.0, 0.0))
    elif KIND == HELLINGER:
        root = tl.sqrt(ratio)
        value = 0.5 * large * (1.0 - root) * (1.0 - root)
        g = -0.5 * large * root
    else:
        value, g = _alpha_beta(logp, logq, step, a, b)
    return value, g


@triton.jit
def measure(
    z_pointer, y_pointer, z_tau_pointer, y_tau_pointer, found_pointer, weight_pointer, value_pointer, sum_pointer,
    z_stride, y_stride, size, knobs,
    COLUMNS: tl.constexpr, KINDS: tl.constexpr, COUNT: tl.constexpr, Z_TAU: tl.constexpr, Y_TAU: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The values of the divergences that need both normalizers first, and ``sum_v`` of their weighted g."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    found = found_pointer + row * COLUMNS
    z_row, z_inverse = _loaded(z_pointer, z_tau_pointer, z_stride, Z_TAU)
    y_row, y_inverse = _loaded(y_pointer, y_tau_pointer, y_stride, Y_TAU)
    normalizers = _normalizers(found)
    weights = _weights(weight_pointer + row * (FIRST + COUNT) + FIRST, COUNT)
    zero = tl.full([BLOCK], 0.0, tl.float32)
    total, values = zero, (zero,)
    for _ in tl.static_range(COUNT - 1):
        values = values + (zero,)
    for start in range(0, size, BLOCK):
        at = start + lanes
        z = tl.load(z_row + at, mask=at < size, other=IMPOSSIBLE)
        y = tl.load(y_row + at, mask=at < size, other=IMPOSSIBLE)
        logp, logq, step, large, ratio, p, q = _pair(z, y, z_inverse, y_inverse, normalizers)
        for i in tl.static_range(COUNT):
            value, g = _point(KINDS[i], knobs[2 * i], knobs[2 * i + 1], logp, logq, step, large, ratio, p, q)
            values = values[1:] + (values[0] + value,)
            total += _weighed(weights[i], g)
    for i in tl.static_range(COUNT):
        tl.store(value_pointer + row * COUNT + i, tl.reduce(values[i], 0, _plus))
    tl.store(sum_pointer + row, tl.reduce(total, 0, _plus))


# -- gradient ---------------------------------------------------------------------------------------------------------


@triton.jit
def _divergences(
    z, y, z_inverse, y_inverse, normalizers, forward, reverse, weights, total, knobs,
    KINDS: tl.constexpr, COUNT: tl.constexpr, FORWARD: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The gradient of all of them to the logits."""
    logp, logq, step, large, ratio, p, q = _pair(z, y, z_inverse, y_inverse, normalizers)
    dz = _weighed(total, -q)
    if FORWARD:
        dz += _weighed(forward, tl.where(step >= 0, -large, large) * (1.0 - ratio))
    if REVERSE:
        dz += _weighed(reverse, _weighed(q, -step))
    for i in tl.static_range(COUNT):
        _value, g = _point(KINDS[i], knobs[2 * i], knobs[2 * i + 1], logp, logq, step, large, ratio, p, q)
        dz += _weighed(weights[i], g)
    return dz * z_inverse


@triton.jit
def gradient(
    z_pointer, y_pointer, z_tau_pointer, y_tau_pointer, found_pointer, weight_pointer, sum_pointer, target_pointer,
    out_pointer, z_stride, y_stride, out_stride, size, knobs, softcap, scale,
    COLUMNS: tl.constexpr, KINDS: tl.constexpr, COUNT: tl.constexpr, FORWARD: tl.constexpr, REVERSE: tl.constexpr,
    CROSS: tl.constexpr, Z_TAU: tl.constexpr, Y_TAU: tl.constexpr, CAPPED: tl.constexpr,
    BLOCK: tl.constexpr, SECTION: tl.constexpr,
):  # fmt: skip
    """Writes a section of the gradient; over z itself too, since a tile is read before it is written, by no other."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    found = found_pointer + row * COLUMNS
    out_row = out_pointer + row * out_stride
    weight = weight_pointer + row * (FIRST + COUNT)
    z_row, z_inverse = _loaded(z_pointer, z_tau_pointer, z_stride, Z_TAU)
    if FORWARD or REVERSE or COUNT > 0:
        y_row, y_inverse = _loaded(y_pointer, y_tau_pointer, y_stride, Y_TAU)
        normalizers = _normalizers(found)
        forward, reverse = tl.load(weight + 1), tl.load(weight + 2)
        total = _weighed(reverse, tl.load(found + REVERSE_KL))
        weights = (forward,)
        if COUNT > 0:
            total += tl.load(sum_pointer + row)
            weights = _weights(weight + FIRST, COUNT)
    if CROSS:
        target, cross = tl.load(target_pointer + row), tl.load(weight)
        top, log_sum = tl.load(found + TOP), tl.load(found + SUM)
    first = tl.program_id(1) * SECTION
    for start in range(first, _smaller(first + SECTION, size), BLOCK):
        at = start + lanes
        z = tl.load(z_row + at, mask=at < size, other=IMPOSSIBLE)
        dz = tl.full([BLOCK], 0.0, tl.float32)
        if FORWARD or REVERSE or COUNT > 0:
            y = tl.load(y_row + at, mask=at < size, other=IMPOSSIBLE)
            dz = _divergences(
                z, y, z_inverse, y_inverse, normalizers, forward, reverse, weights, total, knobs,
                KINDS, COUNT, FORWARD, REVERSE,
            )  # fmt: skip
        if CROSS:
            dz += _weighed(cross, _exp(z - top - log_sum) - tl.where(at == target, 1.0, 0.0))
        if CAPPED:
            dz *= 1.0 - (z / softcap) * (z / softcap)
        tl.store(out_row + at, dz * scale, mask=at < size)
