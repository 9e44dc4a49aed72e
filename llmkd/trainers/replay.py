"""A buffer of completions that were written before: the last ones, drawn from by seed and step."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Replay:
    """The last ``capacity`` items, of JSON values; the oldest goes first.  DistiLLM holds 1000."""

    capacity: int = 1000
    items: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(f"capacity: {self.capacity} is below 1: nothing could be kept")

    @property
    def full(self) -> bool:
        return len(self.items) == self.capacity

    def add(self, items: list[Any]) -> None:
        self.items = (self.items + items)[-self.capacity :]

    def draw(self, seed: int, step: int, size: int) -> list[Any]:
        """``size`` different items, a pure function of seed, step and what is held.  Raises ValueError for too many."""
        if size > len(self.items):
            raise ValueError(f"size: {size} items asked of a buffer that holds {len(self.items)}: add some first")
        return random.Random(f"{seed}:{step}").sample(self.items, size)

    def state(self) -> list[Any]:
        return list(self.items)

    def restore(self, state: list[Any]) -> None:
        self.items = list(state)[-self.capacity :]
