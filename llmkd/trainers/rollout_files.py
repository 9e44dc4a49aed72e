"""Rollouts that a checkpoint interrupts: a rank's own, beside the checkpoint, so that a resumed run trains on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rollouts-{rank}.pt"


def save(folder: Path, rank: int, rollouts: list[dict[str, Any]] | None) -> None:
    if rollouts is not None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(rollouts, _path(folder, rank))


def load(folder: Path, rank: int, device: torch.device) -> list[dict[str, Any]] | None:
    """None where the checkpoint fell between two generations."""
    path = _path(folder, rank)
    return torch.load(path, map_location=device, weights_only=True) if path.is_file() else None
