"""Calibration: is a model right as often as it says?

One prediction is one counted token.  Its confidence is the probability of its likeliest token, ``c_i = max_v q_v``;
it is correct, ``a_i = 1``, where that is the next token of the text, else ``a_i = 0``.  Intervals resample rows, since
the tokens of a row hang together.

Naeini, Cooper, Hauskrecht 2015; Guo, Pleiss, Sun, Weinberger 2017; Brier 1950.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmkd.evaluation import intervals
from llmkd.evaluation.intervals import Estimate
from llmkd.evaluation.measures.found import Found
from llmkd.evaluation.results import Metric
from llmkd.types import Batch, Logits, Signals, Sparse, Teacher

VERSION = "1"
BINS = 15
CHUNK_BYTES = 2**27
"""Float32 logits that exist at once."""
DRAWS = 500
Array = np.ndarray


@dataclass(frozen=True)
class Predictions:
    """What is needed of N predictions, each ``[N]``: confidence in [0, 1]; correct 0 or 1; nll in nats; brier in
    [0, 2]; row: of which row each is."""

    confidence: Array
    correct: Array
    nll: Array
    brier: Array
    row: Array


@dataclass(frozen=True)
class Bin:
    """Predictions with a confidence in ``(low, high]``: their mean confidence, their accuracy and their number."""

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


# -- formulas ----------------------------------------------------------------------------------------------------------


def bin_edges(confidence: Array, bins: int = BINS, equal_mass: bool = False) -> Array:
    """``bins + 1`` edges from 0 to 1: equally far apart, or with equally many predictions between them (fewer bins
    where many predictions are equal)."""
    if bins < 1:
        raise ValueError(f"bins: {bins} is not at least 1")
    if not equal_mass:
        return np.linspace(0.0, 1.0, bins + 1)
    inner = np.quantile(confidence, np.arange(1, bins) / bins, method="inverted_cdf")
    return np.unique(np.concatenate([[0.0], inner, [1.0]]))


def reliability(confidence: Array, correct: Array, bins: int = BINS, equal_mass: bool = False) -> list[Bin]:
    """The reliability curve; bins without predictions are left out."""
    confidence, correct = _checked(confidence, correct)
    edges = bin_edges(confidence, bins, equal_mass)
    at = _bin_of(confidence, edges)
    return [
        Bin(float(low), float(high), float(confidence[at == b].mean()), float(correct[at == b].mean()),
            int((at == b).sum()))
        for b, (low, high) in enumerate(pairwise(edges)) if (at == b).any()
    ]  # fmt: skip


def expected_calibration_error(curve: Sequence[Bin]) -> float:
    """``ECE = sum_b n_b / N |accuracy_b - confidence_b|``, in [0, 1]: 0 for a calibrated model, and a little above for
    a finite sample of one."""
    return sum(b.count * abs(b.accuracy - b.confidence) for b in curve) / sum(b.count for b in curve)


def maximum_calibration_error(curve: Sequence[Bin]) -> float:
    """``max_b |accuracy_b - confidence_b|``, of bins however small."""
    return max(abs(b.accuracy - b.confidence) for b in curve)


def auc(confidence: Array, correct: Array, weight: Array | None = None) -> float:
    """The chance that a correct prediction is more confident than an incorrect one, ties counting half: the area under
    the ROC curve, 0.5 where confidence says nothing.  NaN where all are correct or none is."""
    confidence, correct = _checked(confidence, correct)
    order = np.argsort(confidence, kind="stable")
    weight = np.ones(len(order)) if weight is None else weight
    return _sorted_auc(confidence[order], correct[order], weight[order])


def _sorted_auc(confidence: Array, correct: Array, weight: Array) -> float:
    starts = np.flatnonzero(np.concatenate([[True], confidence[1:] != confidence[:-1]]))
    right = np.add.reduceat(weight * correct, starts)
    wrong = np.add.reduceat(weight * (1 - correct), starts)
    below = np.cumsum(wrong) - wrong
    total = right.sum() * wrong.sum()
    return float((right * (below + wrong / 2)).sum() / total) if total else float("nan")


def _checked(confidence: Array, correct: Array) -> tuple[Array, Array]:
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(
            f"confidence {confidence.shape} and correct {correct.shape}: two equally long lists are needed"
        )
    if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():
        raise ValueError("confidence: a value is NaN or outside [0, 1]: the model computes no distribution")
    if not np.isin(correct, (0.0, 1.0)).all():
        raise ValueError("correct: a value is neither 0 nor 1")
    return np.minimum(confidence, 1.0), correct


def _bin_of(confidence: Array, edges: Array) -> Array:
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)


# -- a model -----------------------------------------------------------------------------------------------------------


def predictions(model: Teacher, batches: Iterable[Batch], vocabulary: int | None = None) -> Predictions:
    """What ``model.score(batch)`` says of the counted tokens of batches, in chunks of tokens.

    vocabulary: the first rows of the head are the vocabulary (None: all).  Brier score of a token:
    ``sum_v (q_v - [v = target])^2``.  Raises ValueError for a model that answers with single tokens alone.
    """
    parts: list[list[Tensor]] = []
    first_row = 0
    for batch in batches:
        counted = batch["counted"][:, 1:]
        targets, rows = batch["input_ids"][:, 1:][counted], counted.nonzero()[:, 0] + first_row
        parts += _of_batch(model.score(batch), targets, rows, vocabulary)
        first_row += counted.shape[0]
    if not parts:
        raise ValueError("calibration: there are no counted tokens in the held-out data")
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    return Predictions(*(column.astype(np.float64) for column in columns[:4]), row=columns[4])


@torch.no_grad()
def _of_batch(signals: Signals, targets: Tensor, rows: Tensor, vocabulary: int | None) -> list[list[Tensor]]:
    if isinstance(signals, Sparse):
        raise ValueError("calibration: this model is known by its likeliest tokens alone: give one with its weights")
    whole = signals.logits if isinstance(signals, Logits) else signals.hidden
    width = signals.logits.shape[1] if isinstance(signals, Logits) else signals.head.weight.shape[0]
    size = max(1, CHUNK_BYTES // (4 * width))
    kept = slice(None) if signals.kept is None else signals.kept
    at = torch.arange(len(targets), device=targets.device)[kept]
    out = []
    for chunk in at.split(size) if len(at) else ():
        z = whole[chunk] if isinstance(signals, Logits) else signals.head.logits(whole[chunk])
        out.append([*of_logits(z[:, :vocabulary], targets[chunk]), rows[chunk]])
    return out


def of_logits(logits: Tensor, targets: Tensor) -> list[Tensor]:
    """confidence, correct, nll, brier, each ``[n]``, of ``logits [n, V]``."""
    logq = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    confidence, top = logq.exp().max(-1)
    nll = -logq.gather(-1, targets[:, None])[:, 0]
    brier = (2 * logq).exp().sum(-1) - 2 * (-nll).exp() + 1
    return [confidence, (top == targets).to(nll.dtype), nll, brier]


def measure_calibration(
    model: Teacher, batches: Iterable[Batch], *, vocabulary: int | None = None, bins: int = BINS,
    equal_mass: bool = False, seed: int = 0,
) -> Found:  # fmt: skip
    """All of this module, of one model on the batches of a held-out set.

    Metrics: ``ece``, ``ece_equal_mass``, ``max_calibration_error`` (no interval: a maximum has no useful bootstrap),
    ``nll``, ``brier``, ``confidence``, ``accuracy``, ``overconfidence = mean(c - a)`` (above 0: says more than it
    knows) and ``auc``.  The number of bins and their kind are in the settings; ``n`` is the number of rows.
    """
    return summarise(predictions(model, batches, vocabulary), bins=bins, equal_mass=equal_mass, seed=seed)


def summarise(found: Predictions, *, bins: int = BINS, equal_mass: bool = False, seed: int = 0) -> Found:
    confidence, correct = _checked(found.confidence, found.correct)
    numbers, row = np.unique(found.row, return_inverse=True)
    counts = np.bincount(row).astype(np.float64)
    sums = {
        "nll": found.nll, "brier": found.brier, "confidence": confidence, "accuracy": correct,
        "overconfidence": confidence - correct,
    }  # fmt: skip
    sums = {name: np.bincount(row, values) for name, values in sums.items()}
    curve = reliability(confidence, correct, bins, equal_mass)
    mass = curve if equal_mass else reliability(confidence, correct, bins, True)
    metrics = {
        "ece": Metric(_ece(confidence, correct, row, bins, equal_mass, seed), "lower"),
        "ece_equal_mass": Metric(_ece(confidence, correct, row, bins, True, seed), "lower"),
        "max_calibration_error": Metric(
            Estimate(maximum_calibration_error(curve), None, None, len(counts)), "lower"
        ),
    }  # fmt: skip
    left_out = {}
    if 0 < correct.sum() < len(correct):
        metrics["auc"] = Metric(_auc(confidence, correct, row, seed), "higher")
    else:
        left_out["auc"] = f"{'every' if correct.any() else 'no'} prediction is correct: there is nothing to tell apart"
    better: dict[str, Any] = {"nll": "lower", "brier": "lower", "accuracy": "higher"}
    for name, values in sums.items():
        unit = "nats/token" if name == "nll" else ""
        metrics[name] = Metric(intervals.ratio(values, counts, seed), better.get(name), unit)
    items = [
        {"row": int(number), "tokens": int(counts[i]), **{name: float(values[i]) for name, values in sums.items()}}
        for i, number in enumerate(numbers)
    ]
    details = {
        "tokens": len(confidence), "rows": len(counts), "left_out": left_out,
        "reliability": [asdict(b) for b in curve], "reliability_equal_mass": [asdict(b) for b in mass],
    }  # fmt: skip
    return Found(metrics, details, items, {"bins": bins, "equal_mass": equal_mass})


def _ece(confidence: Array, correct: Array, row: Array, bins: int, equal_mass: bool, seed: int) -> Estimate:
    """With the bins held fast, ECE is a sum of absolute sums over rows: a draw is one product."""
    edges = bin_edges(confidence, bins, equal_mass)
    rows, width = int(row.max()) + 1, len(edges) - 1
    at = row * width + _bin_of(confidence, edges)
    gap = np.bincount(at, confidence - correct, rows * width).reshape(rows, width)
    count = np.bincount(row, minlength=rows).astype(np.float64)

    def statistic(weights: Array) -> float:
        return float(np.abs(weights @ gap).sum() / (weights @ count))

    return _by_row(statistic, rows, seed)


def _auc(confidence: Array, correct: Array, row: Array, seed: int) -> Estimate:
    order = np.argsort(confidence, kind="stable")
    confidence, correct, row = confidence[order], correct[order], row[order]
    return _by_row(lambda weights: _sorted_auc(confidence, correct, weights[row]), int(row.max()) + 1, seed)


def _by_row(statistic: Callable[[Array], float], rows: int, seed: int) -> Estimate:
    """The interval of the basic bootstrap, ``[2 t - t_97.5%, 2 t - t_2.5%]`` inside [0, 1]: ECE is above the truth in a
    sample and above that again in a resample, and this takes the second excess off, which percentiles would add."""
    value = statistic(np.ones(rows))
    if rows < 2 or not np.isfinite(value):
        return Estimate(value, None, None, rows)
    generator = np.random.default_rng(seed)
    drawn = [statistic(generator.multinomial(rows, np.full(rows, 1 / rows)).astype(np.float64)) for _ in range(DRAWS)]
    tail = (1 - intervals.LEVEL) / 2
    low, high = np.nanquantile(drawn, (tail, 1 - tail))
    return Estimate(value, float(np.clip(2 * value - high, 0, value)), float(np.clip(2 * value - low, value, 1)), rows)
