"""`llmkd-eval` on real small models and real benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkd.evaluation.harness.local import files
from llmkd.evaluation.results import Record, Store
from llmkd.modelling import EMBEDDED

pytestmark = pytest.mark.assets


@pytest.fixture
def real_files(assets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMKD_EVAL_DATA", str(assets / "data"))
    return assets


def record(folder: Path, task: str) -> Record:
    return next(r for r in Store(folder).records() if r.task == task)


def test_crows_pairs_runs_whole_on_a_real_model(real_files: Path, evaluate: Callable[..., int], tmp_path: Path) -> None:
    """All 1508 pairs; the likelihoods of the first ones against transformers, a sentence at a time."""
    model = real_files / "models" / "stories260K"
    assert evaluate(model, "--tasks", "llmkd_crows_pairs", "--batch_size", 32, "--output_path", tmp_path) == 0
    found = record(tmp_path, "llmkd_crows_pairs")
    assert found.metrics["pct_stereotype"].estimate.n == 1508
    assert 0.3 < found.metrics["pct_stereotype"].estimate.value < 0.7
    items = Store(tmp_path).items(found)
    for row, item in zip(files.read("crows_pairs")[:5], items, strict=False):
        more, less = (likelihood(model, row[name]) for name in ("sent_more", "sent_less"))
        assert item["scores"]["likelihood_diff"] == pytest.approx(abs(more - less), abs=1e-3)
        assert item["scores"]["pct_stereotype"] == float(more > less)


def likelihood(folder: Path, text: str) -> float:
    """Log-probability of a sentence after the beginning token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[tokenizer.bos_token_id, *ids]])
    with torch.no_grad():
        logp = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits[0].log_softmax(-1)
    return float(logp[:-1].gather(1, ids[0, 1:, None]).sum())


@pytest.mark.parametrize("task", ["llmkd_lambada", "llmkd_sst2", "llmkd_mmlu_stem"])
def test_real_benchmarks_run_on_a_real_model(
    task: str, real_files: Path, evaluate: Callable[..., int], tmp_path: Path
) -> None:
    model = real_files / "models" / "stories260K"
    assert evaluate(model, "--tasks", task, "--limit", 20, "--output_path", tmp_path) == 0
    for metric in record(tmp_path, task).metrics.values():
        assert metric.estimate.n == 20
        assert metric.estimate.low <= metric.estimate.value <= metric.estimate.high


@pytest.mark.full
def test_the_offline_suite_runs_whole(real_files: Path, evaluate: Callable[..., int], tmp_path: Path) -> None:
    model = real_files / "models" / "stories260K"
    assert evaluate(model, "--suite", "offline", "--output_path", tmp_path, "--gen_kwargs", "max_gen_toks=64") == 0
    assert len(list(Store(tmp_path).records())) == 8


@pytest.mark.full
def test_the_quickstarts_teacher_reaches_what_the_readme_says(evaluate: Callable[..., int], tmp_path: Path) -> None:
    """1.108 and 1.599 bits per byte of code and prose, in windows of the 256 tokens that it was trained on."""
    tasks = "llmkd_quickstart_code,llmkd_quickstart_prose"
    words = ("--model_args", "dtype=float32,max_length=256", "--batch_size", 16, "--output_path", tmp_path)
    assert evaluate(EMBEDDED, "--tasks", tasks, *words) == 0
    found = {name: record(tmp_path, name).metrics["bits_per_byte"].estimate.value for name in tasks.split(",")}
    assert found["llmkd_quickstart_code"] == pytest.approx(1.108, abs=0.002)
    assert found["llmkd_quickstart_prose"] == pytest.approx(1.599, abs=0.002)
