"""Rows of tokens as one batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

Row = Mapping[str, Any]


class Collator:
    """Rows, right-padded, as the tensors of a batch.

    `input_ids` [B, T] int64, `counted` [B, T] bool, `domain_ids` [B, T] int64, `n_bytes` [B] int64; where the rows say
    so, `own` [B, T] bool, of the segments that the student wrote; for each column of numbers `column:NAME` [B, T]
    float32; with packed rows `position_ids` [B, T], which start at 0 in each segment, the padding being a segment of
    its own; and for each teacher with its own rendering `input_ids@NAME`, `counted@NAME` and `position_ids@NAME`
    [B, T'], `shared@NAME` [B, T].

    There is no attention mask. Rows are causal, so what stands before the padding does not see it; and packed rows
    are kept apart by their positions alone.

    Args:
        pad_id: fills `input_ids`.
        packed: some row of the data set has several segments.
        teachers: names of the teachers with their own rendering.
        teacher_pad_ids: fill their `input_ids`; one a name.
        pad_to_multiple_of: T becomes a multiple of it.
        numbers: names of the columns of numbers.
        flatten: put the rows of a batch one after the other into one, [1, sum of T], without padding between them, as
            variable-length attention kernels take them. Positions are given then, packed or not.
    """

    def __init__(
        self,
        pad_id: int,
        packed: bool,
        teachers: tuple[str, ...] = (),
        teacher_pad_ids: tuple[int, ...] = (),
        pad_to_multiple_of: int | None = None,
        flatten: bool = False,
        numbers: tuple[str, ...] = (),
    ):
        self.pad_ids = {"": pad_id} | dict(zip(teachers, teacher_pad_ids, strict=True))
        self.packed = packed or flatten
        self.multiple = pad_to_multiple_of or 1
        self.flatten = flatten
        self.numbers = tuple(f"column:{name}" for name in numbers)

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        rows = [_joined(rows, self.pad_ids, self.numbers)] if self.flatten else rows
        batch = {"n_bytes": torch.tensor([int(row["n_bytes"]) for row in rows])}
        for name, pad_id in self.pad_ids.items():
            at = f"@{name}" if name else ""
            width = self._width([len(row[f"input_ids{at}"]) for row in rows])
            batch[f"input_ids{at}"] = _padded([row[f"input_ids{at}"] for row in rows], width, pad_id)
            batch[f"counted{at}"] = _padded([row[f"counted{at}"] for row in rows], width, 0).bool()
            if self.packed:
                positions = [_positions(row[f"seq_lengths{at}"], width) for row in rows]
                batch[f"position_ids{at}"] = torch.from_numpy(np.stack(positions))
        width = batch["input_ids"].shape[1]
        for name in list(self.pad_ids)[1:]:
            batch[f"shared@{name}"] = _padded([row[f"shared@{name}"] for row in rows], width, 0).bool()
        batch["domain_ids"] = _padded([_of_each_token(row, "domains") for row in rows], width, 0)
        if "own" in rows[0]:
            batch["own"] = _padded([_of_each_token(row, "own") for row in rows], width, 0).bool()
        for name in self.numbers:
            batch[name] = _padded([_of_each_token(row, name) for row in rows], width, 1, np.float32)
        return batch

    def _width(self, lengths: list[int]) -> int:
        return -(-max(lengths) // self.multiple) * self.multiple


def _of_each_token(row: Row, column: str) -> np.ndarray:
    """What a row says of each of its segments, said of each token."""
    return np.repeat(np.asarray(row[column]), np.asarray(row["seq_lengths"]))


def _padded(values: list, width: int, fill: int, dtype: type = np.int64) -> torch.Tensor:
    out = np.full((len(values), width), fill, dtype=dtype)
    for line, value in zip(out, values, strict=True):
        line[: len(value)] = value
    return torch.from_numpy(out)


def _positions(seq_lengths: Sequence[int], width: int) -> np.ndarray:
    tail = width - sum(seq_lengths)
    return np.concatenate([np.arange(length, dtype=np.int64) for length in (*seq_lengths, tail)])


def _joined(rows: Sequence[Row], names: Mapping[str, int], numbers: Sequence[str]) -> Row:
    columns = ["input_ids", "counted", "seq_lengths"]
    columns = [f"{column}@{name}" if name else column for name in names for column in columns]
    columns += ["domains", *numbers, *(f"shared@{name}" for name in names if name)]
    joined = {column: np.concatenate([np.asarray(row[column]) for row in rows]) for column in columns}
    return joined | {"n_bytes": sum(int(row["n_bytes"]) for row in rows)}
