"""Fused linear + divergence: from hidden states to a loss and its gradients, with no ``[N, V]`` tensor.

The counted tokens are taken in chunks.  A chunk's logits come out of the matrix product in float32; a row block of
them, small enough to stay in the cache, is visited once for all terms: values, statistics and the gradient to the
logits together.  Two more products carry that gradient to the hidden states and to the head.  Everything happens in
the forward pass, nothing is projected twice, and k terms cost the products of one.

Because gradients are made in the forward, the weights must be final when the engine is called (weight x mask / global
count), and the backward pass may only scale: the output is one scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmkd.objectives.divergences import TERMS, cross_entropy, expect
from llmkd.types import Head, Signals, matmul_float32

Formula = Callable[[Tensor], Tensor]
"""A function of ``logq [n, V]``."""
CHUNK_BYTES = 256 * 2**20
"""Float32 logits of a chunk, student and teachers together."""
CPU_BLOCK_BYTES = 2**20
"""Float32 logits of a row block on a CPU: a few of them fit the second-level cache."""


@dataclass(frozen=True)
class WeightedTerm:
    """One term as the engine takes it: its kind, its final weight per token ``[N]`` and the teacher it looks at."""

    kind: str
    weight: Tensor
    teacher: int | None = None


@dataclass
class Values:
    """What the engine measured on the way, all detached.

    terms ``[K, N]`` the unweighted value of each term, whatever its weight; entropy ``[N]`` of the student in
    nats; agreement ``[teachers, N]`` 1 where student and teacher have the same most likely token.
    """

    terms: Tensor
    entropy: Tensor
    agreement: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Request:
    """The arguments of one engine call that carry no gradient.

    targets ``[N]`` token ids; teachers: their Signals over the same N tokens; tau_student, tau_teacher: temperatures
    of the terms that look at a teacher (cross-entropy is always taken at temperature 1); vocabulary: number of shared
    rows V, the rest of either head is out of the distribution.
    """

    targets: Tensor
    teachers: Sequence[Signals]
    terms: Sequence[WeightedTerm]
    vocabulary: int
    tau_student: float = 1.0
    tau_teacher: float = 1.0
    chunk: int | None = None


def fused_loss(hidden: Tensor, head: Head, request: Request) -> tuple[Tensor, Values]:
    """Sum over terms and tokens of ``weight * value``, differentiable in ``hidden [N, Hs]`` and the head.

    Returns the scalar and the measured Values.  With a head that needs no gradient its product is left out.  Raises
    ValueError for shapes that do not fit, for terms that are unknown or lack their teacher, and for target ids outside
    the shared vocabulary.
    """
    _check(hidden, head, request)
    values = Values(
        terms=hidden.new_zeros((len(request.terms), hidden.shape[0]), dtype=_statistics_dtype(hidden)),
        entropy=hidden.new_zeros(hidden.shape[0], dtype=_statistics_dtype(hidden)),
        agreement=hidden.new_zeros((len(request.teachers), hidden.shape[0]), dtype=_statistics_dtype(hidden)),
    )
    # Inside an autograd function gradients always look switched off: ask here whether they are wanted.
    differentiate = torch.is_grad_enabled()
    loss: Tensor = _Fused.apply(hidden, head.weight, head.bias, head, request, values, differentiate)
    return loss, values


def _statistics_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _check(hidden: Tensor, head: Head, request: Request) -> None:
    tokens = hidden.shape[0]
    if hidden.dim() != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"student hidden states {tuple(hidden.shape)} do not fit the head {tuple(head.weight.shape)}: "
            "expected [N, Hs] and [V, Hs]"
        )
    if request.targets.shape != (tokens,):
        raise ValueError(f"{tokens} student tokens, but targets of shape {tuple(request.targets.shape)}")
    for signals in request.teachers:
        if signals.hidden.shape[0] != tokens:
            raise ValueError(f"{tokens} student tokens, but the teacher answered for {signals.hidden.shape[0]}")
        if signals.hidden.dim() != 2 or signals.hidden.shape[1] != signals.head.weight.shape[1]:
            raise ValueError(
                f"teacher hidden states {tuple(signals.hidden.shape)} do not fit the head "
                f"{tuple(signals.head.weight.shape)}: expected [N, Ht] and [V, Ht]"
            )
    rows = min(h.weight.shape[0] for h in (head, *(t.head for t in request.teachers)))
    if request.vocabulary > rows:
        raise ValueError(f"a shared vocabulary of {request.vocabulary} rows, but the smallest head has {rows}")
    for term in request.terms:
        _check_term(term, tokens, len(request.teachers))
    outside = request.targets[(request.targets < 0) | (request.targets >= request.vocabulary)]
    if outside.numel():
        raise ValueError(
            f"target id {int(outside[0])} is outside the shared vocabulary of {request.vocabulary} rows: "
            "the tokenizer does not belong to this model"
        )


def _check_term(term: WeightedTerm, tokens: int, teachers: int) -> None:
    if term.kind not in TERMS:
        raise ValueError(f"there is no term {term.kind}: one of {', '.join(TERMS)}")
    if TERMS[term.kind].needs_teacher != (term.teacher is not None):
        raise ValueError(f"{term.kind} {'needs a teacher' if term.teacher is None else 'takes no teacher'}")
    if term.teacher is not None and not 0 <= term.teacher < teachers:
        raise ValueError(f"{term.kind} looks at teacher {term.teacher}, but there are {teachers} teachers")
    if term.weight.shape != (tokens,):
        raise ValueError(f"{tokens} student tokens, but {term.kind} has weights of shape {tuple(term.weight.shape)}")


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, head, request, values, differentiate):  # type: ignore[no-untyped-def]
        needs_hidden = differentiate and ctx.needs_input_grad[0]
        needs_head = differentiate and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        compute = _compute_dtype(hidden)
        work = Head(weight.to(compute), bias, head.softcap, head.scale).rows(request.vocabulary)
        teachers = [_cast(signals, request.vocabulary) for signals in request.teachers]
        # Unscaled float16 gradients would vanish: they are kept in float32 until the loss scale has come.
        kept = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        grad_hidden = torch.zeros_like(hidden, dtype=kept) if needs_hidden else None
        grad_weight = weight.new_zeros(weight.shape, dtype=_statistics_dtype(hidden)) if needs_head else None
        grad_bias = None if bias is None or not needs_head else torch.zeros_like(bias, dtype=grad_weight.dtype)
        loss = hidden.new_zeros((), dtype=_statistics_dtype(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(hidden.shape[0], request):
                states = hidden[rows].to(compute)
                logits = work.logits(states)
                teacher_logits = [t.head.logits(t.hidden[rows]) for t in teachers]
                loss += _visit(logits, teacher_logits, rows, request, values, head, needs_hidden or needs_head)
                if needs_hidden:
                    grad_hidden[rows] = matmul_float32(logits.to(compute), work.weight).to(kept)
                if needs_head:
                    grad_weight[: request.vocabulary] += matmul_float32(logits.to(compute).t(), states)
                    if grad_bias is not None:
                        grad_bias[: request.vocabulary] += logits.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        assert upstream.dim() == 0, "gradients are made in the forward pass: the loss may only be scaled"
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = [None if g is None else (g * upstream.to(g.dtype)).to(dtype) for g, dtype in pairs]
        return *scaled, None, None, None, None


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the matrix products' inputs: autocast's if it is on, else the hidden states' own; the outputs are
    float32 in any case.

    On a CPU, whose low-precision products round their output, and for float16, in which a gradient divided by the
    token count vanishes, it is float32.
    """
    if hidden.dtype == torch.float64:
        return torch.float64
    device = hidden.device.type
    wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return torch.float32 if device == "cpu" or wanted == torch.float16 else wanted


