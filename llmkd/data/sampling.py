"""In which order the rows of several data sets are visited."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from datasets import IterableDataset, interleave_datasets
from torch.utils.data import Sampler

BLOCK = 4096  # draws made at once


class MixtureSampler(Sampler[int]):
    """Indices into the concatenation of data sets: a pure function of its arguments.

    Without weights the whole is passed over again and again, each pass in an order of its own: every row once a pass.
    With weights each draw first takes a data set at random by weight and then the next row of that one's own passes, so
    that a row comes back only when all others of its data set have been drawn. A longer `total` only goes on: the
    first indices are the same.

    Args:
        lengths: rows of each data set.
        weights: positive, one a data set, normalised here; None for proportional to the lengths.
        total: how many indices to yield.
        seed: of the order.

    Raises:
        ValueError: weights that do not fit the lengths, or a data set without rows.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float] | None, total: int, seed: int):
        if not lengths or min(lengths) < 1:
            raise ValueError(f"every data set needs at least one row, got lengths {list(lengths)}")
        if weights is not None and (len(weights) != len(lengths) or not all(0 < w < np.inf for w in weights)):
            raise ValueError(f"weights {list(weights)}: one positive number for each of the {len(lengths)} data sets")
        self.lengths = list(lengths)
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64) / sum(weights)
        self.total = total
        self.seed = seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        stream = _passes(sum(self.lengths), self.seed, 0) if self.weights is None else self._weighted()
        return itertools.islice(stream, self.total)

    def _weighted(self) -> Iterator[int]:
        starts = np.cumsum([0, *self.lengths])
        rows = [_passes(length, self.seed, 1 + number) for number, length in enumerate(self.lengths)]
        draws = np.random.default_rng([self.seed, 0])
        while True:
            for number in draws.choice(len(rows), size=BLOCK, p=self.weights):
                yield int(starts[number]) + next(rows[number])


def order(lengths: Sequence[int], weights: Sequence[float] | None, total: int, seed: int) -> np.ndarray:
    """`[total]` int64: what `MixtureSampler` yields."""
    return np.fromiter(MixtureSampler(lengths, weights, total, seed), dtype=np.int64, count=total)


def mix_streams(streams: list[IterableDataset], weights: Sequence[float] | None, seed: int) -> IterableDataset:
    """Streams as one: each row is drawn from a stream chosen at random by weight (alike without weights).

    A stream that ends starts again; the whole ends when the last of them has been read through once.
    """
    if len(streams) == 1:
        return streams[0]
    shares = np.ones(len(streams)) if weights is None else np.asarray(weights, dtype=np.float64)
    probabilities = (shares / shares.sum()).tolist()
    return interleave_datasets(streams, probabilities=probabilities, seed=seed, stopping_strategy="all_exhausted")


def _passes(length: int, seed: int, stream: int) -> Iterator[int]:
    for number in itertools.count():
        yield from np.random.default_rng([seed, stream, number]).permutation(length).tolist()
