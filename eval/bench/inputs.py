"""What every implementation of the benchmark is given: seeded hidden states and heads, the same in every process."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

LOGIT_STD = 3.5
"""Standard deviation of the logits: about that of a trained language model's."""


class Shape(NamedTuple):
    tokens: int
    vocabulary: int
    student: int
    teacher: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """``2048,32000,256,512``: N, V, Hs, Ht."""
        try:
            numbers = [int(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != 4 or min(numbers) < 1:
            raise ValueError(f"{text!r} is no shape: give N,V,Hs,Ht as four whole numbers above 0: 2048,32000,256,512")
        return cls(*numbers)

    def __str__(self) -> str:
        return f"N={self.tokens} V={self.vocabulary} Hs={self.student} Ht={self.teacher}"


@dataclass(frozen=True)
class Case:
    """near: None for a teacher that has nothing to do with the student; else its logits are the student's plus noise,
    and this is the noise's standard deviation over theirs."""

    shape: Shape
    divergence: str
    device: str = "cpu"
    dtype: str = "float32"
    near: float | None = None
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Case:
        return cls(**values | {"shape": Shape(*values["shape"])})


@dataclass
class Inputs:
    """hidden ``[N, Hs]`` and head ``[V, Hs]`` of the student, which need gradients; those of the teacher; and what an
    implementation keeps from call to call."""

    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    targets: Tensor
    kept: dict[str, Any] = field(default_factory=dict)

    def clear_gradients(self) -> None:
        self.hidden.grad = self.head.grad = None


def make_inputs(case: Case) -> Inputs:
    """Raises ValueError for a near teacher that is no wider than the student: its noise needs dimensions of its own."""
    tokens, vocabulary, student, teacher = case.shape
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator(case.device).manual_seed(case.seed)

    def states(width: int) -> Tensor:
        return torch.randn(tokens, width, generator=generator, device=case.device).to(dtype)

    def rows(width: int, logit_std: float = LOGIT_STD) -> Tensor:
        made = torch.randn(vocabulary, width, generator=generator, device=case.device)
        return made.mul_(logit_std / math.sqrt(width)).to(dtype)

    hidden, head = states(student), rows(student)
    if case.near is None:
        teacher_hidden, teacher_head = states(teacher), rows(teacher)
    else:
        more = teacher - student
        if more < 1:
            raise ValueError(f"a near teacher needs Ht > Hs, not {teacher} and {student}: the rest of it is the noise")
        teacher_hidden = torch.cat([hidden, states(more)], -1)
        teacher_head = torch.cat([head, rows(more, case.near * LOGIT_STD)], -1)
    targets = torch.zeros(tokens, dtype=torch.long, device=case.device)
    return Inputs(hidden.requires_grad_(), head.requires_grad_(), teacher_hidden, teacher_head, targets)
