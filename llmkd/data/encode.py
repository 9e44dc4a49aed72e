"""Renderings as tokens: which of them count, and how many bytes of text each one stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmkd.data.render import Rendering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Encoded:
    """The tokens of one row.

    `turns` are the ranges `[start, end)` of counted tokens, one for each counted span of the rendering. `n_bytes` are
    the UTF-8 bytes of each token's characters: a character that several tokens share belongs to the first of them, and
    special tokens have none, so that the sum over a plain text is the length of that text.
    """

    input_ids: np.ndarray
    turns: list[tuple[int, int]]
    n_bytes: np.ndarray

    def counted(self, start: int = 0, end: int | None = None) -> np.ndarray:
        """0/1 for the tokens `[start, end)` taken as a row of their own, whose first token has nothing before it."""
        mask = np.zeros(len(self.input_ids), dtype=np.int8)
        for first, last in self.turns:
            mask[first:last] = 1
        mask[start : start + 1] = 0
        return mask[start:end]


def special_ids(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """The ids of the special tokens, which stand for no text."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return np.array(sorted(added | set(tokenizer.all_special_ids)), dtype=np.int64)


def encode(renderings: Sequence[Rendering], tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """Tokenise renderings. Prompt and completion go through the tokenizer together, as they will be when generating.

    A token counts if it starts inside a counted span: one that straddles the end of the prompt belongs to the prompt.
    """
    special = special_ids(tokenizer)
    done: list[Encoded | None] = [None] * len(renderings)
    for plain in (True, False):
        chosen = [index for index, rendering in enumerate(renderings) if rendering.plain == plain]
        if not chosen:
            continue
        tokens = tokenizer(
            [renderings[index].text for index in chosen],
            add_special_tokens=plain,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for index, ids, offsets in zip(chosen, tokens["input_ids"], tokens["offset_mapping"], strict=True):
            done[index] = _encoded(renderings[index], ids, offsets, tokenizer, special)
    return done


def _encoded(rendering: Rendering, ids: list[int], offsets: list, tokenizer, special: np.ndarray) -> Encoded:
    eos = tokenizer.eos_token_id
    if rendering.plain and len(ids) > 1 and ids[-1] == eos and offsets[-1][0] == offsets[-1][1]:
        ids, offsets = ids[:-1], offsets[:-1]  # this tokenizer adds the EOS itself
    input_ids = np.array(ids, dtype=np.int64)
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    reached = np.maximum.accumulate(ends)
    before = np.concatenate([[0], reached[:-1]]).astype(np.int64) if len(ids) else reached
    starts = _untrimmed(starts, before, ids, tokenizer)
    turns = [_token_range(starts, start, end) for start, end in rendering.spans]
    upto = _bytes_upto(rendering.text)
    n_bytes = upto[reached] - upto[before]
    n_bytes[np.isin(input_ids, special)] = 0
    if rendering.plain:
        if not ids or ids[-1] != eos:
            input_ids, n_bytes = np.append(input_ids, eos), np.append(n_bytes, 0)
        turns[-1] = (turns[-1][0], len(input_ids))
    return Encoded(input_ids, turns, n_bytes)


def _untrimmed(starts: np.ndarray, before: np.ndarray, ids: list[int], tokenizer) -> np.ndarray:
    """Starts that include a leading space which byte-level tokenizers with `trim_offsets` leave out of the offsets."""
    gaps = np.flatnonzero(starts > before)
    if len(gaps):
        names = tokenizer.convert_ids_to_tokens([ids[index] for index in gaps])
        led = gaps[[bool(name) and name[0] in "Ġ▁" for name in names]]
        starts = starts.copy()
        starts[led] = before[led]
    return starts


def _token_range(starts: np.ndarray, start: int, end: int) -> tuple[int, int]:
    inside = np.flatnonzero((starts >= start) & (starts < end))
    if len(inside):
        return int(inside[0]), int(inside[-1]) + 1
    first = int(np.searchsorted(starts, start))
    return first, first


def _bytes_upto(text: str) -> np.ndarray:
    """`[len(text) + 1]`: the UTF-8 bytes of the first n characters."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    width = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.concatenate([[0], np.cumsum(width)])
