import itertools

import numpy as np
import pytest
from datasets import Dataset

from llmkd.data.sampling import MixtureSampler, mix_streams, order

LENGTHS = [50, 7, 13]


def owner(indices):
    return np.searchsorted(np.cumsum(LENGTHS), indices, side="right")


def test_without_weights_each_pass_visits_every_row_once():
    indices = order(LENGTHS, None, 70 * 5 + 10, seed=0)
    passes = [indices[start : start + 70].tolist() for start in range(0, 350, 70)]
    assert all(sorted(one) == list(range(70)) for one in passes)
    assert len({tuple(one) for one in passes}) == 5
    assert len(set(indices[350:].tolist())) == 10


def test_with_weights_each_data_set_is_passed_over_without_repetition():
    indices = order(LENGTHS, [1, 5, 2], 3000, seed=0)
    for number, length in enumerate(LENGTHS):
        own = indices[owner(indices) == number]
        whole = own[: len(own) // length * length].reshape(-1, length)
        assert len(whole) > 3
        start = sum(LENGTHS[:number])
        assert all(sorted(one.tolist()) == list(range(start, start + length)) for one in whole)


def test_shares_follow_the_weights():
    total, weights = 20000, np.array([1.0, 5.0, 2.0])
    shares = weights / weights.sum()
    counts = np.bincount(owner(order(LENGTHS, weights, total, seed=3)), minlength=3)
    assert np.all(np.abs(counts - total * shares) < 4 * np.sqrt(total * shares * (1 - shares)))


@pytest.mark.parametrize("weights", [None, [1, 5, 2]])
def test_the_order_is_a_function_of_its_arguments(weights):
    sampler = MixtureSampler(LENGTHS, weights, 9000, seed=4)
    first = list(sampler)
    assert len(sampler) == len(first) == 9000 and first == list(sampler)
    assert first == order(LENGTHS, weights, 9000, seed=4).tolist()
    assert first[:100] == order(LENGTHS, weights, 100, seed=4).tolist()
    assert first[:100] != order(LENGTHS, weights, 100, seed=5).tolist()
    assert all(isinstance(index, int) for index in first[:10])


def test_a_large_total_costs_only_what_is_taken():
    assert len(list(itertools.islice(MixtureSampler(LENGTHS, [1, 1, 1], 10**12, 0), 5))) == 5


def test_lengths_and_weights_that_do_not_fit():
    with pytest.raises(ValueError, match=r"every data set needs at least one row, got lengths \[3, 0\]"):
        MixtureSampler([3, 0], None, 5, 0)
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="one positive number for each of the 2 data sets"):
            MixtureSampler([3, 4], weights, 5, 0)


def streams():
    return [Dataset.from_dict({"n": [start] * 400}).to_iterable_dataset() for start in range(3)]


def test_streams_are_mixed_by_weight():
    taken = [row["n"] for row in mix_streams(streams(), [1, 2, 1], seed=0).take(300)]
    shares = np.array([0.25, 0.5, 0.25])
    counts = np.bincount(taken, minlength=3)
    assert np.all(np.abs(counts - 300 * shares) < 4 * np.sqrt(300 * shares * (1 - shares)))
    assert taken == [row["n"] for row in mix_streams(streams(), [1, 2, 1], seed=0).take(300)]


def test_streams_are_read_to_the_end_of_the_last():
    counts = np.bincount([row["n"] for row in mix_streams(streams(), None, seed=0)], minlength=3)
    assert counts.min() >= 400
    assert len(list(mix_streams(streams()[:1], None, seed=0))) == 400
