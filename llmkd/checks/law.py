"""A law: a sentence that must hold of a term, cases from small to large that it is held against, and what was found.

A law is a plain function of a case that returns Findings: a measured error and what is tolerated.  The first case that
breaks it, in the order in which they stand, is the smallest, and the one that is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

F64 = torch.float64


@dataclass(frozen=True)
class Setting:
    """Where and how the laws are tried: device, dtype of hidden states and heads, seed of everything random."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float64
    seed: int = 0

    @property
    def statistics(self) -> torch.dtype:
        """The dtype from the logits on."""
        return F64 if self.dtype == F64 else torch.float32

    def precisions(self) -> list[torch.dtype]:
        """The dtypes in which formulas are tried: float64, and the one from the logits on where it is another."""
        return list(dict.fromkeys([F64, self.statistics]))

    def value_tolerance(self) -> float:
        """Of values ``v``, relative to ``1 + |v|``."""
        return 1e-9 if self.dtype == F64 else 5e-5

    def gradient_tolerance(self) -> float:
        """Of gradients, relative to the norm: they are handed over in the dtype itself."""
        return {F64: 1e-9, torch.float32: 1e-4}.get(self.dtype, 2e-2)


@dataclass(frozen=True)
class Finding:
    """error: how far off, in the measure of ``tolerance``; what: is compared; found, expected: the worst numbers."""

    error: float
    tolerance: float
    what: str = ""
    found: Any = None
    expected: Any = None

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # not so for NaN

    @property
    def severity(self) -> float:
        """The error in tolerances; infinite for NaN."""
        if math.isnan(self.error):
            return math.inf
        return self.error / self.tolerance if self.tolerance else math.inf * self.error if self.error else 0.0


Case = Mapping[str, Any]


@dataclass(frozen=True)
class Law:
    """name: the sentence; group: the file of laws it is from; entry: the term; cases: keywords of ``holds``, small
    first."""

    name: str
    group: str
    entry: str
    cases: Sequence[Case]
    holds: Callable[..., Finding | Sequence[Finding]]


@dataclass(frozen=True)
class Result:
    """What became of a law.  error, tolerance: of the worst case; failure: the smallest failing case."""

    law: str
    group: str
    entry: str
    passed: bool
    cases: int
    error: float
    tolerance: float
    failure: Mapping[str, Any] | None = field(default=None)


def judge(law: Law) -> Result:
    """Try the cases in order, up to the first that fails.  An exception is a failure like any other."""
    assert law.cases, f"{law.entry}: {law.name}: a law without cases proves nothing"
    worst = Finding(0.0, 1.0)
    for number, case in enumerate(law.cases, 1):
        finding = _try(law, case)
        if finding.severity >= worst.severity or not finding.passed:
            worst = finding
        if not finding.passed:
            failure = {"case": dict(case), **vars(finding)}
            return Result(law.name, law.group, law.entry, False, number, finding.error, finding.tolerance, failure)
    return Result(law.name, law.group, law.entry, True, len(law.cases), worst.error, worst.tolerance)


def _try(law: Law, case: Case) -> Finding:
    try:
        found = law.holds(**case)
    except Exception as error:  # whatever the code under test raises is what was found
        said = f"{type(error).__name__}: {error}"
        return Finding(math.inf, 0.0, "the computation itself", said, "no error")
    findings = [found] if isinstance(found, Finding) else list(found)
    assert findings, f"{law.entry}: {law.name}: nothing was compared"
    failed = [f for f in findings if not f.passed]
    return failed[0] if failed else max(findings, key=lambda f: f.severity)


def same(found: Tensor, expected: Tensor, tolerance: float, what: str) -> Finding:
    """Entry by entry, relative to ``1 + |expected|``; equal infinities are the same, a NaN is never."""
    if found.shape != expected.shape:
        shapes = str(tuple(found.shape)), str(tuple(expected.shape))
        return Finding(math.inf, tolerance, f"the shape of {what}", *shapes)
    f, e = (x.detach().to("cpu", F64).reshape(-1) for x in (found, expected))
    if not f.numel():
        return Finding(0.0, tolerance, what)
    error = torch.where(f == e, 0.0, (f - e).abs() / (1 + e.abs())).nan_to_num(nan=math.inf)
    at = int(error.argmax())
    return Finding(float(error[at]), tolerance, f"{what}{_place(at, found)}", float(f[at]), float(e[at]))


def _place(at: int, like: Tensor) -> str:
    """``[2, 5]``: where the worst entry stands."""
    if like.dim() == 0:
        return ""
    index = []
    for size in reversed(like.shape):
        at, inner = divmod(at, size)
        index.append(inner)
    return f"[{', '.join(map(str, reversed(index)))}]"


def near(found: Tensor, expected: Tensor, tolerance: float, what: str) -> Finding:
    """As a whole, relative to the norm of what is expected, or to 0.1 where that is smaller: what cancels is near 1."""
    if found.shape != expected.shape:
        shapes = str(tuple(found.shape)), str(tuple(expected.shape))
        return Finding(math.inf, tolerance, f"the shape of {what}", *shapes)
    f, e = (x.detach().to("cpu", F64) for x in (found, expected))
    distance, norm = float((f - e).norm()), float(e.norm())
    error = distance / max(norm, 0.1)
    return Finding(error, tolerance, f"norm of {what}", float(f.norm()), norm)


def at_most(found: Tensor, limit: Tensor | float, slack: float, what: str) -> Finding:
    """``found <= limit``, up to ``slack``; the error is by how much the worst entry is above."""
    f = found.detach().to("cpu", F64).reshape(-1)
    bound = torch.as_tensor(limit, dtype=F64).cpu().expand(found.shape).reshape(-1)
    over = torch.where(f == bound, 0.0, f - bound).nan_to_num(nan=math.inf)
    at = int(over.argmax())
    error = max(0.0, float(over[at]))
    return Finding(error, slack, f"{what}{_place(at, found)}", float(f[at]), f"at most {float(bound[at]):.6g}")


def is_so(truth: bool, found: str, expected: str, what: str) -> Finding:
    """A statement without a number."""
    return Finding(0.0 if truth else 1.0, 0.5, what, found, expected)


def normals(*shape: int, seed: int, spread: float = 1.0) -> Tensor:
    """Normal numbers of that spread, on the CPU in float64: the same on every device."""
    return spread * torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
