"""Real models on real stories: the numbers that stand beside them in PROVENANCE.md, through the code of the measure.

There each story of at most 256 tokens is read from its BOS on, without an EOS; bits per character are those of the
characters of these tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from llmkd.evaluation.measures.fidelity import fidelity, fidelity_of_models
from llmkd.evaluation.measures.subjects import Subjects, subjects_of_models

pytestmark = pytest.mark.assets

NAMES = ("stories260K", "babyllama_byte361_1M")


def stories(assets: Path) -> Path:
    return assets / "data" / "corpora" / "tinystories_sample.txt"


def without_eos(subjects: Subjects) -> Subjects:
    def bare(row: dict[str, Any]) -> dict[str, Any]:
        ended = row["input_ids"][-1] == subjects.tokenizer.eos_token_id
        return {**row, "counted": [*row["counted"][:-1], 0]} if ended else row

    return replace(subjects, held_out=[replace(h, rows=[bare(row) for row in h.rows]) for h in subjects.held_out])


@pytest.mark.parametrize(
    ("name", "nats", "bits", "tokens"), [(NAMES[0], 1.2511, 0.8689, 1242), (NAMES[1], 0.5592, 0.8100, 1275)]
)
def test_cross_entropy_is_that_of_the_provenance(
    assets: Path, name: str, nats: float, bits: float, tokens: int
) -> None:
    model = str(assets / "models" / name)
    found = fidelity(without_eos(subjects_of_models(model, model, [str(stories(assets))], max_length=256)))
    cross_entropy = found.metrics["cross_entropy"].estimate
    counted = sum(item["tokens"] for item in found.items)
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [text.strip("\n") for text in stories(assets).read_text(encoding="utf-8").split("<|endoftext|>")]
    ends = [tokenizer(text, return_offsets_mapping=True)["offset_mapping"][:256][-1][1] for text in texts if text]
    assert (cross_entropy.n, counted) == (5, tokens)
    assert cross_entropy.value == pytest.approx(nats, abs=5e-5)
    assert cross_entropy.value * counted / math.log(2) / sum(ends) == pytest.approx(bits, abs=5e-5)


@pytest.mark.parametrize("name", NAMES)
def test_real_model_follows_itself_whole(assets: Path, name: str) -> None:
    model = str(assets / "models" / name)
    found = fidelity_of_models(model, model, [str(stories(assets))], baseline=model, max_length=256).metrics
    for measure in ("agreement", "top_k_overlap", "top_1_in_top_k"):
        assert found[measure].estimate.value == found[f"baseline/{measure}"].estimate.value == 1.0
    for measure in ("forward_kl", "reverse_kl", "jsd", "total_variation", "difference/forward_kl"):
        assert abs(found[measure].estimate.value) < 1e-7
    assert found["acceptance"].estimate.value == pytest.approx(1, abs=1e-7)
    floor = found["resampled_teacher/agreement"].estimate.value
    assert 0.3 < floor < found["resampled_teacher/agreement_with_argmax"].estimate.value < 0.95


def test_models_of_two_tokenizers_are_not_compared(assets: Path) -> None:
    models = [str(assets / "models" / name) for name in NAMES]
    with pytest.raises(ValueError, match="have different tokenizers"):
        fidelity_of_models(*models, [str(stories(assets))])
