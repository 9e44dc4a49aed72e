"""Exact match on generated problems: greedy completions, graded by the task's own grader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llmkd.data.tasks import arithmetic

EVALUATION_SEED = 1000
"""Problems of an evaluation come from another seed than those of the training rows, and from the held-out split."""


@torch.no_grad()
def complete(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, batch: int = 100,
    seed: int | None = None,
) -> list[str]:  # fmt: skip
    """Completions of rendered prompts, without the special tokens: greedy, or with a seed sampled at temperature 1.
    Prompts are padded on the left."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    how: dict[str, Any] = {"do_sample": False}
    if seed is not None:
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    out: list[str] = []
    for start in range(0, len(prompts), batch):
        rows = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts[start : start + batch]]
        width = max(len(r) for r in rows)
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(r)) + r for r in rows], device=device)
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
        with _seeded(None if seed is None else seed + start, device):
            made = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, **how,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        out += tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
    model.train(was_training)
    return out


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from a seed, and afterwards as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def arithmetic_by_level(
    model: nn.Module, tokenizer: Any, levels: Sequence[int], n: int, max_new_tokens: int
) -> dict[str, float]:
    """Share of ``n`` unseen problems of each level whose final answer is right, in [0, 1]."""
    found = solved_by_level(model, tokenizer, levels, n, max_new_tokens)
    return {level: sum(right) / len(right) for level, right in found.items()}


def solved_by_level(
    model: nn.Module, tokenizer: Any, levels: Sequence[int], n: int, max_new_tokens: int
) -> dict[str, list[bool]]:
    """For each of ``n`` unseen problems of each level whether the final answer is right."""
    found: dict[str, list[bool]] = {}
    for level in levels:
        problems = arithmetic.problems(EVALUATION_SEED, n, [level], "heldout")
        prompts = [render_question(tokenizer, p["question"]) for p in problems]
        texts = complete(model, tokenizer, prompts, max_new_tokens)
        found[str(level)] = [arithmetic.is_correct(t, p["answer"]) for t, p in zip(texts, problems, strict=True)]
    return found


def render_question(tokenizer: Any, question: str) -> str:
    """A question as the tokenizer's chat template asks it; bare, with a line end, where there is no template."""
    if tokenizer.chat_template is None:
        return question + "\n"
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
