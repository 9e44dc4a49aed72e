"""Intervals hold the truth as often as they say, are withheld where nothing is known, and repeat themselves.

Coverage is simulated: `ROUNDS` samples of a known law, the share of their 95% intervals that hold its true value.  That
share has a binomial error, of which four standard deviations are allowed, and besides a bootstrap is short by what is
stated at each law: resamples of few or very skewed items know too little of the tail.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import pytest

from llmkd.evaluation import intervals
from llmkd.evaluation.intervals import LEVEL, Estimate

ROUNDS = 250
Draw = Callable[[np.random.Generator], tuple[Any, ...]]


def coverage(interval: Callable[..., Estimate], draw: Draw, truth: float, rounds: int = ROUNDS) -> float:
    generator = np.random.default_rng(0)
    found = [interval(*draw(generator)) for _ in range(rounds)]
    assert all(e.low <= e.value <= e.high for e in found), "an interval without its own value"
    return float(np.mean([e.low <= truth <= e.high for e in found]))


def exponential(n: int) -> Draw:
    return lambda g: (g.exponential(1.0, n),)


def shares(n: int, p: float) -> Draw:
    return lambda g: ((g.random(n) < p).astype(float),)


def rows(n: int) -> Draw:
    """Rows of 5 to 200 tokens, the tokens of a row hanging together: 2 nats a token in the mean."""

    def draw(g: np.random.Generator) -> tuple[Any, ...]:
        counts = g.integers(5, 200, n).astype(float)
        return counts * g.gamma(4.0, 0.5, n), counts

    return draw


def pairs(n: int) -> Draw:
    def draw(g: np.random.Generator) -> tuple[Any, ...]:
        theirs = g.exponential(1.0, n)
        return theirs + g.normal(0.1, 0.3, n), theirs

    return draw


def paired_shares(n: int) -> Draw:
    """Right on 60% and on 50% of the items, the easier ones."""

    def draw(g: np.random.Generator) -> tuple[Any, ...]:
        difficulty = g.random(n)
        return (difficulty < 0.6).astype(float), (difficulty < 0.5).astype(float)

    return draw


def paired_rows(n: int) -> Draw:
    def draw(g: np.random.Generator) -> tuple[Any, ...]:
        sums, counts = rows(n)(g)
        return sums + counts * g.normal(0.1, 0.2, n), sums, counts

    return draw


def normal(n: int) -> Draw:
    return lambda g: (g.normal(3.0, 0.5, n),)


LAWS = [
    pytest.param(intervals.mean, exponential(40), 1.0, 0.03, id="skewed mean, 40 items"),
    pytest.param(intervals.mean, exponential(10), 1.0, 0.05, id="skewed mean, 10 items"),
    pytest.param(intervals.mean, normal(6), 3.0, 0.01, id="mean of 6 items"),
    pytest.param(intervals.mean, shares(40, 0.5), 0.5, 0.02, id="share of a half, 40 items"),
    pytest.param(intervals.mean, shares(60, 0.9), 0.9, 0.03, id="share of nine tenths, 60 items"),
    pytest.param(intervals.ratio, rows(40), 2.0, 0.02, id="nats a token, 40 rows"),
    pytest.param(intervals.difference, pairs(30), 0.1, 0.02, id="paired difference, 30 items"),
    pytest.param(intervals.difference, paired_shares(30), 0.1, 0.03, id="paired shares, 30 items"),
    pytest.param(intervals.difference, paired_shares(10), 0.1, 0.03, id="paired shares, 10 items, often all alike"),
    pytest.param(intervals.ratio_difference, paired_rows(30), 0.1, 0.02, id="paired rows, 30 rows"),
]


@pytest.mark.parametrize(("interval", "draw", "truth", "margin"), LAWS)
def test_bootstrap_covers_the_truth(
    interval: Callable[..., Estimate], draw: Draw, truth: float, margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "DRAWS", 500)  # the quantiles of 500 are as right as those of 2000, only rougher
    found = coverage(interval, draw, truth)
    assert found >= LEVEL - margin - 4 * sqrt(LEVEL * (1 - LEVEL) / ROUNDS), found


def test_intervals_are_not_so_wide_that_they_cover_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "DRAWS", 500)
    generator = np.random.default_rng(1)
    found = [intervals.mean(generator.normal(0, 1, 40)) for _ in range(60)]
    width = np.mean([e.high - e.low for e in found])
    by_student = 2 * 2.0227 / sqrt(40)
    assert 0.9 * by_student < width < 1.1 * by_student


@pytest.mark.parametrize("n", [2, 3, 5])
def test_students_t_covers_the_mean_over_seeds(n: int) -> None:
    found = coverage(intervals.over_seeds, normal(n), 3.0, rounds=4000)
    assert abs(found - LEVEL) < 4 * sqrt(LEVEL * (1 - LEVEL) / 4000), found


@pytest.mark.full
@pytest.mark.parametrize(("interval", "draw", "truth", "margin"), LAWS)
def test_bootstrap_covers_the_truth_in_many_rounds(
    interval: Callable[..., Estimate], draw: Draw, truth: float, margin: float
) -> None:
    found = coverage(interval, draw, truth, rounds=2000)
    error = 4 * sqrt(LEVEL * (1 - LEVEL) / 2000)
    assert LEVEL - margin - error <= found <= LEVEL + 0.05, found


# -- withheld ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found",
    [
        intervals.mean([0.7]), intervals.ratio([7.0], [10]), intervals.difference([1.0], [0.3]),
        intervals.ratio_difference([8.0], [1.0], [10]), intervals.over_seeds([0.7]),
        intervals.ratio([7.0, 0.0], [10, 0]),
    ],
    ids=["mean", "ratio", "difference", "difference of ratios", "one seed", "one row that counts"],
)  # fmt: skip
def test_interval_of_one_item_is_withheld(found: Estimate) -> None:
    assert found == Estimate(pytest.approx(0.7), None, None, 1)
    assert not found.excludes(0.0)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_interval_of_what_is_not_finite_is_withheld(value: float) -> None:
    found = intervals.mean([1.0, value, 2.0])
    assert (found.low, found.high, found.n) == (None, None, 3)
    assert not np.isfinite(found.value)


@pytest.mark.parametrize("interval", [intervals.mean, lambda x: intervals.ratio(x, x)])
def test_no_items_are_refused(interval: Callable[..., Estimate]) -> None:
    with pytest.raises(ValueError, match="no items"):
        interval([])


def test_rows_that_count_nothing_are_refused_alone_and_left_out_beside_others() -> None:
    with pytest.raises(ValueError, match="no items"):
        intervals.ratio([0.0, 0.0], [0, 0])
    assert intervals.ratio([1.0, 3.0, 0.0], [2, 3, 0]) == intervals.ratio([1.0, 3.0], [2, 3])


def test_a_paired_difference_of_other_items_is_refused() -> None:
    with pytest.raises(ValueError, match="3 items beside 2"):
        intervals.difference([1, 2, 3], [1, 2])


# -- all alike ---------------------------------------------------------------------------------------------------------


def test_items_that_are_all_alike_have_an_interval_of_no_width() -> None:
    assert intervals.mean([0.3] * 5) == Estimate(pytest.approx(0.3), pytest.approx(0.3), pytest.approx(0.3), 5)
    assert intervals.difference([0.5, 0.7], [0.5, 0.7]) == Estimate(0, 0, 0, 2)


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, 0.2775), (1, 0.7225, 1.0)])
def test_all_right_and_all_wrong_are_wilsons(right: int, low: float, high: float) -> None:
    """z^2 / (n + z^2) from the end, at n = 10 and z = 1.96."""
    found = intervals.mean([right] * 10)
    assert (found.value, found.low, found.high) == (right, pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_two_models_that_are_right_on_the_same_items_may_still_differ() -> None:
    """Half an observation in each cell: 0 +- 1.96 sqrt(0.5 + 0.5) / (n + 2)."""
    found = intervals.difference([1, 0, 1, 1], [1, 0, 1, 1])
    assert found == Estimate(0.0, pytest.approx(-1.96 / 6, abs=1e-4), pytest.approx(1.96 / 6, abs=1e-4), 4)


def test_a_ratio_that_is_the_same_in_every_resample_has_an_interval_of_no_width() -> None:
    assert intervals.ratio([0.0, 0.0, 0.0], [5, 7, 9]) == Estimate(0.0, 0.0, 0.0, 3)
    found = intervals.ratio([5.0, 7.0, 9.0], [5, 7, 9])
    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1))


# -- pairing and seeds -------------------------------------------------------------------------------------------------


def test_pairing_narrows_the_interval_of_items_that_hang_together() -> None:
    generator = np.random.default_rng(0)
    theirs = generator.normal(0, 1, 100)
    ours = theirs + generator.normal(0.05, 0.1, 100)
    paired = intervals.difference(ours, theirs)
    apart = intervals.difference(ours, generator.permutation(theirs))
    assert paired.value == pytest.approx(apart.value)
    assert paired.high - paired.low < 0.2 * (apart.high - apart.low)
    assert paired.excludes(0) and not apart.excludes(0)


def test_rows_are_resampled_not_tokens() -> None:
    """The tokens of a row are all alike: a hundred times as many of them tell nothing new."""
    values = np.random.default_rng(0).exponential(1.0, 30)
    one, hundred = intervals.ratio(values, np.ones(30)), intervals.ratio(100 * values, np.full(30, 100))
    assert (one.low, one.high) == (pytest.approx(hundred.low), pytest.approx(hundred.high))


def test_same_seed_gives_the_same_interval_and_another_one_another() -> None:
    values = np.random.default_rng(0).exponential(1.0, 50)
    assert intervals.mean(values, seed=3) == intervals.mean(values, seed=3)
    assert intervals.mean(values, seed=3) != intervals.mean(values, seed=4)


def test_a_statistic_of_sums_is_that_of_a_ratio() -> None:
    sums, counts = rows(20)(np.random.default_rng(0))
    assert intervals.of_sums([sums, counts], lambda x: x[0] / x[1]) == intervals.ratio(sums, counts)


def test_large_samples_do_not_need_memory_for_all_resamples() -> None:
    """20,000 items: as many draws of them all at once would be 320 MB of indices."""
    found = intervals.mean(np.random.default_rng(0).exponential(1.0, 20_000))
    assert found.high - found.low == pytest.approx(2 * 1.96 / sqrt(20_000), rel=0.15)
