"""Completions of held-out prompts, logged at every evaluation, so that a person can see what the numbers hide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llmkd.evaluation.exact_match import complete
from llmkd.trainers.held_out import HeldOut

LENGTH = 64


class Samples(TrainerCallback):
    """Appends ``{"step", "domain", "prompt", "reference", "completion"}`` lines for the first ``count`` rows of each
    held-out set: greedy completions of the text before the first counted token, or of a row's first half where all of
    it counts."""

    def __init__(self, trainer: Any, held_out: Sequence[HeldOut], tokenizer: Any, count: int, path: Path) -> None:
        self.trainer = trainer
        self.tokenizer = tokenizer
        self.path = path
        self.rows = [(h.domain, *_cut(h.rows[i], tokenizer)) for h in held_out for i in range(min(count, len(h.rows)))]

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        with self.trainer.whole() as model:
            texts = complete(model, self.tokenizer, [prompt for _, prompt, _ in self.rows], LENGTH)
        if not state.is_world_process_zero:
            return
        with self.path.open("a") as file:
            for (domain, prompt, reference), text in zip(self.rows, texts, strict=True):
                line = {"step": state.global_step, "domain": domain, "prompt": prompt, "reference": reference,
                        "completion": text}  # fmt: skip
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _cut(row: dict[str, Any], tokenizer: Any) -> tuple[str, str]:
    ids, counted = row["input_ids"][: row["seq_lengths"][0]], row["counted"][: row["seq_lengths"][0]]
    first = counted.index(1) if 1 in counted else len(ids)
    if first <= 1:
        first = max(1, len(ids) // 2)
    return tokenizer.decode(ids[:first]), tokenizer.decode(ids[first:], skip_special_tokens=True)
