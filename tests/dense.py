"""A dense float64 reference of the engine: the formulas of the documentation, one after the other, by autograd."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from llmkd.objectives.divergences import TERMS
from llmkd.objectives.engine import Request, Values, WeightedTerm, fused_loss
from llmkd.types import Head, Signals

V = 123
HS, HT = 16, 24
F64 = torch.float64


def dense_logits(hidden: Tensor, head: Head, vocabulary: int) -> Tensor:
    z = hidden @ head.weight.T if head.bias is None else hidden @ head.weight.T + head.bias
    z = z * head.scale
    return (z if head.softcap is None else head.softcap * (z / head.softcap).tanh())[:, :vocabulary]


def total_variation(logp: Tensor, logq: Tensor) -> Tensor:
    return 0.5 * (logp.exp() - logq.exp()).abs().sum(-1)


def focal(logq: Tensor, target: Tensor) -> Tensor:
    hit = logq[torch.arange(len(target)), target]
    return -((1 - hit.exp()) ** 2) * hit


def dense_value(kind: str, logp: Tensor | None, logq: Tensor, target: Tensor) -> Tensor:
    if kind == "cross_entropy":
        return -logq[torch.arange(len(target)), target]
    if kind == "focal":
        return focal(logq, target)
    assert logp is not None
    p, q = logp.exp(), logq.exp()
    formulas = {
        "forward_kl": lambda: (p * (logp - logq)).sum(-1),
        "reverse_kl": lambda: (q * (logq - logp)).sum(-1),
        "total_variation": lambda: total_variation(logp, logq),
    }
    return formulas[kind]()


@dataclass
class Case:
    """A student, its teachers and terms, in float64."""

    hidden: Tensor
    head: Head
    targets: Tensor
    teachers: list[Signals]
    terms: list[WeightedTerm]
    vocabulary: int = V
    tau_student: float = 1.0
    tau_teacher: float = 1.0
    chunk: int | None = None
    frozen: tuple[str, ...] = ()

    def leaves(self) -> dict[str, Tensor]:
        found = {"hidden": self.hidden, "weight": self.head.weight, "bias": self.head.bias}
        return {name: leaf for name, leaf in found.items() if leaf is not None and name not in self.frozen}

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Case":
        """The same numbers in another precision, on another device."""

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(device, dtype if x.is_floating_point() else None)

        def move_head(h: Head) -> Head:
            return Head(move(h.weight), move(h.bias), h.softcap, h.scale)

        terms = [WeightedTerm(t.kind, t.weight.to(device, torch.float32), t.teacher) for t in self.terms]
        terms = self.terms if dtype == F64 else terms
        return Case(
            move(self.hidden), move_head(self.head), move(self.targets),
            [Signals(move(s.hidden), move_head(s.head)) for s in self.teachers], terms,
            self.vocabulary, self.tau_student, self.tau_teacher, self.chunk, self.frozen,
        )  # fmt: skip


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def signals(tokens: int, seed: int, rows: int = V, width: int = HT, **head) -> Signals:
    weight = 2 * randn(rows, width, seed=seed) / math.sqrt(width)
    return Signals(randn(tokens, width, seed=seed + 1), Head(weight, **head))


def case(tokens: int = 7, kinds=("forward_kl", "reverse_kl", "cross_entropy"), rows: int = V, **settings) -> Case:
    """A random case with one teacher; every term weighs between 0 and 1 at every token."""
    bias = randn(rows, seed=3) if settings.pop("bias", False) else None
    head = Head(
        2 * randn(rows, HS, seed=1) / math.sqrt(HS), bias, settings.pop("softcap", None), settings.pop("scale", 1.0)
    )
    teachers = settings.pop("teachers", None) or [signals(tokens, seed=5)]
    terms = [
        WeightedTerm(kind, randn(tokens, seed=20 + k).sigmoid(), 0 if TERMS[kind].needs_teacher else None)
        for k, kind in enumerate(kinds)
    ]
    generator = torch.Generator().manual_seed(4)
    targets = torch.randint(0, settings.get("vocabulary", V), (tokens,), generator=generator)
    return Case(randn(tokens, HS, seed=2), head, targets, teachers, terms, **settings)


def reference(c: Case) -> tuple[Tensor, dict[str, Tensor], Values]:
    """Loss, gradients and values of the dense formula in float64, by autograd."""
    c = c.to(F64)
    leaves = {name: leaf.requires_grad_() for name, leaf in c.leaves().items()}
    z = dense_logits(c.hidden, c.head, c.vocabulary)
    tz = [dense_logits(t.hidden, t.head, c.vocabulary) for t in c.teachers]
    values, loss = [], torch.zeros((), dtype=F64)
    for term in c.terms:
        if term.teacher is None:
            value = dense_value(term.kind, None, z.log_softmax(-1), c.targets)
        else:
            logp = (tz[term.teacher] / c.tau_teacher).log_softmax(-1)
            value = dense_value(term.kind, logp, (z / c.tau_student).log_softmax(-1), c.targets)
        loss = loss + (term.weight.to("cpu", F64) * value).sum()
        values.append(value.detach())
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    entropy = torch.distributions.Categorical(logits=z.detach()).entropy()
    agreement = torch.stack([(t.argmax(-1) == z.argmax(-1)).double() for t in tz]) if tz else torch.empty(0)
    return loss.detach(), gradients, Values(torch.stack(values), entropy, agreement)


def run(c: Case, factor: float = 1.0) -> tuple[Tensor, dict[str, Tensor], Values]:
    """The same by the engine."""
    leaves = {name: leaf.requires_grad_() for name, leaf in c.leaves().items()}
    loss, values = fused_loss(c.hidden, c.head, request(c))
    (factor * loss).backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items()}, values


def request(c: Case) -> Request:
    return Request(c.targets, c.teachers, c.terms, c.vocabulary, c.tau_student, c.tau_teacher, c.chunk)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected).norm() / expected.norm())


def assert_is_the_reference(c: Case, tolerance: float = 1e-11) -> None:
    expected_loss, expected, _ = reference(c)
    loss, found, _ = run(c)
    assert float(loss) == pytest.approx(float(expected_loss), rel=tolerance)
    assert list(found) == list(expected)
    for name, gradient in found.items():
        assert relative(gradient, expected[name]) < tolerance, name
