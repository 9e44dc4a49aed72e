"""The objective: a sum of terms, each with a weight, a token mask and its own line in the log.

Everything that is added up is divided in one place, by a count that is the same however the rows of an optimizer step
are spread over ranks, micro-batches, padding and packing: the counted tokens of the whole step (``normalize: all``) or
those that the term's mask keeps (``normalize: kept``).  The counts come from ``Objective.counts`` of every micro-batch
of the step, summed over ranks, before the first of them is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmkd.objectives.engine import Request, TokenFault, Values, WeightedTerm, fused_loss
from llmkd.objectives.schedules import Adaptive, Schedule
from llmkd.objectives.weighting import MEASURED, measured, position_weight, shaped
from llmkd.terms import SEQUENCE_TERMS, TERMS, settled
from llmkd.types import Batch, Head, Signals, Sparse, Tally


@dataclass(frozen=True)
class TokenWeight:
    """How a term weighs its tokens.  by: one of ``weighting.MEASURED``, ``position`` (with a half-life in tokens) or
    ``column`` (of the batch, taken as it is); in_value: what the term logs is weighed by that column too, since it is
    part of what the term is."""

    by: str
    floor: float = 0.0
    power: float = 1.0
    half_life: float | None = None
    column: str | None = None
    in_value: bool = False


@dataclass(frozen=True)
class Term:
    """One line of the objective.

    weight: a number or a schedule; knobs: of its formula, likewise; domains: ids of the domains it looks at (None:
    all); positions: from, to among a row's counted tokens, 0-based, ``to`` exclusive or None; completions: those that
    the student wrote, ``own``, or those of the ``data`` (None: both); normalize: ``all`` or ``kept``; teacher: the name
    of the teacher it looks at.
    """

    name: str
    kind: str
    weight: float | Schedule = 1.0
    domains: tuple[int, ...] | None = None
    positions: tuple[int, int | None] | None = None
    completions: str | None = None
    normalize: str = "all"
    teacher: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    token_weight: TokenWeight | None = None

    @property
    def masked(self) -> bool:
        return any(part is not None for part in (self.domains, self.positions, self.completions))

    def scheduled(self, step: int) -> dict[str, float]:
        """What follows a schedule, by name, and its value at a step."""
        found = {"weight": self.weight, **self.knobs}
        return {name: value(step) for name, value in found.items() if callable(value)}

    def knobs_at(self, step: int) -> dict[str, Any]:
        return settled(self.kind, {name: v(step) if callable(v) else v for name, v in self.knobs.items()})


@dataclass(frozen=True)
class Objective:
    """terms: at least one; domains: their names, by id; vocabulary: rows V that student and teachers share;
    tau_student, tau_teacher: a number, or the name of a column of the data that holds one for each row; standardize,
    compiled: as in the engine's Request."""

    terms: Sequence[Term]
    domains: Sequence[str]
    vocabulary: int
    tau_student: float | str = 1.0
    tau_teacher: float | str = 1.0
    standardize: bool = False
    compiled: bool = False

    @property
    def teacher_names(self) -> list[str]:
        return sorted({t.teacher for t in self.terms if t.teacher is not None})

    def counts(self, batch: Batch) -> Tensor:
        """``[K + 1]``: the counted tokens of a batch, then what each term's mask keeps of them."""
        kept = [mask.sum() for mask in self._masks(batch)]
        return torch.stack([batch["counted"].sum(), *kept]).to(torch.int64)

    def __call__(
        self, hidden: Tensor, head: Head, signals: Mapping[str, Signals], batch: Batch, counts: Tensor, step: int = 0
    ) -> tuple[Tensor, Tally]:
        """Loss of one micro-batch (its share of the step's) and what was measured.

        hidden ``[N, Hs]``: the student's states for the counted tokens; signals: by teacher's name, over the same
        tokens; counts ``[K + 1]``: ``counts`` of the whole step; step: optimizer steps done before this one.  A step
        without counted tokens has loss 0.  Raises ValueError as ``fused_loss`` does, with the place of a token in the
        batch.
        """
        names = self.teacher_names
        masks = self._masks(batch)
        terms = []
        for k, (term, mask) in enumerate(zip(self.terms, masks, strict=True)):
            count = counts[0] if term.normalize == "all" else counts[k + 1]
            weight = mask.to(torch.float32) * _weight_at(term, step) / count.clamp(min=1)
            weight, weighting = self._token_weight(term, weight, batch)
            teacher = names.index(term.teacher) if term.teacher else None
            terms.append(WeightedTerm(term.kind, weight, teacher, term.knobs_at(step), weighting))
        request = Request(
            targets=batch["input_ids"][batch["counted"]],
            teachers=[signals[name] for name in names],
            terms=terms,
            vocabulary=self.vocabulary,
            tau_student=_tau(self.tau_student, batch),
            tau_teacher=_tau(self.tau_teacher, batch),
            standardize=self.standardize,
            # Without a mask, every counted token is looked at: nothing has to be asked of the device.
            keep=torch.stack(masks).any(0) if all(t.masked for t in self.terms) else None,
            all_kept=not all(t.masked for t in self.terms),
            compiled=self.compiled and not any(t.scheduled(step).keys() - {"weight"} for t in self.terms),
        )
        try:
            loss, values = fused_loss(hidden, head, request)
        except TokenFault as fault:
            row, position = (int(x[fault.row]) for x in batch["counted"].nonzero(as_tuple=True))
            raise ValueError(f"row {row} of the batch, token {position}: {fault.what}") from fault
        return loss, self._tally(values, request, masks, batch)

    # -- schedules ----------------------------------------------------------------------------------------------------

    def scheduled(self, step: int) -> dict[str, float]:
        """``<term>/<what>`` of everything that follows a schedule, at a step."""
        return {f"{t.name}/{name}": value for t in self.terms for name, value in t.scheduled(step).items()}

    @property
    def adaptive(self) -> dict[str, Adaptive]:
        """The schedules that learn from the values of a term, by the term's name."""
        return {t.name: v for t in self.terms for v in (t.weight, *t.knobs.values()) if isinstance(v, Adaptive)}

    def observe(self, means: Mapping[str, float], step: int) -> None:
        """Tell the adaptive schedules the mean value of their terms over a whole step; ``step``: steps done with it."""
        for name, schedule in self.adaptive.items():
            if name in means:
                schedule.observe(means[name], step)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {name: schedule.state() for name, schedule in self.adaptive.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, schedule in self.adaptive.items():
            schedule.restore(state[name])

    # -- masks, weights and what is logged ----------------------------------------------------------------------------

    def _masks(self, batch: Batch) -> list[Tensor]:
        """Boolean ``[N]`` per term, from the batch alone: no model is asked."""
        counted = batch["counted"]
        domain = batch["domain_ids"][counted]
        position = _position_among_counted(batch)[counted] if any(t.positions for t in self.terms) else None
        masks = []
        for term in self.terms:
            mask = torch.ones_like(domain, dtype=torch.bool)
            if term.domains is not None:
                mask &= torch.isin(domain, torch.tensor(term.domains, device=domain.device))
            if term.positions is not None and position is not None:
                start, stop = term.positions
                mask &= position >= start
                mask &= position < stop if stop is not None else True
            if term.completions is not None:
                own = batch["own"][counted]
                mask &= own if term.completions == "own" else ~own
            if term.teacher is not None and f"shared@{term.teacher}" in batch:
                mask &= batch[f"shared@{term.teacher}"][counted]
            masks.append(mask)
        return masks

    def _token_weight(self, term: Term, weight: Tensor, batch: Batch) -> tuple[Tensor, Any]:
        """The weights with what is known before the models are asked, and what is left to the row block."""
        how = term.token_weight
        if how is None:
            return weight, None
        if how.by in MEASURED:
            return weight, measured(how.by, how.floor, how.power)
        if how.by == "position":
            position = _position_among_counted(batch)[batch["counted"]]
            return weight * shaped(position_weight(position, how.half_life or 1.0), how.floor, how.power), None
        return weight * batch[f"column:{how.column}"][batch["counted"]], None

    def _tally(self, values: Values, request: Request, masks: Sequence[Tensor], batch: Batch) -> Tally:
        domain = batch["domain_ids"][batch["counted"]]
        looked_at = torch.ones_like(domain, dtype=torch.bool) if request.keep is None else request.keep
        tally = {}
        for k, term in enumerate(self.terms):
            value, how = values.terms[k], term.token_weight
            if how is not None and how.in_value:
                value = value * batch[f"column:{how.column}"][batch["counted"]]
            tally[f"{term.name}/value"] = self._sums(value, masks[k], domain)
        tally["student_entropy"] = self._sums(values.entropy, looked_at, domain)
        for i, name in enumerate(self.teacher_names):
            mask = looked_at
            if f"shared@{name}" in batch:
                mask = mask & batch[f"shared@{name}"][batch["counted"]]
            at = "" if len(self.teacher_names) == 1 else f"@{name}"
            tally[f"agreement{at}"] = self._sums(values.agreement[i], mask, domain)
            tally[f"teacher_entropy{at}"] = self._sums(values.teacher_entropy[i], mask, domain)
            if isinstance(request.teachers[i], Sparse):
                tally[f"mass_on_support{at}"] = self._sums(values.mass[i], mask, domain)
        return tally

    def _sums(self, value: Tensor, mask: Tensor, domain: Tensor) -> Tensor:
        exact = torch.float32 if value.device.type == "mps" else torch.float64
        out = torch.zeros(len(self.domains), 2, dtype=exact, device=value.device)
        out[:, 0].index_add_(0, domain, torch.where(mask, value, 0.0).to(exact))
        out[:, 1].index_add_(0, domain, mask.to(exact))
        return out


def _position_among_counted(batch: Batch) -> Tensor:
    """Index ``[B, T]`` of each counted token among the counted tokens of its segment."""
    counted = batch["counted"].long()
    before = counted.cumsum(1) - counted
    if "position_ids" not in batch:
        return before
    starts = batch["position_ids"] == 0
    at_start = torch.where(starts, before, 0).cummax(1).values
    return before - at_start


def _weight_at(term: Term, step: int) -> float:
    return term.weight(step) if callable(term.weight) else term.weight


def _tau(tau: float | str, batch: Batch) -> float | Tensor:
    return batch[f"column:{tau}"][batch["counted"]] if isinstance(tau, str) else tau


def needs_teacher(kind: str) -> bool:
    """Whether a term of this kind looks at a teacher."""
    return kind in SEQUENCE_TERMS or (kind in TERMS and TERMS[kind].needs_teacher)
