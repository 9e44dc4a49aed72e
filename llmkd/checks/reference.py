"""What the engine must give: its request worked out in float64 with every logit in memory, by the formulas of
``oracle`` and by autograd; and the engine's own answer in the same shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llmkd.checks import oracle
from llmkd.checks.law import F64, Finding, near, same
from llmkd.checks.oracle import Point
from llmkd.objectives import engine
from llmkd.objectives.request import Request, WeightedTerm
from llmkd.objectives.weighting import Statistics
from llmkd.types import Head, Logits, Signals, Sparse, States


@dataclass
class Call:
    """The arguments of one call of the engine.  frozen: names of leaves that need no gradient."""

    hidden: Tensor
    head: Head
    request: Request
    frozen: Sequence[str] = ()

    def leaves(self) -> dict[str, Tensor]:
        found = {"hidden": self.hidden, "weight": self.head.weight, "bias": self.head.bias}
        return {name: leaf for name, leaf in found.items() if leaf is not None and name not in self.frozen}


@dataclass
class Answer:
    """loss: the scalar; values ``[K, N]``: unweighted, 0 where no term looks; gradients: by the name of the leaf."""

    loss: Tensor
    values: Tensor
    gradients: dict[str, Tensor]


def of_engine(call: Call) -> Answer:
    """The code under test."""
    with torch.enable_grad():
        leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in call.leaves().items()}
        hidden, head = _put(call.hidden, call.head, leaves)
        loss, values = engine.fused_loss(hidden, head, call.request)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
    return Answer(loss.detach(), values.terms, dict(zip(leaves, gradients, strict=True)))


def dense(call: Call, device: str | torch.device = "cpu") -> Answer:
    """The truth, on that device."""
    request, hidden, head = _exact(call.request, device), _wide(call.hidden, device), _wide_head(call.head, device)
    with torch.enable_grad():
        leaves = {name: _wide(leaf, device).requires_grad_() for name, leaf in call.leaves().items()}
        hidden, head = _put(hidden, head, leaves)
        z = logits(hidden, head, request.vocabulary)
        keep = request.keep
        if keep is None:
            keep = torch.stack([term.weight != 0 for term in request.terms]).any(0) | request.all_kept
        values, loss = [], z.new_zeros(())
        for term in request.terms:
            found = value_of(term, z, request)
            weight = term.weight * _weighting(term, z.detach(), request)
            loss = loss + torch.where(keep & (weight != 0), weight * found, 0.0).sum()
            values.append(torch.where(keep, found.detach(), 0.0))
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found_gradients = {
        n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), gradients, strict=True)
    }
    return Answer(loss.detach(), torch.stack(values), found_gradients)  # fmt: skip


def compared(found: Answer, expected: Answer, value_tolerance: float, gradient_tolerance: float) -> list[Finding]:
    """Values first, then what is made of them."""
    return [
        same(found.values, expected.values, value_tolerance, "value of term, token"),
        same(found.loss, expected.loss, value_tolerance, "loss"),
        *(near(found.gradients[name], gradient, gradient_tolerance, f"gradient to {name}")
          for name, gradient in expected.gradients.items()),
    ]  # fmt: skip


def logits(hidden: Tensor, head: Head, vocabulary: int) -> Tensor:
    """``[N, V]`` of the common rows: what is beyond them does not exist."""
    z = hidden @ head.weight.t()
    z = (z if head.bias is None else z + head.bias) * head.scale
    return (z if head.softcap is None else head.softcap * (z / head.softcap).tanh())[:, :vocabulary]


def value_of(term: WeightedTerm, z: Tensor, request: Request) -> Tensor:
    """The unweighted value ``[N]`` of one term, given the student's logits."""
    if term.teacher is None:
        return oracle.value(term.kind, Point.of_logits(None, z, request.targets), term.knobs)
    teacher, x = request.teachers[term.teacher], _viewed(z, request.tau_student, request.standardize)
    if isinstance(teacher, Sparse):
        p, q = coarse(teacher, x.softmax(-1))
        return oracle.value(term.kind, Point(p, q, q.detach()), term.knobs)
    y = _viewed(teacher_logits(teacher, request.vocabulary), request.tau_teacher, request.standardize)
    return oracle.value(term.kind, Point.of_logits(y, x, request.targets), term.knobs)


