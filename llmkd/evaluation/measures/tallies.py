"""Held-out rows measured: sums over the counted tokens of each row, and means by position and by confidence.

A row is an item, so what is needed of it is its sums; the tokens themselves are not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmkd.evaluation.measures import tokens
from llmkd.objectives.engine import TokenFault
from llmkd.trainers.held_out import HeldOut
from llmkd.types import Batch, Signals, States, Teacher

CONFIDENCE = tuple(i / 10 for i in range(11))
"""Edges of the bins of the teacher's largest probability."""
POSITION = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Lower edges of the bins of a token's place among the counted ones of its row, from 0."""


@dataclass
class Tally:
    """sums: measure -> one sum a row, ``tokens`` among them; by_position, by_confidence: measure -> one sum a bin."""

    sums: dict[str, list[float]] = field(default_factory=dict)
    by_position: dict[str, np.ndarray] = field(default_factory=dict)
    by_confidence: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, found: Mapping[str, Tensor], rows: Tensor, count: int, position: Tensor) -> None:
        """found: values of tokens that are counted in ``rows`` of ``count``."""
        for name, value in found.items():
            self.sums.setdefault(name, []).extend(_sums(value, rows, count).tolist())
            _count_in(self.by_position, name, value, _bins(position, POSITION[1:]), len(POSITION))
        if "teacher_top" in found:
            bins = _bins(found["teacher_top"], CONFIDENCE[1:-1])
            for name in ("agreement", "tokens", "teacher_top"):
                _count_in(self.by_confidence, name, found[name], bins, len(CONFIDENCE) - 1)


@dataclass(frozen=True)
class Signal:
    """What a teacher's signal is worth: measures that it does not allow, and those that are not exact, with reasons."""

    left_out: dict[str, str]
    classes: dict[str, Any]


@torch.no_grad()
def tally(
    models: Mapping[str, Teacher], teacher: Teacher, held_out: HeldOut, vocabulary: int, k: int, device: torch.device
) -> tuple[dict[str, Tally], Signal]:
    """Each of the models against the teacher, which is asked once a batch.

    Raises ValueError, with the row, for a token that the models have no distribution for.
    """
    out = {name: Tally() for name in models}
    signal = Signal({}, {})
    done = 0
    for batch in held_out.batches(0, 1, device):
        taught = teacher.score(batch)
        signal = Signal(tokens.left_out(taught, k), tokens.classes(taught))
        counted = batch["counted"]
        rows, position = counted.nonzero(as_tuple=True)[0], (counted.cumsum(1) - 1)[counted]
        for name, model in models.items():
            states = model.score(batch)
            assert isinstance(states, States)
            found = _compared(states, taught, batch, vocabulary, k, (held_out.domain, done))
            keep = torch.ones_like(rows, dtype=torch.bool) if taught.kept is None else taught.kept
            kept = {measure: value[keep].double() for measure, value in found.items()}
            out[name].add(derived(kept), rows[keep], len(counted), position[keep])
        done += len(counted)
    return out, signal


def _compared(
    states: States, taught: Signals, batch: Batch, vocabulary: int, k: int, place: tuple[str, int]
) -> tokens.PerToken:
    try:
        return tokens.compared(states, taught, batch["input_ids"][batch["counted"]], vocabulary, k)
    except TokenFault as fault:
        row, position = (int(x[fault.row]) for x in batch["counted"].nonzero(as_tuple=True))
        raise ValueError(f"held-out set {place[0]}, row {place[1] + row}, token {position}: {fault.what}") from None


def derived(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The measures, and what is counted beside them."""
    right, wrong = found["teacher_right"], 1 - found["teacher_right"]
    out = {
        **found, "tokens": torch.ones_like(right), "teacher_wrong": wrong,
        "agreement_teacher_right": found["agreement"] * right,
        "agreement_teacher_wrong": found["agreement"] * wrong,
    }  # fmt: skip
    if "total_variation" in found:
        out["acceptance"] = 1 - found["total_variation"]
    return out


def _sums(value: Tensor, places: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=value.dtype, device=value.device).index_add_(0, places, value)


def _bins(value: Tensor, inner_edges: tuple[float, ...]) -> Tensor:
    return torch.bucketize(value, torch.tensor(inner_edges, dtype=value.dtype, device=value.device), right=True)


def _count_in(table: dict[str, np.ndarray], name: str, value: Tensor, bins: Tensor, count: int) -> None:
    found = _sums(value, bins, count).cpu().numpy()
    table[name] = table[name] + found if name in table else found
