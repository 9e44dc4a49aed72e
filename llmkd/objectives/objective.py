"""The objective: a sum of terms, each with a weight, a token mask and its own line in the log.

Everything that is added up is divided in one place, by a count that is the same however the rows of an optimizer step
are spread over ranks, micro-batches, padding and packing: the counted tokens of the whole step (``normalize: all``) or
those that the term's mask keeps (``normalize: kept``).  The counts come from ``Objective.counts`` of every micro-batch
of the step, summed over ranks, before the first of them is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkd.objectives.divergences import TERMS
from llmkd.objectives.engine import Request, Values, WeightedTerm, fused_loss
from llmkd.types import Batch, Head, Signals, Tally


@dataclass(frozen=True)
class Term:
    """One line of the objective.

    domains: ids of the domains it looks at (None: all); positions: from, to among a row's counted tokens, 0-based,
    ``to`` exclusive or None; normalize: ``all`` or ``kept``; teacher: the name of the teacher it looks at.
    """

    name: str
    kind: str
    weight: float = 1.0
    domains: tuple[int, ...] | None = None
    positions: tuple[int, int | None] | None = None
    normalize: str = "all"
    teacher: str | None = None


@dataclass(frozen=True)
class Objective:
    """terms: at least one; domains: their names, by id; vocabulary: rows V that student and teachers share."""

    terms: Sequence[Term]
    domains: Sequence[str]
    vocabulary: int
    tau_student: float = 1.0
    tau_teacher: float = 1.0

    @property
    def teacher_names(self) -> list[str]:
        return sorted({t.teacher for t in self.terms if t.teacher is not None})

    def counts(self, batch: Batch) -> Tensor:
        """``[K + 1]``: the counted tokens of a batch, then what each term's mask keeps of them."""
        kept = [mask.sum() for mask in self._masks(batch)]
        return torch.stack([batch["counted"].sum(), *kept]).to(torch.int64)

    def __call__(
        self, hidden: Tensor, head: Head, signals: Mapping[str, Signals], batch: Batch, counts: Tensor
    ) -> tuple[Tensor, Tally]:
        """Loss of one micro-batch (its share of the step's) and what was measured.

        hidden ``[N, Hs]``: the student's states for the counted tokens; signals: by teacher's name, over the same
        tokens; counts ``[K + 1]``: ``counts`` of the whole step.  A step without counted tokens has loss 0.
        """
        names = self.teacher_names
        masks = self._masks(batch)
        terms = []
        for k, (term, mask) in enumerate(zip(self.terms, masks, strict=True)):
            count = counts[0] if term.normalize == "all" else counts[k + 1]
            weight = mask.to(torch.float32) * term.weight / count.clamp(min=1)
            terms.append(WeightedTerm(term.kind, weight, names.index(term.teacher) if term.teacher else None))
        request = Request(
            targets=batch["input_ids"][batch["counted"]],
            teachers=[signals[name] for name in names],
            terms=terms,
            vocabulary=self.vocabulary,
            tau_student=self.tau_student,
            tau_teacher=self.tau_teacher,
        )
        loss, values = fused_loss(hidden, head, request)
        return loss, self._tally(values, masks, batch)

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
            if term.teacher is not None and f"shared@{term.teacher}" in batch:
                mask &= batch[f"shared@{term.teacher}"][counted]
            masks.append(mask)
        return masks

    def _tally(self, values: Values, masks: Sequence[Tensor], batch: Batch) -> Tally:
        domain = batch["domain_ids"][batch["counted"]]
        everything = torch.ones_like(domain, dtype=torch.bool)
        tally = {f"{t.name}/value": self._sums(values.terms[k], masks[k], domain) for k, t in enumerate(self.terms)}
        tally["student_entropy"] = self._sums(values.entropy, everything, domain)
        for i, name in enumerate(self.teacher_names):
            mask = batch[f"shared@{name}"][batch["counted"]] if f"shared@{name}" in batch else everything
            key = "agreement" if len(self.teacher_names) == 1 else f"agreement@{name}"
            tally[key] = self._sums(values.agreement[i], mask, domain)
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


def needs_teacher(kind: str) -> bool:
    """Whether a term of this kind looks at a teacher."""
    return TERMS[kind].needs_teacher
