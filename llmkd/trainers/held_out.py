"""Measuring a model on held-out rows: sums over tokens, over all ranks, each row once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmkd.backbone import head_module, head_of, hidden_states, through
from llmkd.types import Batch, Loss, Teacher


@dataclass(frozen=True)
class HeldOut:
    """One data set of evaluation: its domain, tokenised rows, how they become a batch and how many at a time."""

    domain: str
    rows: Any
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]]
    batch_size: int

    def batches(self, rank: int, ranks: int, device: torch.device) -> list[dict[str, Tensor]]:
        """This rank's share.  Every rank gets equally many batches, the last ones emptied by their masks, because
        sharded models need every rank in every forward pass."""
        size = self.batch_size
        starts = list(range(0, len(self.rows), size))
        rounds = math.ceil(len(starts) / ranks)
        out = []
        for i in range(rounds):
            mine = i * ranks + rank
            start = starts[min(mine, len(starts) - 1)]
            stop = min(start + size, len(self.rows))
            batch = {k: v.to(device) for k, v in self.collate([self.rows[j] for j in range(start, stop)]).items()}
            out.append(batch if mine < len(starts) else _emptied(batch))
        return out


def _emptied(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    blank = ("counted", "shared", "n_bytes")
    return {k: torch.zeros_like(v) if k.split("@")[0] in blank else v for k, v in batch.items()}


@torch.no_grad()
def measure(
    wrapped: nn.Module, held_out: HeldOut, teachers: Mapping[str, Teacher], yardstick: Loss, accelerator: Any
) -> dict[str, float]:
    """What the yardstick's terms find on one held-out set, per token, in nats, and ``bits_per_byte``.

    ``<term>`` for the mean of each term, ``entropy`` of the model, ``agreement`` with the teacher, and
    ``bits_per_byte = sum(ce) / (ln 2 * bytes)`` where the bytes are the UTF-8 bytes of the counted tokens' text and
    the sum includes the end-of-turn tokens.  The model must be in eval mode.
    """
    student = accelerator.unwrap_model(wrapped)
    total: dict[str, Tensor] = {}
    n_bytes = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for batch in held_out.batches(accelerator.process_index, accelerator.num_processes, accelerator.device):
        signals = {name: teachers[name].score(batch) for name in yardstick.teacher_names}
        for name, value in _tally(wrapped, student, batch, signals, yardstick, accelerator).items():
            total[name] = total.get(name, 0.0) + value.sum(0)
        n_bytes += batch["n_bytes"].sum()
    names = sorted(total)
    sums = accelerator.reduce(torch.stack([total[n] for n in names]), reduction="sum").tolist()
    n_bytes = float(accelerator.reduce(n_bytes, reduction="sum"))
    found = {
        n.removesuffix("/value").replace("student_", ""): s / c for n, (s, c) in zip(names, sums, strict=True) if c
    }
    if n_bytes and "ce/value" in names:
        found["bits_per_byte"] = sums[names.index("ce/value")][0] / math.log(2) / n_bytes
    return found


def evaluate(trainer: Any) -> dict[str, float]:
    """Every held-out set of a trainer: ``eval_<domain>/ce``, ``/bits_per_byte``, and with a teacher ``/kl``,
    ``/agreement``; and their means over the domains, logged."""
    metrics: dict[str, float] = {}
    was_training = trainer.model.training
    trainer.model.eval()
    for held_out in trainer.held_out:
        found = measure(trainer.model_wrapped, held_out, trainer.teachers, trainer.yardstick, trainer.accelerator)
        metrics |= {f"eval_{held_out.domain}/{name}": value for name, value in found.items()}
    for name in {key.split("/")[-1] for key in metrics}:
        values = [v for key, v in metrics.items() if key.endswith(f"/{name}")]
        metrics[f"eval_mean/{name}"] = sum(values) / len(values)
    trainer.log(dict(metrics))
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    trainer.model.train(was_training)
    return metrics


def _tally(
    wrapped: nn.Module, student: nn.Module, batch: Batch, signals: Any, yardstick: Loss, accelerator: Any
) -> dict[str, Tensor]:
    tally: dict[str, Tensor] = {}

    def at_head(hidden: Tensor) -> Tensor:
        counts = torch.ones(len(yardstick.terms) + 1, dtype=torch.int64, device=hidden.device)
        loss, measured = yardstick(hidden, head_of(student), signals, batch, counts)
        tally.update(measured)
        return loss

    def forward() -> Tensor:
        with accelerator.autocast():
            return through(head_module(student), head_module(student), at_head, hidden_states(student, batch))

    through(wrapped, student, forward)
    return tally
