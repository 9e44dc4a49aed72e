"""Fused linear + divergence: from hidden states to a loss and its gradients, with no ``[N, V]`` tensor.

Tokens that no term looks at are dropped first.  The others are taken in chunks.  A chunk's logits come out of the
matrix product in float32; a row kernel, or a loop over row blocks that stay in the cache, visits them once for all
terms: values, statistics and the gradient to the logits together.  Two more products carry that gradient to the hidden
states and to the head.  Everything happens in the forward pass, nothing is projected twice, and k terms cost the
products of one.

Because gradients are made in the forward, the weights must be final when the engine is called (weight x mask / global
count), and the backward pass may only scale: the output is one scalar.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmkd.objectives import compiled, kernels, rows
from llmkd.objectives.faults import Faults, TokenFault
from llmkd.objectives.memory import room
from llmkd.objectives.refusals import check, flag_targets, flag_teacher, flag_temperatures, flag_values
from llmkd.objectives.request import Request, Values, WeightedTerm, select
from llmkd.objectives.rows import Rows
from llmkd.objectives.sparse import SparseRows
from llmkd.types import Head, Logits, Signals, Sparse, States, add_matmul_float32, matmul_float32

__all__ = ["Request", "TokenFault", "Values", "WeightedTerm", "fused_loss"]

CHUNK_BYTES = {"cpu": 2**28, "cuda": 5 * 2**28}
"""Float32 logits that exist at once, student and teachers together."""
CPU_CHUNK = 512
"""Tokens of a chunk on a CPU: more make its products no faster."""
PRODUCT_ROWS = 4096
"""Tokens whose low-precision gradients go through one product on a GPU: each reads and writes the head gradient."""


def fused_loss(hidden: Tensor, head: Head, request: Request) -> tuple[Tensor, Values]:
    """Sum over terms and tokens of ``weight * value``, differentiable in ``hidden [N, Hs]`` and the head.

    Returns the scalar and the measured Values.  With a head that needs no gradient its product is left out.  Raises
    ValueError for shapes that do not fit, for terms that are unknown, lack their teacher, have knobs outside their
    range or are refused on their teacher's signal; TokenFault (a ValueError) for a token whose target or teacher is
    not a number that can be trained on, or whose value is infinite.
    """
    check(hidden, head, request)
    kept = _kept(request)
    if kept is None:
        return _fused(hidden, head, request)
    values = Values.zeros(len(request.terms), len(request.teachers), hidden.shape[0], like=hidden)
    try:
        loss, found = _fused(hidden[kept], head, select(request, kept))
    except TokenFault as fault:
        raise TokenFault(int(kept[fault.row]), fault.what) from None
    found.spread(values, kept)
    return loss, values


def _kept(request: Request) -> Tensor | None:
    """Indices of the tokens that some term looks at; None for all."""
    if request.all_kept:
        return None
    keep = request.keep
    if keep is None:
        weights = [t.weight != 0 for t in request.terms]
        keep = torch.stack(weights).any(0) if weights else torch.zeros_like(request.targets, dtype=torch.bool)
    kept = keep.nonzero().squeeze(-1)
    return None if kept.shape == request.targets.shape else kept


def _fused(hidden: Tensor, head: Head, request: Request) -> tuple[Tensor, Values]:
    values = Values.zeros(len(request.terms), len(request.teachers), hidden.shape[0], like=hidden)
    # Inside an autograd function gradients always look switched off: ask here whether they are wanted.
    differentiate = torch.is_grad_enabled()
    loss: Tensor = _Fused.apply(hidden, head.weight, head.bias, head, request, values, differentiate)
    return loss, values


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, head, request, values, differentiate):  # type: ignore[no-untyped-def]
        needs_hidden = differentiate and ctx.needs_input_grad[0]
        needs_head = differentiate and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        faults = Faults()
        request = flag_targets(request, faults)
        flag_temperatures(request, faults)
        compute = _compute_dtype(hidden)  # asked before autocast is switched off
        with torch.autocast(hidden.device.type, enabled=False):
            loss, *gradients = _run(hidden, head, request, compute, values, faults, needs_hidden, needs_head)
        flag_values(request, values, faults)
        faults.report()
        ctx.gradients = gradients
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        assert upstream.dim() == 0, "gradients are made in the forward pass: the loss may only be scaled"
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss have been handed out: it has one backward pass")
        # Kept by nobody else, they are scaled in place and become the parameters' own: a head's are gigabytes.
        gradients, ctx.gradients = ctx.gradients, None
        if not (upstream.device.type == "cpu" and upstream.item() == 1):
            gradients = [None if g is None else g.mul_(upstream) for g in gradients]
        found = [None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return *found, None, None, None, None


def _run(hidden, head, request, compute, values, faults, needs_hidden, needs_head):  # type: ignore[no-untyped-def]
    """Loss and the gradients to hidden states, head and bias (None where they are not needed)."""
    tokens, vocabulary = hidden.shape[0], request.vocabulary
    statistics = _statistics_dtype(hidden)
    work = Head(head.weight.to(compute), head.bias, head.softcap, head.scale).rows(vocabulary)
    teachers = [_ready(signals, request, statistics, faults) for signals in request.teachers]
    # Unscaled float16 gradients would vanish: they are kept in float32 until the loss scale has come.
    kept = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
    grad_hidden = torch.zeros_like(hidden, dtype=kept) if needs_hidden else None
    grad_weight = None
    if needs_head:
        grad_weight = room(*head.weight.shape, dtype=statistics, device=hidden.device).zero_()
    grad_bias = None if head.bias is None or not needs_head else torch.zeros_like(head.bias, dtype=statistics)
    loss = hidden.new_zeros((), dtype=statistics)
    space = _Space.of(tokens, hidden, compute, statistics, request)
    for group in _slices(0, tokens, space.group):
        for chunk in _slices(group.start, group.stop, space.chunk):
            z = work.logits(hidden[chunk].to(compute), out=space.logits[0][: chunk.stop - chunk.start])
            taught = [_taught(t, chunk, space.logits[1 + i]) for i, t in enumerate(teachers)]
            part, differentiate = Rows(z, taught, chunk), needs_hidden or needs_head
            low = space.gradient(chunk.start - group.start, chunk.stop - group.start)
            if low is not None and grad_bias is None and kernels.serves(z, taught, request):
                loss += kernels.visit(part, head, request, values, differentiate, out=low)
            else:
                path = next((p for p in (kernels, compiled) if p.serves(z, taught, request)), rows)
                loss += path.visit(part, head, request, values, differentiate)
                low = z if low is None else low.copy_(z)
            if grad_bias is not None:
                grad_bias[:vocabulary] += z.sum(0)
        dz = low if space.gradients is None else space.gradients[: group.stop - group.start]
        if needs_hidden:
            product = matmul_float32(dz, work.weight)
            grad_hidden[group] = product.to(kept)
        if needs_head:
            add_matmul_float32(grad_weight[:vocabulary], dz.t(), hidden[group].to(compute))
    return loss, grad_hidden, grad_weight, grad_bias


class _Space:
    """Memory that is used again by every chunk: logits in float32 of student and teachers; and where products take a
    lower precision, the gradients of a group of chunks in it, so that few products carry many tokens."""

    def __init__(self, chunk: int, group: int, logits: list[Tensor], gradients: Tensor | None) -> None:
        self.chunk, self.group = chunk, group
        self.logits = logits
        self.gradients = gradients

    @classmethod
    def of(cls, tokens: int, hidden: Tensor, compute: torch.dtype, statistics: torch.dtype, request: Request) -> _Space:
        vocabulary, device = request.vocabulary, hidden.device
        dense = [not isinstance(t, Sparse) for t in request.teachers]
        made = [True, *(isinstance(t, States) for t in request.teachers)]
        limit = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
        chunk = request.chunk or max(1, limit // (4 * vocabulary * (1 + sum(dense))))
        if request.chunk is None:
            chunk = min(chunk, CPU_CHUNK) if device.type == "cpu" else _whole_waves(chunk, device)
        chunk = max(1, min(chunk, tokens))
        logits = [room(chunk if m else 0, vocabulary, dtype=statistics, device=device) for m in made]
        if compute == statistics:
            return cls(chunk, chunk, logits, None)
        group = min(max(1, PRODUCT_ROWS // chunk), -(-tokens // chunk)) * chunk
        return cls(chunk, group, logits, room(group, vocabulary, dtype=compute, device=device))

    def gradient(self, start: int, stop: int) -> Tensor | None:
        """Where the gradient of some rows of a group goes, if it is not left where their logits were."""
        return None if self.gradients is None else self.gradients[start:stop]


def _whole_waves(chunk: int, device: torch.device) -> int:
    """Fewer rows, so that the row kernel, a program a row and about four at a time on a processor, ends together."""
    if device.type != "cuda":
        return chunk
    wave = 4 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(chunk - chunk % wave, min(chunk, wave))


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def _statistics_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


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


def _ready(signals: Signals, request: Request, statistics: torch.dtype, faults: Faults) -> Signals | SparseRows:
    """A teacher's signals in the dtype of its product: it has no gradients, so float16 may stay."""
    if isinstance(signals, Sparse):
        flag_teacher(signals, request.vocabulary, faults)
        return SparseRows.of(signals, request.vocabulary, statistics)
    if isinstance(signals, Logits):
        return signals
    on_cpu = signals.hidden.device.type == "cpu" and signals.hidden.dtype != torch.float64
    dtype = torch.float32 if on_cpu else signals.hidden.dtype
    head = signals.head.rows(request.vocabulary)
    return States(signals.hidden.to(dtype), Head(head.weight.to(dtype), head.bias, head.softcap, head.scale))


def _taught(teacher: Signals | SparseRows, chunk: slice, out: Tensor) -> Tensor | SparseRows:
    """A chunk of a teacher: logits ``[n, V]`` of a dense one, in the dtype of ``out``."""
    if isinstance(teacher, SparseRows):
        return teacher[chunk]
    if isinstance(teacher, Logits):
        return teacher.logits[chunk, : out.shape[1]].to(out.dtype)
    assert isinstance(teacher, States)
    # A float64 teacher beside a float32 student, or the other way round, cannot write into the student's precision.
    fits = (teacher.hidden.dtype == torch.float64) == (out.dtype == torch.float64)
    logits = teacher.head.logits(teacher.hidden[chunk], out=out[: chunk.stop - chunk.start] if fits else None)
    return logits.to(out.dtype)
