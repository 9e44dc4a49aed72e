"""Real input: a real model distilled on text that it wrote itself, measured on stories that people know.

The teacher is a Llama of 1M parameters trained on TinyStories; its student has 3 layers of width 64 and the same
byte-level tokenizer.  Rows and stories are read up to the teacher's context of 256 tokens.  Most rows were cut off by
their generator and do not end a story, so they are truncated, which leaves out the EOS, and not split, which keeps it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkd import train

pytestmark = pytest.mark.assets

LENGTHS = [pytest.param(200, id="200 steps"), pytest.param(400, id="400 steps", marks=pytest.mark.full)]


def recipe(assets: Path, folder: Path, steps: int) -> dict[str, Any]:
    teacher = str(assets / "models" / "babyllama_byte361_1M")
    corpora = assets / "data" / "corpora"
    return {
        "run": {"output_dir": str(folder / "run"), "seed": 0},
        "student": {
            "from_config": {
                "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
                "num_key_value_heads": 4, "intermediate_size": 176, "max_position_embeddings": 256,
                "tie_word_embeddings": True,
            },
            "tokenizer_name_or_path": teacher,
        },
        "teachers": [{"model_name_or_path": teacher, "dtype": "float32"}],
        "data": {"datasets": [{"path": str(corpora / "generated_babyllama_byte361_1M.jsonl.gz")}]},
        "objective": {"terms": {"kd": {"term": "forward_kl"}}},
        "train": {
            "method": "offpolicy", "use_cpu": True, "max_length": 256, "per_device_train_batch_size": 8,
            "max_steps": steps, "muon_learning_rate": 3e-2, "learning_rate": 1e-2, "lr_scheduler_type": "cosine",
            "warmup_steps": 20, "logging_steps": 20, "save_strategy": "no",
        },
        "eval": {
            "baseline": True,
            "datasets": [{"path": str(corpora / "tinystories_sample.txt"), "domain": "stories"}],
        },
    }  # fmt: skip


@pytest.fixture(scope="module", params=LENGTHS)
def run(request: pytest.FixtureRequest, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stories")
    path = folder / "stories.yaml"
    path.write_text(yaml.safe_dump(recipe(assets, folder, request.param)), encoding="utf-8")
    assert train.main([str(path)]) == 0
    return folder / "run"


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))["results"]


def test_student_ends_nearer_to_the_teacher_than_the_baseline(run: Path) -> None:
    found = results(run)
    student, baseline = (found[name]["held_out"]["stories"] for name in ("student", "baseline"))
    print({"student": student, "baseline": baseline})  # shown by pytest -s
    assert student["kl"] < baseline["kl"]


def test_both_saw_the_same_tokens(run: Path) -> None:
    found = results(run)
    assert found["student"]["tokens"] == found["baseline"]["tokens"] > 0
    assert found["student"]["parameters"] == found["baseline"]["parameters"] < found["teacher"]["parameters"]


def test_teacher_scores_real_stories_better_than_both(run: Path) -> None:
    found = results(run)
    bits = {name: found[name]["held_out"]["stories"]["bits_per_byte"] for name in ("teacher", "student", "baseline")}
    assert bits["teacher"] < min(bits["student"], bits["baseline"])


def test_final_model_writes_letters(run: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    made = model.generate(ids, do_sample=False, max_new_tokens=40)
    text = tokenizer.decode(made[0, ids.shape[1] :])
    letters = [c for c in text if c.isalpha() or c in " .,"]
    assert len(text) >= 30 and len(letters) > 0.9 * len(text)