def _cast(signals: Signals, vocabulary: int) -> Signals:
    """A teacher's signals in the dtype of its product: it has no gradients, so float16 may stay."""
    on_cpu = signals.hidden.device.type == "cpu" and signals.hidden.dtype != torch.float64
    dtype = torch.float32 if on_cpu else signals.hidden.dtype
    head = signals.head.rows(vocabulary)
    return Signals(signals.hidden.to(dtype), Head(head.weight.to(dtype), head.bias, head.softcap, head.scale))


def _chunks(tokens: int, request: Request) -> list[slice]:
    per_token = 4 * request.vocabulary * (1 + len(request.teachers))
    size = request.chunk or max(1, CHUNK_BYTES // per_token)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _visit(logits, teacher_logits, rows, request, values, head, needs_grad):  # type: ignore[no-untyped-def]
    """Visit a chunk in row blocks; ``logits`` is overwritten by the gradient to the product, before cap and scale."""
    loss = logits.new_zeros(())
    block = logits.shape[0]
    if logits.device.type == "cpu":
        block = max(1, CPU_BLOCK_BYTES // (4 * logits.shape[1]))
    for start in range(0, logits.shape[0], block):
        inner = slice(start, min(start + block, logits.shape[0]))
        outer = slice(rows.start + inner.start, rows.start + inner.stop)
        z = logits[inner]
        block_loss, gradient = _row_block(z, [t[inner] for t in teacher_logits], outer, request, values)
        loss += block_loss
        if not needs_grad:
            continue
        if head.softcap is not None:
            gradient = gradient * (1 - (z / head.softcap).square())
        torch.mul(gradient, head.scale, out=z)
    return loss


def _row_block(z, teacher_z, rows, request, values):  # type: ignore[no-untyped-def]
    """Values and the gradient to the logits ``z [n, V]`` of one row block, all terms together."""
    logq = z.log_softmax(-1)
    values.entropy[rows] = -expect(logq.exp(), logq)
    warm = logq if request.tau_student == 1.0 else (z / request.tau_student).log_softmax(-1)
    logps = [(t if request.tau_teacher == 1.0 else t / request.tau_teacher).log_softmax(-1) for t in teacher_z]
    student_top = z.argmax(-1)
    for i, t in enumerate(teacher_z):
        values.agreement[i, rows] = (t.argmax(-1) == student_top).to(values.agreement.dtype)
    loss = z.new_zeros(())
    gradient = torch.zeros_like(z)
    for k, term in enumerate(request.terms):
        weight = term.weight[rows].to(z.dtype)
        if term.kind == "cross_entropy":
            value = _cross_entropy(logq, request.targets[rows], weight, gradient)
        elif term.teacher is None:
            value = _pointwise(*_against(request.targets[rows], term.kind), logq, weight, gradient)
        else:
            formulas = _beside(logps[term.teacher], term.kind)
            value = _pointwise(*formulas, warm, weight / request.tau_student, gradient)
        values.terms[k, rows] = value
        # A token whose weight is 0 adds nothing, whatever its value: 0 * inf is not a number.
        loss += torch.where(weight == 0, 0.0, weight * value).sum()
    return loss, gradient


def _beside(logp: Tensor, kind: str) -> tuple[Formula, Formula | None]:
    """A divergence's value and closed-form gradient as functions of ``logq`` alone."""
    row = TERMS[kind]
    return partial(row.value, logp), None if row.gradient is None else partial(row.gradient, logp)


def _against(target: Tensor, kind: str) -> tuple[Formula, Formula | None]:
    """The same of a loss against the data."""
    row = TERMS[kind]
    closed = row.gradient
    return lambda logq: row.value(logq, target), None if closed is None else lambda logq: closed(logq, target)


def _cross_entropy(logq: Tensor, target: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """Value ``[n]``; adds ``weight (q - onehot)`` to the gradient, in place: what every run computes."""
    gradient.addcmul_(logq.exp(), weight.unsqueeze(-1))
    gradient.scatter_add_(-1, target.unsqueeze(-1), -weight.unsqueeze(-1))
    return cross_entropy(logq, target)


def _pointwise(value_of: Formula, closed: Formula | None, logq: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """Value ``[n]``; adds ``weight dvalue/dz`` to the gradient: the closed form, or autograd on this row block."""
    if closed is not None:
        _accumulate(gradient, closed(logq), weight)
        return value_of(logq)
    with torch.enable_grad():
        leaf = logq.detach().requires_grad_()
        value = value_of(leaf)
        (g,) = torch.autograd.grad(value.sum(), leaf)
    _accumulate(gradient, g - logq.exp() * g.sum(-1, keepdim=True), weight)
    return value.detach()


def _accumulate(gradient: Tensor, dz: Tensor, weight: Tensor) -> None:
    """Add ``weight dz``, where a weight of 0 adds nothing even if ``dz`` is no number."""
    if dz.is_cuda or (weight == 0).any():
        dz = torch.where((weight == 0).unsqueeze(-1), 0.0, dz)
    gradient.addcmul_(dz, weight.unsqueeze(-1))
