"""How much a token weighs: functions of what is known of it, in [0, 1], which carry no gradient.

Those that need the models' distributions are called by the row block, between the statistics and the gradient; those
of position and of a column of the data are final before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Of ``[n]`` tokens, at temperature 1: the student's entropy, the size V of the vocabulary, and where there is a
    teacher its entropy and the probability of its likeliest token."""

    entropy: Tensor
    vocabulary: int
    teacher_entropy: Tensor | None = None
    teacher_top: Tensor | None = None


Weighting = Callable[[Statistics], Tensor]


def student_entropy(found: Statistics) -> Tensor:
    """``H(q) / ln V``: 1 where the student knows nothing."""
    return found.entropy / math.log(found.vocabulary)


def teacher_entropy(found: Statistics) -> Tensor:
    """``H(p) / ln V``: 1 where the teacher knows nothing."""
    assert found.teacher_entropy is not None
    return found.teacher_entropy / math.log(found.vocabulary)


def teacher_confidence(found: Statistics) -> Tensor:
    """``max_v p_v``: near 1 where the teacher is sure."""
    assert found.teacher_top is not None
    return found.teacher_top


MEASURED: dict[str, Weighting] = {
    "student_entropy": student_entropy,
    "teacher_entropy": teacher_entropy,
    "teacher_confidence": teacher_confidence,
}


def position_weight(position: Tensor, half_life: float) -> Tensor:
    """``2^(-position / half_life)``, for the index of a token among the counted ones of its row."""
    return torch.exp2(-position.to(torch.float32) / half_life)


def shaped(weight: Tensor, floor: float = 0.0, power: float = 1.0) -> Tensor:
    """``floor + (1 - floor) weight^power``, for a weight in [0, 1]."""
    return floor + (1 - floor) * weight.clamp(0, 1).pow(power)


def measured(kind: str, floor: float = 0.0, power: float = 1.0) -> Weighting:
    """One of ``MEASURED``, shaped."""
    return lambda found: shaped(MEASURED[kind](found), floor, power)
