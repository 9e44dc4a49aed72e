"""What is measured: one function each, all for the same number, the mean of a divergence over N tokens.

A function takes the Inputs and the name of a divergence and returns that mean and its gradients to the student's
hidden states and head.  ``beta`` is the peers' word: in TRL and in Liger 0 is forward KL, 1 is reverse KL, and in
between it weighs the teacher, in the sum and in the mixture, as our jsd does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llmkd.objectives import engine
from llmkd.types import Head, States, add_matmul_float32, matmul_float32

from inputs import Inputs

KNOBS: dict[str, dict[str, float]] = {
    "forward_kl": {},
    "reverse_kl": {},
    "jsd": {"beta": 0.5},
    "skew_forward_kl": {"alpha": 0.1},
    "skew_reverse_kl": {"alpha": 0.1},
}
"""The divergences, with the knobs that they are measured at."""
PEER_BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": KNOBS["jsd"]["beta"]}

Found = tuple[Tensor, Tensor, Tensor]
"""Loss, gradient to the hidden states, gradient to the head."""


def llmkd(inputs: Inputs, divergence: str, compiled: bool = False) -> Found:
    loss, _ = engine.fused_loss(inputs.hidden, Head(inputs.head), request_of(inputs, divergence, compiled))
    return _backward(loss, inputs)


def request_of(inputs: Inputs, divergence: str, compiled: bool = False) -> engine.Request:
    tokens, vocabulary = inputs.hidden.shape[0], inputs.head.shape[0]
    weight = torch.full((tokens,), 1 / tokens, device=inputs.hidden.device)
    return engine.Request(
        targets=inputs.targets,
        teachers=[States(inputs.teacher_hidden, Head(inputs.teacher_head))],
        terms=[engine.WeightedTerm(divergence, weight, teacher=0, knobs=KNOBS[divergence])],
        vocabulary=vocabulary,
        compiled=compiled,
    )


def trl_chunked(inputs: Inputs, divergence: str) -> Found:
    """As TRL's DistillationTrainer calls it, without its mask: all tokens count."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    values, _ = ChunkedDivergenceFunction.apply(
        inputs.hidden, inputs.head, None, inputs.teacher_hidden, inputs.teacher_head, None, PEER_BETA[divergence], 1.0
    )
    return _backward(values.sum() / values.shape[0], inputs)


def trl_dense(inputs: Inputs, divergence: str) -> Found:
    """All logits, as two models return them, and the loss of TRL's GKDTrainer; without labels, whose mask would copy
    ``[N, V]`` once more."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    logits = inputs.hidden @ inputs.head.t()
    with torch.no_grad():
        teacher_logits = inputs.teacher_hidden @ inputs.teacher_head.t()
    loss = GKDTrainer.generalized_jsd_loss(
        logits, teacher_logits, beta=PEER_BETA[divergence], num_items_in_batch=logits.shape[0]
    )
    del logits, teacher_logits
    return _backward(loss, inputs)


def liger(inputs: Inputs, divergence: str, compiled: bool = False) -> Found:
    """Its soft loss alone, which it divides by the tokens itself."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss_of = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=PEER_BETA[divergence], compiled=compiled
    )
    loss = loss_of(inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head, inputs.targets)
    return _backward(loss, inputs)


def _backward(loss: Tensor, inputs: Inputs) -> Found:
    loss.backward()
    assert inputs.hidden.grad is not None and inputs.head.grad is not None
    return loss.detach(), inputs.hidden.grad, inputs.head.grad


@torch.no_grad()
def gemm4(inputs: Inputs, divergence: str) -> Found:
    """The floor: student logits, teacher logits, and the products of something of their size with head and hidden
    states.  Chunks are those of the engine, all memory is kept from call to call, nothing else happens.

    In float32 the student's logits stand for the gradient; in a lower precision, of which they are not, a fixed
    tensor does.  The "loss" is the teacher's logit of the last token and the first word.
    """
    if not inputs.kept:
        inputs.kept.update(_products(inputs, divergence))
    kept = inputs.kept
    hidden, head, taught, taught_head = kept["operands"]
    (z, y), stand_in, (grad_hidden, grad_head) = kept["logits"], kept["stand_in"], kept["gradients"]
    tokens, chunk, group = hidden.shape[0], z.shape[0], kept["group"]
    rows = 0
    for start in range(0, tokens, group):
        stop = min(start + group, tokens)
        for at in range(start, stop, chunk):
            rows = min(chunk, stop - at)
            matmul_float32(hidden[at : at + rows], head.t(), z[:rows])
            matmul_float32(taught[at : at + rows], taught_head.t(), y[:rows])
        dz = (z if stand_in is None else stand_in)[: stop - start]
        torch.mm(dz, head, out=grad_hidden[start:stop])
        if start == 0:
            matmul_float32(dz.t(), hidden[start:stop], grad_head)
        else:
            add_matmul_float32(grad_head, dz.t(), hidden[start:stop])
    return y[rows - 1, 0], grad_hidden, grad_head


def _products(inputs: Inputs, divergence: str) -> dict[str, Any]:
    """The memory of ``gemm4``: the engine's own, and that of the gradients."""
    compute = engine._compute_dtype(inputs.hidden)
    named = [inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head]
    operands = [x.detach().to(compute) for x in named]
    hidden, head = operands[:2]
    request = request_of(inputs, divergence)
    space = engine._Space.of(hidden.shape[0], inputs.hidden, compute, torch.float32, request)
    if space.gradients is not None:
        for at in range(0, space.group, space.chunk):
            rows = hidden[at : at + space.chunk]
            torch.mm(rows, head.t(), out=space.gradients[at : at + rows.shape[0]])
    return {
        "operands": operands, "logits": space.logits, "stand_in": space.gradients, "group": space.group,
        "gradients": (torch.empty_like(hidden), torch.empty_like(head, dtype=torch.float32)),
    }  # fmt: skip


@dataclass(frozen=True)
class Implementation:
    """step: the function; divergences: those it has; package: what must be installed; module: what is imported before
    memory is looked at; compiled: whether its first call compiles."""

    step: Callable[[Inputs, str], Found]
    divergences: tuple[str, ...]
    package: str | None = None
    module: str | None = None
    compiled: bool = False


ALL, PEERS = tuple(KNOBS), tuple(PEER_BETA)

IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "gemm4": Implementation(gemm4, ALL),
    "llmkd": Implementation(llmkd, ALL),
    "llmkd_compiled": Implementation(partial(llmkd, compiled=True), ALL, compiled=True),
    "trl_chunked": Implementation(trl_chunked, PEERS, "trl", "trl.kernels.chunked_divergence"),
    "trl_dense": Implementation(trl_dense, PEERS, "trl", "trl.experimental.gkd.gkd_trainer"),
    "liger": Implementation(liger, PEERS, "liger_kernel", "liger_kernel.chunked_loss"),
    "liger_compiled": Implementation(
        partial(liger, compiled=True), PEERS, "liger_kernel", "liger_kernel.chunked_loss", compiled=True
    ),
}
