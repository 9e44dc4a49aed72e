"""The row visit on a GPU, by Triton: what ``rows.visit`` does, in two or three passes over the logits.

    statistics   normalizers, entropies, likeliest tokens, the two KL divergences         reads 8 bytes
    measure      values and gradient sums of the other divergences, where there are any   reads 8
    gradient     over the student's logits, or in low precision elsewhere                 reads 8, writes 4 or 2

The bytes are those of one token of the vocabulary, however many terms there are: 18 to 20 for KL divergences and
cross-entropy, 26 to 28 for all others.  Behind the first pass torch makes the final weights from a few numbers a row.
Nothing waits for the device.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llmkd.objectives.request import Request, Values, WeightedTerm
from llmkd.objectives.rows import Rows
from llmkd.objectives.sparse import SparseRows
from llmkd.objectives.weighting import Statistics
from llmkd.terms import settled
from llmkd.types import Head

INTERPRETED = False
"""Serve tensors on a CPU too: for tests, where Triton's interpreter runs the programs."""
BLOCK, SECTION, WARPS = 1024, 32768, 8
"""Logits of a tile; of a section of a row that one program writes the gradient of; warps of a program."""

CROSS_ENTROPY, FORWARD_KL, REVERSE_KL = 0, 1, 2
"""Columns of the weights; those of the divergences that are taken point by point come behind."""
POINTWISE = (
    "jsd", "skew_forward_kl", "skew_reverse_kl", "skew_reverse_kl detached", "total_variation", "hellinger",
    "alpha_beta",
)  # fmt: skip
"""In the order of their numbers in ``triton_rows``."""
SERVED = frozenset({"cross_entropy", "forward_kl", "reverse_kl", "balanced_kl", "mixture", *POINTWISE})

Point = tuple[int, float, float]
"""A divergence that is taken point by point: its number and up to two knobs."""


def serves(z: Tensor, taught: list[Tensor | SparseRows], request: Request) -> bool:
    """Whether ``visit`` can take this chunk: at most one teacher, dense; float32; terms it knows."""
    if len(taught) > 1 or request.standardize or not all(_known(term) for term in request.terms):
        return False
    tensors = [z, *(t for t in taught if isinstance(t, Tensor))]
    if len(tensors) != 1 + len(taught) or any(t.dtype != torch.float32 or t.stride(-1) != 1 for t in tensors):
        return False
    return INTERPRETED or (z.is_cuda and _available(z.device))


def _known(term: WeightedTerm) -> bool:
    parts = [term.kind, *(term.knobs["of"] if term.kind == "mixture" else ())]
    return SERVED.issuperset(parts) and (term.teacher is None) == (term.kind == "cross_entropy")


@cache
def _available(device: torch.device) -> bool:
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (7, 0)


@cache
def _programs() -> Any:
    return importlib.import_module("llmkd.objectives.triton_rows")


