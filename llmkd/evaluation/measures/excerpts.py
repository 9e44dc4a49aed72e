"""A few held-out rows token by token, for people to look at: what the divergences are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from llmkd.evaluation.measures import tokens
from llmkd.trainers.held_out import HeldOut
from llmkd.types import Signals, Sparse, States, Teacher

TOKENS = 96
"""Counted tokens of a row that are shown."""
TOP = 3
"""Likeliest tokens that are shown of each model."""


@torch.no_grad()
def excerpts(
    models: Mapping[str, Teacher], teacher: Teacher, held_out: Sequence[HeldOut], vocabulary: int, tokenizer: Any,
    rows: int, device: torch.device,
) -> list[dict[str, Any]]:  # fmt: skip
    """The first rows of each domain, as JSON.

    Each has ``domain``, ``row``, ``prompt`` (the text before its first counted token), ``tokens`` (their texts),
    ``teacher`` with ``top`` (for each token the likeliest texts and their probabilities), and for each of the models
    ``forward_kl`` (None where it is infinite), ``agreement`` and ``top``.
    """
    out = []
    for part in held_out:
        for i in range(min(rows, len(part.rows))):
            batch = {name: value.to(device) for name, value in part.collate([part.rows[i]]).items()}
            out.append({"domain": part.domain, "row": i} | _excerpt(models, teacher, batch, vocabulary, tokenizer))
    return out


def _excerpt(
    models: Mapping[str, Teacher], teacher: Teacher, batch: dict[str, Tensor], vocabulary: int, tokenizer: Any
) -> dict[str, Any]:
    taught, counted = teacher.score(batch), batch["counted"]
    keep = (
        torch.ones(int(counted.sum()), dtype=torch.bool, device=counted.device) if taught.kept is None else taught.kept
    )
    chosen = keep.nonzero()[:TOKENS, 0]
    ids, first = batch["input_ids"][0], int(counted[0].nonzero()[0, 0])
    targets = batch["input_ids"][counted]
    out: dict[str, Any] = {
        "prompt": tokenizer.decode(ids[:first]), "tokens": _texts(targets[chosen], tokenizer),
        "teacher": {"top": _tops(taught, chosen, vocabulary, tokenizer)},
    }  # fmt: skip
    for name, model in models.items():
        states = model.score(batch)
        assert isinstance(states, States)
        found = tokens.compared(states, taught, targets, vocabulary, 1)
        out[name] = {
            "forward_kl": [round(x, 4) if isfinite(x) else None for x in found["forward_kl"][chosen].tolist()],
            "agreement": [int(x) for x in found["agreement"][chosen].tolist()],
            "top": _tops(states, chosen, vocabulary, tokenizer),
        }
    return out


def _tops(signals: Signals, chosen: Tensor, vocabulary: int, tokenizer: Any) -> list[list[list[Any]]]:
    """For each token ``[[text, probability], ...]``, the likeliest first."""
    if isinstance(signals, Sparse):
        logp, order = signals.logp[chosen].sort(-1, descending=True)
        best, ids = logp[:, :TOP].exp(), signals.ids[chosen].gather(-1, order)[:, :TOP]
    else:
        logits = torch.cat([tokens.logits_of(signals, slice(int(i), int(i) + 1)) for i in chosen])[:, :vocabulary]
        best, ids = logits.softmax(-1).topk(min(TOP, vocabulary))
    shown = zip(ids, best.tolist(), strict=True)
    return [[[text, round(p, 4)] for text, p in zip(_texts(row, tokenizer), ps, strict=True)] for row, ps in shown]


def _texts(ids: Tensor, tokenizer: Any) -> list[str]:
    return [tokenizer.decode([i]) for i in ids.tolist()]
