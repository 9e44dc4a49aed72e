"""`llmkd-eval --model vllm`: the same numbers as with transformers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkd.evaluation.results import Record, Store

pytestmark = pytest.mark.vllm
VLLM = "dtype=float32,enforce_eager=True,gpu_memory_utilization=0.1,max_model_len=256"


def test_vllm_scores_as_transformers_do(
    model_folder: Path, start: Callable[..., Any], evaluate: Callable[..., int], local_files: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = (model_folder, "--tasks", "llmkd_crows_pairs", "--output_path", tmp_path)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    process = start(*words, "--model", "vllm", "--model_args", VLLM, stderr=subprocess.DEVNULL)
    assert process.wait(timeout=300) == 0
    assert evaluate(*words) == 0  # another backend is another setting
    found = {record.settings["model"]: record for record in Store(tmp_path).records()}
    vllm, hf = (likelihood_difference(found[name]) for name in ("vllm", "hf"))
    assert vllm == pytest.approx(hf, rel=1e-4)
    assert found["vllm"].details["lm_eval"]["config"]["model"] == "vllm"


def likelihood_difference(record: Record) -> float:
    return record.metrics["likelihood_diff"].estimate.value
