"""Calibration against scikit-learn, simulated predictors whose calibration is known, and a model's own forward pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llmkd.data.collate import Collator
from llmkd.evaluation.measures import calibration
from llmkd.evaluation.measures.calibration import (
    Predictions,
    auc,
    expected_calibration_error,
    maximum_calibration_error,
    measure_calibration,
    of_logits,
    predictions,
    reliability,
    summarise,
)
from llmkd.teachers.local import LocalTeacher
from llmkd.types import Sparse

calibration_curve = pytest.importorskip("sklearn.calibration").calibration_curve
roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score


def simulated(n: int, seed: int = 0, sharpened: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and outcomes that are as frequent as confidence ** sharpened."""
    generator = np.random.default_rng(seed)
    confidence = generator.beta(2, 1.5, n)
    return confidence, (generator.random(n) < confidence**sharpened).astype(float)


@pytest.mark.parametrize(("bins", "strategy"), [(10, "uniform"), (15, "uniform"), (7, "quantile"), (15, "quantile")])
def test_the_curve_is_scikit_learn_s(bins: int, strategy: str) -> None:
    confidence, correct = simulated(4001, sharpened=1.7)
    curve = reliability(confidence, correct, bins, strategy == "quantile")
    accuracy, means = calibration_curve(correct, confidence, n_bins=bins, strategy=strategy)
    assert len(curve) == len(means) == bins
    exact = {"atol": 1e-12} if strategy == "uniform" else {"atol": 5e-3}  # quantiles are interpolated there
    np.testing.assert_allclose([b.confidence for b in curve], means, **exact)
    np.testing.assert_allclose([b.accuracy for b in curve], accuracy, **exact)


def test_ece_is_the_weighted_gap_of_scikit_learn_s_curve() -> None:
    confidence, correct = simulated(3000, sharpened=2.0)
    accuracy, means = calibration_curve(correct, confidence, n_bins=15)
    counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    curve = reliability(confidence, correct)
    assert expected_calibration_error(curve) == pytest.approx((counts * abs(accuracy - means)).sum() / 3000, rel=1e-12)
    assert maximum_calibration_error(curve) == pytest.approx(abs(accuracy - means).max(), rel=1e-12)


def test_equal_mass_bins_hold_equally_many() -> None:
    confidence, correct = simulated(3000)
    counts = [b.count for b in reliability(confidence, correct, 15, True)]
    assert sum(counts) == 3000 and max(counts) - min(counts) <= 1


@pytest.mark.parametrize("digits", [1, 2, 17])
def test_auc_is_scikit_learn_s_with_ties_and_weights(digits: int) -> None:
    confidence, correct = simulated(500)
    confidence = confidence.round(digits)
    weight = np.random.default_rng(1).integers(0, 4, 500).astype(float)
    assert auc(confidence, correct) == pytest.approx(roc_auc_score(correct, confidence), rel=1e-12)
    expected = roc_auc_score(correct, confidence, sample_weight=weight)
    assert auc(confidence, correct, weight) == pytest.approx(expected, rel=1e-12)


def test_auc_of_one_class_is_nan() -> None:
    assert np.isnan(auc(np.array([0.1, 0.2]), np.array([1.0, 1.0])))


def whole(confidence: np.ndarray, correct: np.ndarray, rows: int = 100) -> Predictions:
    nothing = np.zeros(len(confidence))
    return Predictions(confidence, correct, nothing, nothing, np.arange(len(confidence)) % rows)


def test_a_calibrated_predictor_has_no_error() -> None:
    found = summarise(whole(*simulated(40000))).metrics
    assert found["ece"].estimate.value < 0.012
    low, high = found["overconfidence"].estimate.low, found["overconfidence"].estimate.high
    assert low < 0 < high
    # Its intervals reach down to about 0: the basic bootstrap takes the excess off.
    assert found["ece"].estimate.low < 0.004


@pytest.mark.parametrize(("sharpened", "sign"), [(2.0, 1), (0.5, -1)])
def test_overconfidence_has_its_sign_and_ece_its_size(sharpened: float, sign: int) -> None:
    confidence, correct = simulated(20000, sharpened=sharpened)
    found = summarise(whole(confidence, correct)).metrics
    truth = abs(confidence - confidence**sharpened).mean()
    assert sign * found["overconfidence"].estimate.value > 0.1
    assert found["overconfidence"].estimate.excludes(0)
    assert found["ece"].estimate.value == pytest.approx(truth, abs=0.01)
    assert found["ece"].estimate.low < truth < found["ece"].estimate.high


def test_intervals_are_by_row() -> None:
    """Ten copies of each prediction inside its row say nothing new: the intervals stay as wide."""
    confidence, correct = simulated(300)
    rows = np.arange(300)
    nothing = np.zeros(300)
    once = summarise(Predictions(confidence, correct, nothing, nothing, rows)).metrics
    many = summarise(Predictions(*(np.repeat(x, 10) for x in (confidence, correct, nothing, nothing, rows)))).metrics
    for name in ("ece", "auc", "accuracy"):
        assert once[name].estimate.low == pytest.approx(many[name].estimate.low, abs=1e-9), name
        assert once[name].estimate.high == pytest.approx(many[name].estimate.high, abs=1e-9), name
        assert many[name].estimate.n == 300
        assert many[name].estimate.low < many[name].estimate.value < many[name].estimate.high, name


