"""What the engine is asked, and what it measured on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from llmkd.objectives.weighting import Weighting
from llmkd.types import Logits, Signals, States


@dataclass(frozen=True)
class WeightedTerm:
    """One term as the engine takes it.

    kind: its name; weight ``[N]``: final, but for what ``weighting`` makes of the token's entropies; teacher: which one
    it looks at; knobs: of its formula, as ``llmkd.terms.settled`` leaves them.
    """

    kind: str
    weight: Tensor
    teacher: int | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    weighting: Weighting | None = None


@dataclass
class Values:
    """What the engine measured, all detached; 0 for a token that no term looks at.

    terms ``[K, N]``         the unweighted value of each term
    entropy ``[N]``          of the student, in nats, at temperature 1
    teacher_entropy ``[M, N]``  of each of M teachers; of what is known of a sparse one
    agreement ``[M, N]``     1 where student and teacher have the same most likely token
    mass ``[M, N]``          the student's probability of the tokens that a sparse teacher names; 1 beside a dense one
    normalizer ``[M, N]``    log-sum-exp of a dense teacher's logits, which is finite where they are a distribution
    """

    terms: Tensor
    entropy: Tensor
    teacher_entropy: Tensor
    agreement: Tensor
    mass: Tensor
    normalizer: Tensor

    @classmethod
    def zeros(cls, terms: int, teachers: int, tokens: int, like: Tensor) -> Values:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32

        def zeros(*shape: int) -> Tensor:
            return like.new_zeros(shape, dtype=dtype)

        return cls(
            zeros(terms, tokens), zeros(tokens), zeros(teachers, tokens), zeros(teachers, tokens),
            zeros(teachers, tokens), zeros(teachers, tokens),
        )  # fmt: skip

    def spread(self, values: Values, kept: Tensor) -> None:
        """Put these in their places among all tokens."""
        for name, found in vars(self).items():
            getattr(values, name)[..., kept] = found


@dataclass(frozen=True)
class Request:
    """The arguments of one engine call that carry no gradient.

    targets ``[N]``       token ids
    teachers              their Signals over the same N tokens
    terms                 what is summed
    vocabulary            number of shared rows V; the rest of either head is out of the distribution
    tau_student, tau_teacher  temperatures of the terms that look at a teacher, a number or ``[N]``; cross-entropy is
                          always taken at temperature 1
    standardize           take the logits of student and teacher, in those terms, as ``(z - mean) / std`` over V, before
                          the temperature (Sun et al., Logit Standardization in Knowledge Distillation, 2024)
    keep ``[N]``          which tokens some term looks at; the others are dropped before the first product, and their
                          Values are 0.  None: those with a weight that is not 0, or all with ``all_kept``
    chunk                 tokens whose logits exist at once
    compiled              compile the row block with torch.compile where it can be
    """

    targets: Tensor
    teachers: Sequence[Signals]
    terms: Sequence[WeightedTerm]
    vocabulary: int
    tau_student: float | Tensor = 1.0
    tau_teacher: float | Tensor = 1.0
    standardize: bool = False
    keep: Tensor | None = None
    all_kept: bool = False
    chunk: int | None = None
    compiled: bool = False

    def tau_of(self, side: Literal["student", "teacher"], at: slice, dtype: torch.dtype) -> Tensor | None:
        """The temperatures ``[n]`` of some tokens; None for 1."""
        tau = self.tau_student if side == "student" else self.tau_teacher
        if isinstance(tau, Tensor):
            return tau[at].to(dtype)
        return None if tau == 1 else torch.full((at.stop - at.start,), tau, dtype=dtype, device=self.targets.device)


def select(request: Request, kept: Tensor) -> Request:
    """The request for some of the tokens, by index."""
    return replace(
        request,
        targets=request.targets[kept],
        teachers=[_select_signals(signals, kept) for signals in request.teachers],
        terms=[replace(term, weight=term.weight[kept]) for term in request.terms],
        tau_student=_maybe(request.tau_student, kept),
        tau_teacher=_maybe(request.tau_teacher, kept),
        keep=None,
    )


def _maybe(tau: float | Tensor, kept: Tensor) -> float | Tensor:
    return tau[kept] if isinstance(tau, Tensor) else tau


def _select_signals(signals: Signals, kept: Tensor) -> Signals:
    if isinstance(signals, States):
        return replace(signals, hidden=signals.hidden[kept])
    if isinstance(signals, Logits):
        return replace(signals, logits=signals.logits[kept])
    tail = None if signals.tail is None else signals.tail[kept]
    return replace(signals, ids=signals.ids[kept], logp=signals.logp[kept], tail=tail)
