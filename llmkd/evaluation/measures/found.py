"""What a measure hands back: all that a ``Record`` needs but the model and the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmkd.evaluation.results import Metric


@dataclass(frozen=True)
class Found:
    """metrics: by name; details: what a report draws, as JSON; items: one line an item, in order; settings: what
    changes the numbers."""

    metrics: Mapping[str, Metric]
    details: Mapping[str, Any] = field(default_factory=dict)
    items: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