@pytest.mark.parametrize("confidence", [[0.5, float("nan")], [0.5, 1.5], [-0.1, 0.5]])
def test_no_probabilities_are_refused(confidence: list[float]) -> None:
    with pytest.raises(ValueError, match="outside"):
        reliability(np.array(confidence), np.array([1.0, 0.0]))


def test_brier_and_nll_by_their_definitions() -> None:
    logits = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(20) % 7
    confidence, correct, nll, brier = of_logits(logits, targets)
    q = logits.softmax(-1)
    one_hot = torch.nn.functional.one_hot(targets, 7)
    torch.testing.assert_close(brier, (q - one_hot).square().sum(-1))
    torch.testing.assert_close(nll, torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    torch.testing.assert_close(confidence, q.amax(-1))
    assert torch.equal(correct.bool(), q.argmax(-1) == targets)


# -- a model -----------------------------------------------------------------------------------------------------------

LENGTHS = [3, 9, 5, 12, 2, 7]


def batches(size: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(5, 300, (length,), generator=generator).tolist()
        counted = [0] + [1] * (length - 1)
        rows.append({"input_ids": ids, "counted": counted, "seq_lengths": [length], "domains": [0], "n_bytes": 1})
    collate = Collator(0, packed=False)
    return [collate(rows[i : i + size]) for i in range(0, len(rows), size)]


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LocalTeacher:
    return LocalTeacher("student", AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32))


def test_a_model_is_measured_as_its_own_forward_says(model: LocalTeacher) -> None:
    found = predictions(model, batches(2))
    assert found.row.tolist() == [i for i, length in enumerate(LENGTHS) for _ in range(length - 1)]
    for i, batch in enumerate(batches(1)):
        ids = batch["input_ids"]
        q = model.model(input_ids=ids).logits[0, :-1].double().softmax(-1)
        mine = found.row == i
        np.testing.assert_allclose(found.confidence[mine], q.amax(-1).numpy(), rtol=1e-4)
        right = q.gather(-1, ids[0, 1:, None])[:, 0]
        np.testing.assert_allclose(found.nll[mine], -right.log().numpy(), rtol=1e-4)


def test_chunks_and_batches_change_nothing(model: LocalTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    one = measure_calibration(model, batches(6))
    widest = 0
    of_chunk = calibration.of_logits

    def seen(logits: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
        nonlocal widest
        widest = max(widest, len(logits))
        return of_chunk(logits, targets)

    monkeypatch.setattr(calibration, "CHUNK_BYTES", 4 * 384 * 3)
    monkeypatch.setattr(calibration, "of_logits", seen)
    other = measure_calibration(model, batches(2))
    assert widest == 3
    for name, metric in one.metrics.items():
        assert metric.estimate.value == pytest.approx(other.metrics[name].estimate.value, rel=1e-5), name
    assert one.metrics.keys() == other.metrics.keys()
    assert [i["tokens"] for i in other.items] == [length - 1 for length in LENGTHS]


def test_what_a_record_needs_is_there_and_adds_up(model: LocalTeacher) -> None:
    found = measure_calibration(model, batches(3), bins=4)
    assert found.settings == {"bins": 4, "equal_mass": False}
    assert sum(b["count"] for b in found.details["reliability"]) == found.details["tokens"] == sum(LENGTHS) - 6
    tokens = sum(i["tokens"] for i in found.items)
    assert found.metrics["nll"].estimate.value == pytest.approx(sum(i["nll"] for i in found.items) / tokens)
    assert found.metrics["nll"].unit == "nats/token" and found.metrics["ece"].better == "lower"


def test_auc_is_left_out_with_the_reason_where_nothing_is_correct() -> None:
    found = summarise(whole(np.linspace(0.1, 0.9, 50), np.zeros(50)))
    assert "auc" not in found.metrics and "no prediction is correct" in found.details["left_out"]["auc"]
    assert all(np.isfinite(m.estimate.value) for m in found.metrics.values())


def test_only_the_vocabulary_s_rows_take_part(model: LocalTeacher) -> None:
    whole_head, cut = (predictions(model, batches(6), v).nll for v in (None, 300))
    assert (cut < whole_head).all()


def test_a_model_known_by_single_tokens_is_refused() -> None:
    class Server:
        name = "server"

        def score(self, batch: dict[str, torch.Tensor]) -> Sparse:
            n = int(batch["counted"].sum())
            return Sparse(torch.zeros(n, 1, dtype=torch.long), torch.zeros(n, 1), "topk")

    with pytest.raises(ValueError, match="likeliest tokens alone"):
        predictions(Server(), batches(2))


def test_nothing_counted_is_refused(model: LocalTeacher) -> None:
    with pytest.raises(ValueError, match="no counted tokens"):
        predictions(model, [])
