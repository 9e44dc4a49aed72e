"""Several rows in one: best-fit-decreasing packing. Segments keep their own lengths and domains."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset, concatenate_datasets
from datasets.fingerprint import Hasher

SLAB = 1 << 27  # tokens gathered at once; keeps the offsets of a column within 32 bits
BUFFER = 2000  # rows of a stream that are packed together


def pack(
    dataset: Dataset | IterableDataset, max_length: int, seed: int = 0, teachers: Sequence[str] = ()
) -> Dataset | IterableDataset:
    """Rows of at most `max_length` tokens, each a group of whole rows of `dataset`, none of them cut.

    Rows are placed longest first, each in the group with the least room that holds it (Ding et al. 2024, "Fewer
    Truncations Improve Language Modeling", arXiv:2404.10830); equal lengths and the groups come in an order drawn from
    `seed`. With teachers that have their own rendering a row takes the room of its longest rendering, so that no
    rendering of a group exceeds `max_length`. A stream is packed `BUFFER` rows at a time.

    Raises:
        ValueError: a row is longer than `max_length`.
    """
    if isinstance(dataset, IterableDataset):
        arguments = {"max_length": max_length, "seed": seed, "teachers": tuple(teachers)}
        return dataset.map(_pack_batch, batched=True, batch_size=BUFFER, fn_kwargs=arguments, features=dataset.features)
    table = dataset.with_format("arrow")[:]
    groups = group(_room(table, teachers), max_length, seed)
    key = (dataset._fingerprint, max_length, seed, *teachers)
    return concatenate_datasets(
        [
            Dataset(_gathered(table, slab), fingerprint=Hasher.hash((*key, number)))
            for number, slab in enumerate(_slabs(groups, max_length))
        ]
    )


def group(lengths: np.ndarray, max_length: int, seed: int = 0) -> list[np.ndarray]:
    """Indices of the rows of each group: a partition of `range(len(lengths))`, each with a sum within `max_length`."""
    if len(lengths) and lengths.max() > max_length:
        row = int(lengths.argmax())
        raise ValueError(f"row {row} has {lengths[row]} tokens and cannot be packed into rows of {max_length}")
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(lengths))
    by_length = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    groups: list[list[int]] = []
    rooms: list[int] = []  # the different amounts of room that open groups have, ascending
    with_room: dict[int, list[int]] = {}  # the groups of each
    for row in by_length.tolist():
        length = int(lengths[row])
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            chosen, room = len(groups), max_length
            groups.append([])
        else:
            room = rooms[at]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        groups[chosen].append(row)
        if room - length not in with_room:
            with_room[room - length] = []
            bisect.insort(rooms, room - length)
        with_room[room - length].append(chosen)
    return [np.array(groups[index]) for index in generator.permutation(len(groups))]


def _room(table: pa.Table, teachers: Sequence[str]) -> np.ndarray:
    columns = ["input_ids", *(f"input_ids@{name}" for name in teachers)]
    return np.max([_lengths(table.column(column)) for column in columns], axis=0)


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return pc.list_value_length(column).to_numpy().astype(np.int64)


def _slabs(groups: list[np.ndarray], max_length: int) -> list[list[np.ndarray]]:
    size = max(1, SLAB // max_length)
    return [groups[start : start + size] for start in range(0, len(groups), size)]


def _gathered(table: pa.Table, groups: list[np.ndarray]) -> pa.Table:
    """The rows of each group as one row: lists one after the other, numbers added up."""
    rows = table.take(np.concatenate(groups))
    starts = np.cumsum([0, *map(len, groups)])
    columns = {}
    for name in rows.column_names:
        column = rows.column(name)
        if pa.types.is_list(column.type):
            values = pa.chunked_array([chunk.flatten() for chunk in column.chunks], type=column.type.value_type)
            offsets = np.concatenate([[0], np.cumsum(_lengths(column))])[starts]
            columns[name] = pa.ListArray.from_arrays(offsets.astype(np.int32), values.combine_chunks())
        else:
            columns[name] = np.add.reduceat(column.to_numpy(), starts[:-1])
    return pa.table(columns)


def _pack_batch(batch: dict[str, list], max_length: int, seed: int, teachers: tuple[str, ...]) -> dict[str, list]:
    columns = ["input_ids", *(f"input_ids@{name}" for name in teachers)]
    room = np.max([[len(row) for row in batch[column]] for column in columns], axis=0)
    packed: dict[str, list] = {name: [] for name in batch}
    for rows in group(room, max_length, seed):
        for name, values in batch.items():
            taken = [values[row] for row in rows]
            packed[name].append(np.concatenate(taken) if isinstance(taken[0], list) else sum(taken))
    return packed
