"""Every recipe under recipes/ is valid as it stands and trains two steps with tiny models in place of the named ones.

Dropped on the way where they need what a test machine lacks: bf16 and quantization (bitsandbytes), flash attention.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkd import config, train
from llmkd.build import build
from llmkd.trainers.settings import train_fields

from chat_tokenizer import CHATML
from small_recipe import CHAT, make_small, model_type

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "accelerate")
NAMES = [path.relative_to(ROOT / "recipes").as_posix() for path in RECIPES]
CHATS = [path for path, name in zip(RECIPES, NAMES, strict=True) if name.startswith("offpolicy/qwen2.5")]

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=NAMES)


def test_there_are_recipes() -> None:
    assert {"quickstart.yaml", "quickstart/teacher.yaml"} <= set(NAMES)
    assert {"offpolicy/qwen2.5_0.5b_from_7b.yaml", "offpolicy/smollm2_lora.yaml"} <= set(NAMES)


@every_recipe
def test_recipe_is_valid_as_it_stands(path: Path) -> None:
    recipe = config.load(path, train_fields=train_fields)
    assert config.from_dict(recipe.to_dict(), train_fields=train_fields) == recipe


@every_recipe
def test_recipe_says_its_command(path: Path) -> None:
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    command = f"-m llmkd.train {path.relative_to(ROOT).as_posix()}"
    assert any("accelerate launch" in line and command in line for line in comments)


def test_recipes_have_folders_of_their_own() -> None:
    folders = Counter(config.load(path).run.output_dir for path in RECIPES)
    assert max(folders.values()) == 1


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Any:
    """The run folder of a recipe made small, each trained once."""
    folders: dict[Path, tuple[dict, Path]] = {}

    def run(path: Path) -> tuple[dict, Path]:
        if path not in folders:
            folder = tmp_path_factory.mktemp(path.stem)
            recipe = make_small(path, folder, tokenizer_folder)
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
            assert train.main([str(folder / "recipe.yaml")]) == 0
            folders[path] = recipe, folder / "run"
        return folders[path]

    return run


@every_recipe
def test_two_steps_have_a_finite_loss(path: Path, ran: Any) -> None:
    _, folder = ran(path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert set(losses) == {1, 2}
    assert all(math.isfinite(loss) for loss in losses.values())
    # A policy's loss is of either sign, and 0 where all completions of a group are alike; so is one of future rewards.
    plain = yaml.safe_load(path.read_text())
    signed = {"future_reverse_kl"} & {term["term"] for term in plain.get("objective", {}).get("terms", {}).values()}
    assert plain["train"]["method"] == "rl" or signed or min(losses.values()) > 0


@every_recipe
def test_final_model_loads_and_computes(path: Path, ran: Any) -> None:
    recipe, folder = ran(path)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    ids = tokenizer("the red cat", return_tensors="pt").input_ids
    with torch.no_grad():
        assert model(ids).logits.isfinite().all()
    assert (folder / "adapter").is_dir() == ("lora" in recipe["student"])


@every_recipe
def test_architecture_is_that_of_the_recipe(path: Path, ran: Any) -> None:
    _, folder = ran(path)
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))["student"]
    asked = plain["from_config"]["model_type"] if "from_config" in plain else model_type(plain["model_name_or_path"])
    assert json.loads((folder / "model" / "config.json").read_text())["model_type"] == asked


@every_recipe
def test_every_domain_is_measured(path: Path, ran: Any) -> None:
    recipe, folder = ran(path)
    held = json.loads((folder / "summary.json").read_text())["results"]["student"]["held_out"]
    assert set(held) == {source.get("domain", "all") for source in recipe["eval"]["datasets"]}
    measures = {"ce", "bits_per_byte"} | ({"kl", "agreement"} if recipe.get("teachers") else set())
    assert all(measures <= set(found) for found in held.values())
    assert all(math.isfinite(value) for found in held.values() for value in found.values())


@pytest.fixture(scope="module")
def qwen_folder(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Qwen2 tokenizer, with the roles of its chats and a template, which the assets have not."""
    tokenizer = AutoTokenizer.from_pretrained(assets / "tokenizers" / "qwen2")
    tokenizer.chat_template = CHATML
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    folder = tmp_path_factory.mktemp("qwen2")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.assets
@pytest.mark.parametrize("path", CHATS, ids=lambda path: path.stem)
def test_rows_of_the_real_tokenizer_count_the_assistants_words(path: Path, qwen_folder: Path, tmp_path: Path) -> None:
    recipe = make_small(path, tmp_path, qwen_folder)
    job = build(config.from_dict(recipe, train_fields=train_fields))
    rows, tokenizer = job.held_out[0].rows, job.tokenizer
    for row, chat in zip(rows, CHAT, strict=False):
        counted = [i for i, keep in zip(row["input_ids"], row["counted"], strict=True) if keep]
        said = [text for role, text in chat if role == "assistant"]
        assert tokenizer.decode(counted) == "".join(f"{text}<|im_end|>" for text in said)