def teacher_logits(teacher: Signals, vocabulary: int) -> Tensor:
    if isinstance(teacher, Logits):
        return teacher.logits[:, :vocabulary]
    assert isinstance(teacher, States)
    return logits(teacher.hidden, teacher.head, vocabulary)


def coarse(teacher: Sparse, q: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of the tokens that a sparse teacher names, and with ``ghost`` of all the others as one more: the
    teacher's and the student's.  A place without a token has none."""
    there = teacher.logp > -math.inf
    p = teacher.logp.exp()
    own = torch.where(there, q.gather(-1, torch.where(there, teacher.ids, 0)), 0.0)
    if teacher.reading != "ghost":
        return p, own
    named = torch.zeros_like(q).scatter_add(-1, torch.where(there, teacher.ids, 0), there.to(q.dtype)) > 0
    tail = (1 - p.sum(-1)).clamp(min=0) if teacher.tail is None else teacher.tail.exp()
    others = torch.where(named, 0.0, q).sum(-1)
    return torch.cat([p, tail.unsqueeze(-1)], -1), torch.cat([own, others.unsqueeze(-1)], -1)


def _viewed(z: Tensor, tau: float | Tensor, standardize: bool) -> Tensor:
    if standardize:
        z = (z - z.mean(-1, keepdim=True)) / z.var(-1, correction=0, keepdim=True).sqrt()
    return z / (tau.unsqueeze(-1) if isinstance(tau, Tensor) else tau)


def _weighting(term: WeightedTerm, z: Tensor, request: Request) -> Tensor | float:
    if term.weighting is None:
        return 1.0
    student = oracle.entropy(z.softmax(-1))
    if term.teacher is None:
        return term.weighting(Statistics(student, request.vocabulary))
    teacher = request.teachers[term.teacher]
    if isinstance(teacher, Sparse):
        p = coarse(teacher, z.softmax(-1))[0]
        top = teacher.logp.exp().amax(-1)
    else:
        p = teacher_logits(teacher, request.vocabulary).softmax(-1)
        top = p.amax(-1)
    return term.weighting(Statistics(student, request.vocabulary, oracle.entropy(p), top))


# -- the same numbers in float64 --------------------------------------------------------------------------------------


def _wide(x: Tensor, device: str | torch.device) -> Tensor:
    return x.detach().to(device, F64 if x.is_floating_point() else None)


def _wide_head(head: Head, device: str | torch.device) -> Head:
    return replace(
        head, weight=_wide(head.weight, device), bias=None if head.bias is None else _wide(head.bias, device)
    )


def _wide_any(x: Any, device: str | torch.device) -> Any:
    if isinstance(x, Head):
        return _wide_head(x, device)
    if isinstance(x, States | Logits | Sparse | WeightedTerm):
        return replace(x, **{name: _wide_any(value, device) for name, value in vars(x).items()})
    return _wide(x, device) if isinstance(x, Tensor) else x


def _exact(request: Request, device: str | torch.device) -> Request:
    moved = {name: _wide_any(value, device) for name, value in vars(request).items()}
    for name in ("teachers", "terms"):
        moved[name] = [_wide_any(x, device) for x in moved[name]]
    return replace(request, **moved)


def _put(hidden: Tensor, head: Head, leaves: dict[str, Tensor]) -> tuple[Tensor, Head]:
    head = replace(head, weight=leaves.get("weight", head.weight), bias=leaves.get("bias", head.bias))
    return leaves.get("hidden", hidden), head