# -- what the programs are asked --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What a column counts for in a term: one factor where the student is surer than the teacher, H(q) < H(p) at their
    temperatures, and one elsewhere."""

    column: int
    surer: float
    other: float

    def factor(self, surer: Tensor) -> Tensor | float:
        if self.surer == self.other:
            return self.surer
        return torch.where(surer, self.surer, self.other).to(torch.float32)


@dataclass(frozen=True)
class Plan:
    """parts: of each term; points: the divergences of the columns behind the first three, each once."""

    parts: list[list[Part]]
    points: list[Point]

    @classmethod
    def of(cls, terms: list[WeightedTerm]) -> Plan:
        expanded = [_expand(term.kind, settled(term.kind, term.knobs)) for term in terms]
        points = list(dict.fromkeys(p for parts in expanded for p, *_ in parts if isinstance(p, tuple)))
        columns: dict[int | Point, int] = {point: 1 + REVERSE_KL + i for i, point in enumerate(points)}
        columns |= {column: column for column in (CROSS_ENTROPY, FORWARD_KL, REVERSE_KL)}
        return cls([[Part(columns[p], surer, other) for p, surer, other in parts] for parts in expanded], points)

    def has(self, column: int) -> bool:
        return any(part.column == column for parts in self.parts for part in parts)

    @property
    def balanced(self) -> bool:
        return any(part.surer != part.other for parts in self.parts for part in parts)

    @property
    def compares(self) -> bool:
        """Whether some term looks at the teacher."""
        return self.has(FORWARD_KL) or self.has(REVERSE_KL) or bool(self.points)

    @property
    def kinds(self) -> tuple[int, ...]:
        return tuple(kind for kind, _, _ in self.points)

    @property
    def knobs(self) -> tuple[float, ...]:
        return tuple(float(knob) for _, *knobs in self.points for knob in knobs)


def _expand(kind: str, knobs: Mapping[str, Any]) -> list[tuple[int | Point, float, float]]:
    """A term as a sum of columns: which, and their factors where the student is surer and elsewhere."""
    if kind == "mixture":
        return [
            (column, weight * surer, weight * other)
            for name, weight in knobs["of"].items()
            for column, surer, other in _expand(name, settled(name, {}))
        ]
    if kind == "balanced_kl":
        low, high = knobs["low"], knobs["high"]
        return [(FORWARD_KL, high, low), (REVERSE_KL, low, high)]
    return [(_column(kind, knobs), 1.0, 1.0)]


def _column(kind: str, knobs: Mapping[str, Any]) -> int | Point:
    skew = knobs.get("alpha")
    if kind == "forward_kl" or (kind == "skew_forward_kl" and skew == 0):
        return FORWARD_KL
    if kind == "reverse_kl" or (kind == "skew_reverse_kl" and skew == 0):
        return REVERSE_KL
    if kind == "cross_entropy":
        return CROSS_ENTROPY
    name = "skew_reverse_kl detached" if knobs.get("detach_mixture") else kind
    first, second = (*(knobs[k] for k in ("alpha", "beta") if k in knobs), 0.0, 0.0)[:2]
    return POINTWISE.index(name), first, second


# -- the visit --------------------------------------------------------------------------------------------------------


def visit(
    rows: Rows, head: Head, request: Request, values: Values, differentiate: bool, out: Tensor | None = None
) -> Tensor:
    """Weighted sum of all terms over a chunk; ``rows.z`` is overwritten by the gradient to the product of hidden states
    and head, before cap and scale.  With ``out [n, V]``, of any float dtype, the gradient is written there, rounded
    once, and ``rows.z`` stays as it was.
    """
    z, at = rows.z, rows.at
    plan, launch = Plan.of(list(request.terms)), _Launch(rows, request)
    with torch.cuda.device(z.device) if z.is_cuda else nullcontext():
        found = launch.statistics(plan)
        _report(found, values, at, taught=bool(rows.teachers))
        surer = found["tau_entropy"] < found["teacher_tau_entropy"]
        factors = [[part.factor(surer) for part in parts] for parts in plan.parts]
        weights = [_weight(term, found, request, at) for term in request.terms]
        columns = z.new_zeros(z.shape[0], 1 + REVERSE_KL + len(plan.points))
        for weight, parts, by in zip(weights, plan.parts, factors, strict=True):
            for part, factor in zip(parts, by, strict=True):
                columns[:, part.column] += weight * factor
        target = z.gather(-1, request.targets[at].unsqueeze(-1)).squeeze(-1)
        measured = [found["sum"] + (found["top"] - target), found["forward_kl"], found["reverse_kl"]]
        measured += launch.measure(plan, columns)
        loss = z.new_zeros(())
        for k, (weight, parts, by) in enumerate(zip(weights, plan.parts, factors, strict=True)):
            value = torch.stack([_times(f, measured[p.column]) for p, f in zip(parts, by, strict=True)]).sum(0)
            values.terms[k, at] = value
            loss += _times(weight, value).sum()
        if differentiate:
            launch.gradient(plan, columns, head, z if out is None else out)
    return loss


def _times(weight: Tensor | float, value: Tensor) -> Tensor:
    """A weight of 0 adds nothing, whatever the value: 0 * inf is not a number."""
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, 0.0, weight * value)
    return weight * value if weight else torch.zeros_like(value)


def _report(found: dict[str, Tensor], values: Values, at: slice, taught: bool) -> None:
    values.entropy[at] = found["entropy"]
    if taught:
        values.teacher_entropy[0, at] = found["teacher_entropy"]
        values.agreement[0, at] = found["agreement"]
        values.mass[0, at] = 1.0
        values.normalizer[0, at] = found["teacher_top"] + found["teacher_sum"]


def _weight(term: WeightedTerm, found: dict[str, Tensor], request: Request, at: slice) -> Tensor:
    weight = term.weight[at].to(torch.float32)
    if term.weighting is None:
        return weight
    known = Statistics(found["entropy"], request.vocabulary)
    if term.teacher is not None:
        known = Statistics(
            found["entropy"], request.vocabulary, found["teacher_entropy"], (-found["teacher_sum"]).exp()
        )
    return weight * term.weighting(known)


FOUND = (
    "top", "sum", "entropy", "tau_sum", "tau_entropy",
    "teacher_top", "teacher_sum", "teacher_entropy", "teacher_tau_sum", "teacher_tau_entropy",
    "agreement", "forward_kl", "reverse_kl",
)  # fmt: skip
"""The columns of what ``triton_rows.statistics`` finds.  A sum is a log-sum-exp relative to the largest logit, ``top``,
so it keeps the digits that ``top`` would take."""


class _Launch:
    """The programs, started for one chunk: one for each row, and for each section of it where nothing is summed."""

    def __init__(self, rows: Rows, request: Request) -> None:
        self.z, self.size = rows.z, rows.z.shape[1]
        # Where there is no teacher its pointer is never followed.
        teacher = rows.teachers[0] if rows.teachers else rows.z
        assert isinstance(teacher, Tensor)
        self.teacher, self.taught = teacher, bool(rows.teachers)
        self.taus = [_contiguous(request.tau_of(side, rows.at, torch.float32)) for side in ("student", "teacher")]
        self.targets = request.targets[rows.at].contiguous()
        self.found = self.z.new_zeros(self.z.shape[0], len(FOUND))
        self.sums = self.z.new_zeros(self.z.shape[0])
        self.same = {
            "z_pointer": self.z, "z_tau_pointer": self.taus[0], "z_stride": self.z.stride(0),
            "y_pointer": teacher, "y_tau_pointer": self.taus[1], "y_stride": teacher.stride(0),
            "found_pointer": self.found, "size": self.size, "COLUMNS": len(FOUND), "BLOCK": BLOCK, "num_warps": WARPS,
        }  # fmt: skip

    def _tempered(self, plan: Plan) -> dict[str, bool]:
        """Which sides have a temperature that some term looks at."""
        student, teacher = (tau is not None and plan.compares for tau in self.taus)
        return {"Z_TAU": student, "Y_TAU": teacher}

    def statistics(self, plan: Plan) -> dict[str, Tensor]:
        _programs().statistics[(self.z.shape[0],)](
            **self.same, **self._tempered(plan), TAUGHT=self.taught, TAU_ENTROPY_TOO=plan.balanced,
            FORWARD=plan.has(FORWARD_KL), REVERSE=plan.has(REVERSE_KL),
        )  # fmt: skip
        return dict(zip(FOUND, self.found.unbind(-1), strict=True))

    def measure(self, plan: Plan, columns: Tensor) -> Sequence[Tensor]:
        """The values of the divergences that are taken point by point."""
        if not plan.points:
            return ()
        out = self.z.new_empty(self.z.shape[0], len(plan.points))
        _programs().measure[(self.z.shape[0],)](
            **self.same, **self._tempered(plan), weight_pointer=columns, value_pointer=out, sum_pointer=self.sums,
            knobs=plan.knobs, KINDS=plan.kinds, COUNT=len(plan.points),
        )  # fmt: skip
        return out.unbind(-1)

    def gradient(self, plan: Plan, columns: Tensor, head: Head, out: Tensor) -> None:
        assert out.shape == self.z.shape and out.stride(-1) == 1
        _programs().gradient[(self.z.shape[0], -(-self.size // SECTION))](
            **self.same, **self._tempered(plan), weight_pointer=columns, sum_pointer=self.sums,
            target_pointer=self.targets, out_pointer=out, out_stride=out.stride(0), knobs=plan.knobs,
            softcap=float(head.softcap or 1.0), scale=float(head.scale), KINDS=plan.kinds, COUNT=len(plan.points),
            FORWARD=plan.has(FORWARD_KL), REVERSE=plan.has(REVERSE_KL), CROSS=plan.has(CROSS_ENTROPY),
            CAPPED=head.softcap is not None, SECTION=SECTION,
        )  # fmt: skip


def _contiguous(tau: Tensor | None) -> Tensor | None:
    return None if tau is None else tau.contiguous()
