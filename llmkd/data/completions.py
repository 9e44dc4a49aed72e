"""The same rows as the prompts of ``llmkd.data.prompts``, one for one, with the completions that the data have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset, concatenate_datasets

from llmkd.data.render import row_format
from llmkd.data.rows import tokenise
from llmkd.data.sources import load

if TYPE_CHECKING:
    from llmkd.config import Data


def completions_of(
    data: Data, tokenizer: Any, domains: Sequence[str], *, max_length: int | None, as_user: bool, system: str | None
) -> Dataset:
    """Rows of tokens (``llmkd.data.rows``), the sources one after the other, none left out: rows over ``max_length``
    are truncated.  as_user, system: as the prompts were made; ValueError for a row without a completion."""
    parts = []
    for i, source in enumerate(data.datasets):
        where = f"data.datasets.{i}"
        rows = load(source, where=where)
        if row_format(rows.column_names) == "text":
            raise ValueError(f"{where}: a plain text has no completion: give messages, or prompt and completion")
        changed = system is not None or (as_user and _of_text(rows))
        if changed:
            rows = Dataset.from_list([_as_prompted(row, as_user, system) for row in rows])
        domain = domains.index(source.domain)
        parts.append(tokenise(rows, tokenizer, max_length=max_length, domain_id=domain, where=where))
    return concatenate_datasets(parts)


def _of_text(rows: Dataset) -> bool:
    return row_format(rows.column_names) == "prompt_completion" and isinstance(rows[0]["prompt"], str)


def _as_prompted(row: dict[str, Any], as_user: bool, system: str | None) -> dict[str, Any]:
    """A row with the turns that its prompt was given."""
    name = "prompt" if row_format(row) == "prompt_completion" else "messages"
    row = {column: row[column] for column in (name, "completion", "tools") if column in row and row[column] is not None}
    if isinstance(row[name], str) and as_user:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        row["completion"] = [{"role": "assistant", "content": row["completion"]}]
    if system is not None and not isinstance(row[name], str) and row[name][0]["role"] != "system":
        row[name] = [{"role": "system", "content": system}, *row[name]]
    return row


def rows_of_tokens(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], domains: Sequence[int]
) -> Dataset:
    """Rows of the same columns out of tokens that are there already: all of a completion counts."""
    made = []
    for prompt, completion, domain in zip(prompts, completions, domains, strict=True):
        ids, counted = [*prompt, *completion], [0] * len(prompt) + [1] * len(completion)
        row = {"input_ids": ids, "counted": counted, "seq_lengths": [len(ids)], "domains": [domain], "n_bytes": 0}
        made.append(row)
    return Dataset.from_list(made)
