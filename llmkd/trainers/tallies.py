"""Sums and counts of what was measured, kept on the device between two log lines and reduced over ranks at one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Tallies:
    """Name -> ``[D, 2]`` sums and counts per domain.  A mean over tokens, not a mean of means of micro-batches."""

    def __init__(self, domains: Sequence[str]) -> None:
        self.domains = list(domains)
        self.sums: dict[str, Tensor] = {}

    def add(self, tally: dict[str, Tensor]) -> None:
        for name, value in tally.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()

    def total(self, accelerator: Any) -> dict[str, list[list[float]]]:
        """The sums over all ranks so far, as plain numbers, which they keep."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        total = accelerator.reduce(torch.stack([self.sums[n] for n in names]), reduction="sum")
        return dict(zip(names, total.tolist(), strict=True))

    def restore(self, total: dict[str, list[list[float]]], device: torch.device) -> None:
        """Go on from a ``total``, on one rank."""
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.sums = {n: torch.tensor(rows, dtype=exact, device=device) for n, rows in total.items()}

    def take(self, accelerator: Any) -> dict[str, float]:
        """Means over all ranks: ``name`` over all domains, ``name/domain`` for each when there are several; a domain
        without tokens has no line.  Empties the sums."""
        if not self.sums:
            return {}
        total = self.total(accelerator)
        self.sums.clear()
        means: dict[str, float] = {}
        for name, rows in total.items():
            value, count = (sum(column) for column in zip(*rows, strict=True))
            if count:
                means[name] = value / count
            if len(self.domains) > 1:
                means |= {f"{name}/{d}": (v / c) for d, (v, c) in zip(self.domains, rows, strict=True) if c}
        return means
