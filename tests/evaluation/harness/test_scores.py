"""What lm_eval returns, as metrics: whose interval is whose, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from lm_eval.api import metrics as theirs

from llmkd.evaluation import intervals
from llmkd.evaluation.harness import scores

RANDOM = np.random.default_rng(0)
LIKELIHOODS = (-RANDOM.gamma(2.0, 20.0, size=60)).tolist()
SIZES = RANDOM.integers(5, 80, size=60).tolist()
PAIRS = list(zip(LIKELIHOODS, SIZES, strict=True))


def test_a_mean_is_resampled_over_the_items() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    found, said = scores.interval(theirs.mean(values), values, 0.2)
    assert found == intervals.mean(values)
    assert said == scores.OVER_ITEMS


@pytest.mark.parametrize(
    ("aggregation", "items", "low_high"),
    [
        (theirs.weighted_perplexity, PAIRS, lambda e: (math.exp(e.low), math.exp(e.high))),
        (theirs.bits_per_byte, PAIRS, lambda e: (e.low / math.log(2), e.high / math.log(2))),
    ],
)
def test_what_is_a_ratio_is_resampled_by_document(aggregation: Any, items: Sequence[Any], low_high: Any) -> None:
    expected = intervals.ratio([-a for a, _ in items], [b for _, b in items])
    found, said = scores.interval(aggregation(items), items, "N/A")
    assert found.value == aggregation(items)
    assert (found.low, found.high) == pytest.approx(low_high(expected))
    assert said == scores.BY_DOCUMENT


def test_perplexity_of_likelihoods_is_resampled_by_document() -> None:
    small = [x / 10 for x in LIKELIHOODS]
    found, said = scores.interval(theirs.perplexity(small), small, 0.1)
    expected = intervals.mean([-x for x in small])
    assert (found.low, found.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert found.low < found.value < found.high
    assert said == scores.BY_DOCUMENT


def test_another_number_has_lm_evals_standard_error_or_none() -> None:
    items = [(1, 1), (0, 1), (1, 0), (1, 1), (0, 0)]
    f1 = theirs.f1_score(items)
    found, said = scores.interval(f1, items, 0.1)
    assert (found.low, found.high) == pytest.approx((f1 - 0.196, f1 + 0.196))
    assert said == scores.BY_STDERR
    found, said = scores.interval(f1, items, "N/A")
    assert (found.low, found.high, said) == (None, None, scores.WITHHELD)


def result(value: float, responses: Sequence[Any]) -> dict[str, Any]:
    """lm_eval's results of one task `t` with the metric acc."""
    samples = [
        {"doc_id": i, "filter": "none", "target": "x" * 900, "resps": [[r]], "filtered_resps": [r], "metrics": ["acc"],
         "acc": 1.0}
        for i, r in enumerate(responses)
    ]  # fmt: skip
    return {
        "results": {"t": {"alias": "t", "acc,none": value, "acc_stderr,none": 0.0}},
        "samples": {"t": samples},
        "higher_is_better": {"t": {"acc": True}},
    }


def test_a_model_that_gives_nan_has_no_accuracy() -> None:
    """lm_eval's arg max over NaN is a number all the same."""
    found, _, missing = scores.metrics(result(1.0, [(-1.0, True), (math.nan, False)]), "t")
    assert not found
    assert missing == {"acc": "the model gives NaN"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_missing(value: float) -> None:
    found, _, missing = scores.metrics(result(value, [(-1.0, True)]), "t")
    assert not found
    assert missing == {"acc": str(value)}


def test_items_have_scores_and_short_texts() -> None:
    first, second = scores.items(result(1.0, [(-1.0, True), (-math.inf, False)]))
    assert first["scores"] == {"acc": 1.0}
    assert (first["doc_id"], second["doc_id"]) == (0, 1)
    assert len(first["target"]) == scores.SHOWN
    assert second["response"]["none"] == "[[null, false]]"  # JSON has no infinity


def test_what_is_not_finite_becomes_null_at_any_depth() -> None:
    assert scores.as_json({"a": [math.nan, {"b": -math.inf}], "c": (1, np.float32(0.5))}) == {
        "a": [None, {"b": None}],
        "c": [1, 0.5],
    }


def test_a_group_is_one_number_over_the_items_of_its_members() -> None:
    one, two = result(0.5, [(-1.0, True)] * 2), result(1.0, [(-1.0, True)] * 3)
    one["samples"]["t"][0]["acc"] = 0.0
    found = {
        "results": {"g": {"acc,none": 0.8, "acc_stderr,none": 0.1}, "a": one["results"]["t"], "b": two["results"]["t"]},
        "samples": {"a": one["samples"]["t"], "b": two["samples"]["t"]},
        "group_subtasks": {"g": ["a", "b"]},
        "higher_is_better": {"g": {"acc": True}},
    }
    metrics, how, _ = scores.metrics(found, "g")
    assert metrics["acc"].estimate.n == 5
    assert how["acc"] == scores.OVER_ITEMS
    del found["results"]["g"]["acc,none"], found["results"]["g"]["acc_stderr,none"]
    assert list(scores.metrics(found, "g")[0]) == ["a:acc", "b:acc"]
