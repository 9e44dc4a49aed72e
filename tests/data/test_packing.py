import numpy as np
import pytest
from datasets import Dataset

from llmkd.data.packing import group, pack


def lengths(number, low=1, high=64, seed=0):
    return np.random.default_rng(seed).integers(low, high, number)


def rows_of(sizes, teacher_sizes=None):
    """Rows whose tokens all are the number of the row: a packed row then says what it holds."""
    rows = []
    for number, size in enumerate(sizes):
        row = {"input_ids": [number] * size, "counted": [0] + [1] * (size - 1), "seq_lengths": [size]}
        row |= {"domains": [number % 3], "n_bytes": 10 * number}
        if teacher_sizes is not None:
            other = teacher_sizes[number]
            row |= {"input_ids@t": [number] * other, "counted@t": [0] * other, "seq_lengths@t": [other]}
            row |= {"shared@t": [0] * size}
        rows.append(row)
    return Dataset.from_list(rows)


def segments(row, teacher=""):
    cuts = np.cumsum(row[f"seq_lengths{teacher}"])
    assert cuts[-1] == len(row[f"input_ids{teacher}"]) == len(row[f"counted{teacher}"])
    return np.split(np.array(row[f"input_ids{teacher}"]), cuts[:-1])


def test_groups_are_a_partition_within_the_limit_and_nearly_full():
    sizes = lengths(5000)
    groups = group(sizes, 64)
    assert sorted(np.concatenate(groups).tolist()) == list(range(5000))
    assert max(sizes[rows].sum() for rows in groups) <= 64
    # Best-fit decreasing uses at most 11/9 of the best number of groups, which is no less than the tokens need.
    assert len(groups) <= 11 / 9 * np.ceil(sizes.sum() / 64) + 1


def test_a_perfect_fit_is_found():
    assert len(group(np.array([6, 5, 5, 4, 7, 3]), 10)) == 3


def test_packing_is_a_permutation_of_the_segments():
    dataset = rows_of(lengths(300))
    packed = pack(dataset, 64, seed=1)
    seen = []
    for row in packed:
        assert len(row["input_ids"]) <= 64
        numbers = [int(part[0]) for part in segments(row)]
        for number, part in zip(numbers, segments(row), strict=True):
            assert part.tolist() == dataset[number]["input_ids"]
        assert row["domains"] == [number % 3 for number in numbers]
        assert row["counted"] == [bit for number in numbers for bit in dataset[number]["counted"]]
        assert row["n_bytes"] == 10 * sum(numbers)
        seen += numbers
    assert sorted(seen) == list(range(300))


def test_schema_stays_and_seed_decides():
    dataset = rows_of(lengths(300))
    assert pack(dataset, 64, seed=1).features == dataset.features
    assert list(pack(dataset, 64, seed=1)) == list(pack(dataset, 64, seed=1)) != list(pack(dataset, 64, seed=2))


def test_selected_rows_alone_are_packed():
    packed = pack(rows_of(lengths(100)).select(range(50, 60)), 64)
    assert sorted({number for row in packed for number in row["input_ids"]}) == list(range(50, 60))


def test_teacher_views_are_packed_in_the_same_groups_within_the_limit():
    packed = pack(rows_of(lengths(200, seed=1), lengths(200, seed=2)), 64, teachers=("t",))
    for row in packed:
        assert len(row["input_ids"]) <= 64 and len(row["input_ids@t"]) <= 64
        assert [part[0] for part in segments(row)] == [part[0] for part in segments(row, "@t")]
        assert len(row["shared@t"]) == len(row["input_ids"])


def test_slabs_change_nothing(monkeypatch):
    dataset = rows_of(lengths(300))
    whole = list(pack(dataset, 64))
    monkeypatch.setattr("llmkd.data.packing.SLAB", 640)
    assert list(pack(dataset, 64)) == whole


def test_streams_pack_every_row_once():
    dataset = rows_of(lengths(300))
    packed = list(pack(dataset.to_iterable_dataset(), 64))
    assert sorted(int(part[0]) for row in packed for part in segments(row)) == list(range(300))
    assert max(len(row["input_ids"]) for row in packed) <= 64 and len(packed) < 200


def test_packed_rows_pack_again():
    packed = pack(pack(rows_of(lengths(100)), 64), 128)
    assert sorted(int(part[0]) for row in packed for part in segments(row)) == list(range(100))


def test_a_row_that_is_too_long():
    with pytest.raises(ValueError, match="row 1 has 70 tokens and cannot be packed into rows of 64"):
        pack(rows_of([3, 70]), 64)
