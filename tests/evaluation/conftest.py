"""A model that has learned the solutions of some problems by heart."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkd.evaluation.exact_match import render_question
from llmkd.evaluation.pass_at import problems

from tiny import tiny_llama, tiny_tokenizer


@dataclass(frozen=True)
class Memoriser:
    """task: an entry of `eval.tasks`, of whose problems the model in the folder solves the first two of four, and says
    what is wrong to the others."""

    folder: Path
    task: dict[str, Any]


@pytest.fixture(scope="session")
def memoriser(tmp_path_factory: pytest.TempPathFactory) -> Memoriser:
    folder = tmp_path_factory.mktemp("memoriser")
    options = {"numbers": 3, "largest": 12, "target": [10, 40]}
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer(folder))
    tiny_llama(folder, initializer_range=0.1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = problems("countdown", 4, options)
    asked = [render_question(tokenizer, row["prompt"][0]["content"]) for row in rows]
    said = [row["completion"][0]["content"] for row in rows[:2]] + ["Answer: 1 + 1"] * 2
    _learn(model, *_batch(tokenizer, asked, said))
    model.save_pretrained(folder)
    task = {"task": "countdown", "name": "known", "n": 4, "max_new_tokens": 48, "options": options}
    return Memoriser(folder, task)


def _batch(tokenizer: Any, asked: list[str], said: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids, padded on the right, and labels of what is said."""
    prompts, answers = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (asked, said))
    rows = [prompt + made + [tokenizer.eos_token_id] for prompt, made in zip(prompts, answers, strict=True)]
    ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[place, : len(row)] = torch.tensor(row)
        labels[place, len(prompt) : len(row)] = torch.tensor(row[len(prompt) :])
    return ids, labels


def _learn(model: Any, ids: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for _ in range(400):
        loss = model(input_ids=ids, labels=labels).loss
        if loss.item() < 0.01:
            return
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    raise AssertionError(f"the model has not learned its answers: {loss.item()}")
