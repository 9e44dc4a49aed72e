"""The model card names what was distilled from what, on which data, by which objective, and what came of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from llmkd import __version__
from llmkd.config import from_dict
from llmkd.evaluation.card import card, write_card
from llmkd.evaluation.table import markdown

SUMMARY: dict[str, Any] = {
    "results": {"student": {"parameters": 440_064, "held_out": {"code": {"ce": 2.1}}, "tasks": {}}},
    "steps": 1350,
    "processes": 2,
    "notes": ["corpus of another Python"],
}


def recipe_dict(output_dir: Path | str = "runs/x") -> dict[str, Any]:
    return {
        "run": {"name": "small-one", "output_dir": str(output_dir)},
        "student": {"model_name_or_path": "org/small"},
        "teachers": [{"name": "big", "model_name_or_path": "org/big"}],
        "data": {"datasets": [{"path": "org/chats", "name": "default", "domain": "chat"},
                              {"path": "/data/own.jsonl", "domain": "own"}]},
        "objective": {"terms": {"kd": {"term": "forward_kl", "weight": 0.9},
                                "ce": {"term": "cross_entropy", "weight": 0.1}}},
        "train": {"method": "offpolicy", "max_steps": 5},
    }  # fmt: skip


def written(data: dict[str, Any]) -> str:
    return card(SimpleNamespace(recipe=from_dict(data)), SUMMARY)


def front(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---")[1])


@pytest.fixture(scope="module")
def text() -> str:
    return written(recipe_dict())


def test_front_matter_is_what_the_hub_reads(text: str) -> None:
    assert text.startswith("---\n")
    assert front(text) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llmkd", "trl", "distillation"],
        "base_model": ["org/small"],
        "datasets": ["org/chats"],
    }


@pytest.mark.parametrize(
    "line",
    [
        "# small-one",
        "- Base: org/small",
        "- Teacher `big`: org/big",
        "- Data, domain `chat`: org/chats default (train)",
        "- Objective: 0.9 x forward_kl (`kd`) + 0.1 x cross_entropy (`ce`)",
        "- Steps: 1350, on 2 process(es)",
        "- Note: corpus of another Python",
    ],
)
def test_card_says(text: str, line: str) -> None:
    assert line in text.splitlines()


def test_card_names_the_version(text: str) -> None:
    assert f"Trained with llmkd {__version__}" in text


def test_card_holds_the_table(text: str) -> None:
    assert markdown(SUMMARY["results"]) in text


def test_recipe_in_the_card_is_the_recipe(text: str) -> None:
    block = text.split("```yaml\n")[1].split("```")[0]
    assert from_dict(yaml.safe_load(block)) == from_dict(recipe_dict())


def test_fresh_student_without_teacher_has_a_card() -> None:
    data = recipe_dict()
    data["student"] = {"from_config": {"model_type": "llama"}, "tokenizer_name_or_path": "org/tokens"}
    data |= {"teachers": [], "objective": None, "train": {"method": "sft", "max_steps": 5}}
    text = written(data)
    assert "- Base: a fresh llama" in text.splitlines()
    assert front(text)["tags"] == ["llmkd", "trl", "sft"]
    assert "base_model" not in front(text)


@pytest.mark.parametrize("folders", [["model"], ["adapter"], ["model", "adapter"]])
def test_card_goes_beside_the_run_and_into_what_is_uploaded(tmp_path: Path, folders: list[str]) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    write_card(SimpleNamespace(recipe=from_dict(recipe_dict(tmp_path))), SUMMARY)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("README.md")}
    assert found == {"README.md", *(f"{name}/README.md" for name in folders)}
