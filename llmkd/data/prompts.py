"""The sources of a recipe as prompts for rollouts, and the order in which they are drawn.

A row: ``prompt`` (messages, or a text), ``reference`` (the columns that rewards read, as JSON), ``domain_id``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler

from llmkd.data.sources import load

if TYPE_CHECKING:
    from llmkd.config import Data


def prompts_of(
    data: Data, tokenizer: Any, domains: Sequence[str], references: Sequence[str], *, as_user: bool | None = None,
    system: str | None = None, longest: int | None = None,
) -> tuple[Dataset, list[int]]:  # fmt: skip
    """All prompts, the sources one after the other, and how many each gave.

    Args:
        references: columns that every row must have, for the rewards.
        as_user: make a prompt of text a user's turn; None: where the tokenizer has a chat template.
        system: a system message in front of every conversation that has none.
        longest: tokens that a prompt may have; None for any.

    Raises ValueError for a source of another format, a missing column, or a prompt that is too long.
    """
    chat = bool(getattr(tokenizer, "chat_template", None))
    if as_user and not chat:
        raise ValueError("train.text_prompts: user, but the tokenizer has no chat template: give raw")
    as_user = chat if as_user is None else as_user
    parts = []
    for i, source in enumerate(data.datasets):
        where = f"data.datasets.{i}"
        if source.streaming:
            raise ValueError(f"{where}.streaming: prompts are drawn from all rows: leave it out and use max_rows")
        rows = load(source, where=where, numbers=references, prompts=True)
        made = [_row(row, domains.index(source.domain), references, as_user, system, f"{where}, row {n}")
                for n, row in enumerate(rows)]  # fmt: skip
        _check_lengths(made, tokenizer, longest, where)
        parts.append(Dataset.from_list(made))
    return concatenate_datasets(parts), [len(part) for part in parts]


def _row(
    row: dict[str, Any], domain: int, references: Sequence[str], as_user: bool, system: str | None, where: str
) -> dict[str, Any]:
    prompt = row.get("prompt")
    if prompt is None:
        messages = row.get("messages") or []
        prompt = messages[:-1] if messages and messages[-1].get("role") == "assistant" else messages
    if isinstance(prompt, str) and as_user:
        prompt = [{"role": "user", "content": prompt}]
    if not prompt:
        raise ValueError(f"{where}: there is no prompt in it")
    if not isinstance(prompt, str):
        prompt = [{"role": m["role"], "content": m.get("content") or ""} for m in prompt]
        if system is not None and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": system}, *prompt]
    said = json.dumps({name: row[name] for name in references}, ensure_ascii=False, default=str)
    return {"prompt": prompt, "reference": said, "domain_id": domain}


def _check_lengths(rows: Sequence[dict[str, Any]], tokenizer: Any, longest: int | None, where: str) -> None:
    if longest is None:
        return
    for n, row in enumerate(rows):
        prompt = row["prompt"]
        count = (
            len(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str)
            else len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
        )  # fmt: skip
        if count > longest:
            raise ValueError(
                f"{where}, row {n}: the prompt has {count} tokens, and with train.max_completion_length the model's "
                f"context leaves {longest}: shorten the prompt, leave the row out, or lower max_completion_length"
            )


class GroupedOrder(Sampler[int]):
    """Prompts in the layout that GRPO's batches have: each of a generation's prompts ``group`` times, and the whole
    generation as often as it is trained on.

    order: indices of prompts, drawn once each; per_round: prompts of a generation; group: completions of a prompt;
    times: micro-batches that a generation serves.
    """

    def __init__(self, order: Sampler[int], per_round: int, group: int, times: int) -> None:
        self.order, self.per_round, self.group, self.times = order, per_round, group, times

    def __len__(self) -> int:
        return len(self.order) // self.per_round * self.per_round * self.group * self.times  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        chunk: list[int] = []
        for index in self.order:
            chunk.append(index)
            if len(chunk) == self.per_round:
                for _ in range(self.times):
                    for prompt in chunk:
                        yield from [prompt] * self.group
                chunk = []
