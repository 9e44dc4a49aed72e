"""Cases for the Triton row kernel, what they must give, and the device it runs on.

On a CPU Triton's interpreter runs the programs: a copy of them of which nothing else in the process knows, so that the
state of Triton, whoever imported it, stays as it is.  The interpreter says nothing of races and little of compilation:
the programs are compiled for GPUs too, and run on one where there is one (`-m gpu`).
"""

import importlib.util
from dataclasses import dataclass, field, replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from llmkd.objectives import kernels
from llmkd.objectives.dense import dense_logits, dense_loss
from llmkd.objectives.request import Request, Values, WeightedTerm
from llmkd.objectives.rows import Rows
from llmkd.types import Head, Logits

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")

F64 = torch.float64
V, TILE = 123, 64  # two tiles, the last one ragged

TERMS = [
    ("cross_entropy", {}),
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {"beta": 0.5}),
    ("jsd", {"beta": 0.03}),
    ("skew_forward_kl", {"alpha": 0.1}),
    ("skew_forward_kl", {"alpha": 0.0}),
    ("skew_reverse_kl", {"alpha": 0.1}),
    ("skew_reverse_kl", {"alpha": 0.4, "detach_mixture": True}),
    ("skew_reverse_kl", {"alpha": 0.0, "detach_mixture": True}),
    ("total_variation", {}),
    ("hellinger", {}),
    ("balanced_kl", {"low": 0.5, "high": 3.0}),
    ("mixture", {"of": {"forward_kl": 0.25, "jsd": 0.5, "balanced_kl": 0.125, "total_variation": 0.125}}),
    ("alpha_beta", {"alpha": 0.2, "beta": 0.7}),
    ("alpha_beta", {"alpha": 0.7, "beta": 0.2}),
    ("alpha_beta", {"alpha": 1.0, "beta": 0.0}),
    ("alpha_beta", {"alpha": 0.0, "beta": 1.0}),
    ("alpha_beta", {"alpha": 0.5, "beta": -0.5}),
    ("alpha_beta", {"alpha": -0.3, "beta": 0.8}),
    ("alpha_beta", {"alpha": 0.0, "beta": 0.0}),
]
DIVERGENCES = [(kind, knobs) for kind, knobs in TERMS if kind != "cross_entropy"]

MANY = [TERMS[i] for i in (0, 1, 2, 3, 8, 10, 12, 13, 3, 14)]


def named(terms):
    return [" ".join([kind, *(f"{k}={v}" for k, v in knobs.items() if k != "of")]) for kind, knobs in terms]


# -- a case, what it must give and what the kernel gives --------------------------------------------------------------


def randn(*shape: int, seed: int) -> Tensor:
    """Numbers that float32 holds exactly."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(F64)


@dataclass
class Case:
    """x: the product of hidden states and head, before bias, scale and cap; y: the teacher's logits, or None."""

    x: Tensor
    y: Tensor | None
    terms: list[WeightedTerm]
    targets: Tensor
    head: dict = field(default_factory=dict)
    tau: tuple = (1.0, 1.0)

    def request(self, dtype: torch.dtype = F64, device: str = "cpu") -> Request:
        def move(x):
            return x.to(device, dtype) if isinstance(x, Tensor) else x

        terms = [replace(t, weight=move(t.weight)) for t in self.terms]
        teachers = [] if self.y is None else [Logits(move(self.y))]
        return Request(self.targets.to(device), teachers, terms, self.x.shape[1], *map(move, self.tau))

    def full_head(self) -> Head:
        """One that makes the case's logits of ``x`` as hidden states."""
        return Head(torch.eye(self.x.shape[1], dtype=F64), **self.head)


def case(*terms, tokens: int = 3, size: int = V, near: float = 1.5, **settings) -> Case:
    """Random logits; the teacher's are the student's with noise; every term weighs between 0 and 1."""
    x = 3 * randn(tokens, size, seed=1)
    y = None if settings.pop("untaught", False) else x + near * randn(tokens, size, seed=2)
    weighted = [
        WeightedTerm(kind, randn(tokens, seed=10 + k).sigmoid(), None if kind == "cross_entropy" else 0, knobs)
        for k, (kind, knobs) in enumerate(terms)
    ]
    targets = torch.randint(0, size, (tokens,), generator=torch.Generator().manual_seed(3))
    return Case(x, y, weighted, targets, **settings)


def expected(c: Case) -> tuple[Tensor, Tensor, Values]:
    """Loss, gradient to x and values, in float64 by autograd."""
    x = c.x.clone().requires_grad_()
    loss, values = dense_loss(x, c.full_head(), c.request())
    return loss.detach(), torch.autograd.grad(loss, x)[0], values


def logits_of(c: Case, device: str) -> Tensor:
    return dense_logits(c.x, c.full_head(), c.x.shape[1]).to(device, torch.float32)


def visited(c: Case, device: str, by=None, out: Tensor | None = None) -> tuple[Tensor, Tensor, Values]:
    """The same from logits in float32, by the kernel or by another visit."""
    z, request = logits_of(c, device), c.request(torch.float32, device)
    taught = [] if c.y is None else [request.teachers[0].logits.clone()]
    values = Values.zeros(len(c.terms), len(taught), len(z), like=z)
    chunk = Rows(z, taught, slice(0, len(z)))
    if by is None:
        assert kernels.serves(z, taught, request)
        loss = kernels.visit(chunk, c.full_head(), request, values, True, out)
    else:
        loss = by(chunk, c.full_head(), request, values, True)
    return loss, z, values


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found.cpu().double() - truth.cpu().double()).norm() / truth.cpu().double().norm())


def assert_same(found, truth, tolerance: float = 1e-5) -> None:
    """Float32 of one and the same formula: rounding of logits of size 10, and the order of the sums."""
    loss, dz, values = found
    loss_, dz_, values_ = truth
    assert float(loss) == pytest.approx(float(loss_), rel=tolerance, abs=1e-6)
    assert relative(dz, dz_) < tolerance
    for name, value in vars(values).items():
        torch.testing.assert_close(
            value.cpu().double(), getattr(values_, name).cpu().double(), rtol=tolerance, atol=3e-6, msg=name
        )


def assert_is_the_formula(c: Case, device: str, tolerance: float = 1e-5) -> None:
    assert_same(visited(c, device), expected(c), tolerance)


# -- where it runs ----------------------------------------------------------------------------------------------------


def programs(interpreted: bool) -> ModuleType:
    """A private copy of the programs, interpreted or to be compiled."""
    import triton

    spec = importlib.util.find_spec("llmkd.objectives.triton_rows")
    module = importlib.util.module_from_spec(spec)
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = interpreted
        spec.loader.exec_module(module)
    return module
