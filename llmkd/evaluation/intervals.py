"""Numbers with their 95% intervals: over the items of a task by the bootstrap, over seeds by Student's t.

Items are what was drawn at random: the questions of a benchmark, the rows of a held-out set.  The tokens of a row hang
together, so what is counted by token is resampled by row, as a ratio of sums.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

LEVEL = 0.95
DRAWS = 2000
BCA_UP_TO = 1000
"""Items up to which the bootstrap is bias-corrected and accelerated; beyond, the plain percentiles are as good."""


@dataclass(frozen=True)
class Estimate:
    """``value`` and its interval ``[low, high]``; both None where it is withheld, for fewer than two of ``n`` items."""

    value: float
    low: float | None
    high: float | None
    n: int

    def excludes(self, value: float) -> bool:
        """Whether the interval is known and ``value`` lies outside it."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean over items.  Of items that are all 0 or all 1, which no resampling tells apart, it is Wilson's interval."""
    items = np.asarray(values, dtype=np.float64)
    if len(items) > 1 and items[0] in (0.0, 1.0) and (items == items[0]).all():
        from scipy.stats import binomtest

        wilson = binomtest(int(items.sum()), len(items)).proportion_ci(LEVEL, method="wilson")
        return Estimate(float(items[0]), float(wilson.low), float(wilson.high), len(items))
    return _bootstrap((items,), lambda x, axis: x.mean(axis), seed)


def ratio(sums: Sequence[float], counts: Sequence[float], seed: int = 0) -> Estimate:
    """``sum(sums) / sum(counts)``, such as nats per token, where an item is a row of many tokens.

    Rows without a count are no items: of nothing there is no ratio.  ValueError where no row has one.
    """
    columns = np.stack([_array(sums), _array(counts)])
    top, bottom = columns[:, columns[1] != 0]
    return _bootstrap((top, bottom), _ratio, seed)


def difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Estimate:
    """``mean(ours) - mean(theirs)`` over the same items in the same order: both are resampled together.

    Of zeros and ones whose differences are all alike, which no resampling tells apart, it is the adjusted Wald interval
    (Agresti and Min, Simple improved confidence intervals for comparing matched proportions, 2005).
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} items beside {len(theirs)}: a paired difference needs the same items in order")
    mine, other = _array(ours), _array(theirs)
    items = mine - other
    if len(items) > 1 and (items == items[0]).all() and np.isin(np.stack([mine, other]), (0.0, 1.0)).all():
        return _matched_proportions(items)
    return _bootstrap((items,), lambda x, axis: x.mean(axis), seed)


def _matched_proportions(items: np.ndarray) -> Estimate:
    """Half an observation is added to each cell of the two by two table."""
    from scipy.stats import norm

    more, less, n = (items > 0).sum() + 0.5, (items < 0).sum() + 0.5, len(items) + 2
    middle = (more - less) / n
    half = float(norm.ppf(0.5 + LEVEL / 2)) * sqrt(more + less - (more - less) ** 2 / n) / n
    value = float(items.mean())
    return Estimate(value, max(-1.0, min(value, middle - half)), min(1.0, max(value, middle + half)), len(items))


def ratio_difference(ours: Sequence[float], theirs: Sequence[float], counts: Sequence[float], seed: int = 0
                     ) -> Estimate:  # fmt: skip
    """``(sum(ours) - sum(theirs)) / sum(counts)`` over the same rows in the same order."""
    return ratio(_array(ours) - _array(theirs), counts, seed)


def of_sums(columns: Sequence[Sequence[float]], statistic: Callable[..., Any], seed: int = 0) -> Estimate:
    """``statistic(sums)`` of the sums of several columns, which hold an entry for each item, such as corpus BLEU.  It
    is given arrays of the same shape, one a column, and returns one."""
    return _bootstrap([_array(c) for c in columns], lambda *x, axis: statistic([c.sum(axis) for c in x]), seed)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds with Student's t interval; withheld with one seed, about which nothing is known."""
    items = _array(values)
    if len(items) < 2:
        return Estimate(float(items.mean()), None, None, len(items))
    from scipy.stats import t

    half = float(t.ppf(0.5 + LEVEL / 2, len(items) - 1) * items.std(ddof=1) / sqrt(len(items)))
    return Estimate(float(items.mean()), float(items.mean()) - half, float(items.mean()) + half, len(items))


def _array(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int) -> Any:
    return sums.sum(axis) / counts.sum(axis)


def _bootstrap(data: Sequence[np.ndarray], statistic: Callable[..., Any], seed: int) -> Estimate:
    n = len(data[0])
    if n == 0:
        raise ValueError("no items: there is nothing to estimate")
    value = float(statistic(*data, axis=-1))
    if n == 1 or not np.isfinite(value):
        return Estimate(value, None, None, n)
    if all((column == column[0]).all() for column in data):
        return Estimate(value, value, value, n)
    with warnings.catch_warnings():  # what they say is seen to below
        warnings.simplefilter("ignore")
        method = "BCa" if n <= BCA_UP_TO else "percentile"
        low, high = _resampled(data, statistic, seed, method)
        if not np.isfinite([low, high]).all():  # the acceleration is 0 / 0 where leaving out any item changes nothing
            low, high = _resampled(data, statistic, seed, "percentile")
    known = bool(np.isfinite([low, high]).all())
    return Estimate(value, low if known else None, high if known else None, n)


def _resampled(data: Sequence[np.ndarray], statistic: Callable[..., Any], seed: int, method: str
               ) -> tuple[float, float]:  # fmt: skip
    from scipy.stats import bootstrap

    n = len(data[0])
    found = bootstrap(
        data, statistic, paired=True, vectorized=True, n_resamples=DRAWS, confidence_level=_expanded(n), method=method,
        batch=max(1, 10**7 // n), rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def _expanded(n: int) -> float:
    """The level to ask of the bootstrap for LEVEL to be reached: resamples of few items spread too little, by
    sqrt((n - 1) / n), and the normal quantile should be Student's (Hesterberg, What Teachers Should Know About the
    Bootstrap, 2015, section 4.2)."""
    from scipy.stats import norm, t

    return float(2 * norm.cdf(sqrt(n / (n - 1)) * t.ppf(0.5 + LEVEL / 2, n - 1)) - 1)
