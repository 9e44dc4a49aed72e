"""A recipe of the hub made small: tiny random models and a few rows of the same columns in place of the named ones."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmkd.modelling import EMBEDDED, resolve

EMBEDDED_DATA = "llmkd/quickstart"
TASKS_PATH = "llmkd/tasks"

OWN = "runs/"  # what another recipe here leaves, with the embedded tokenizer

# The architecture of each model that a recipe names, by the start of its name.
MODEL_TYPES = {"Qwen/Qwen2.5-": "qwen2", "HuggingFaceTB/SmolLM2-": "llama", EMBEDDED: "llama", OWN: "llama"}

CHAT = [
    [("user", "What does the red cat see?"), ("assistant", "A stone behind the garden wall.")],
    [("system", "Be short."), ("user", "12 + 30?"), ("assistant", "42"), ("user", "Sure?"), ("assistant", "Yes.")],
    [("user", "def add(x):"), ("assistant", "    return x + 1\n")],
]
# The columns of each data set that a recipe names; what they hold besides `messages` is not read.
COLUMNS: dict[tuple[str, str | None], dict[str, Any]] = {
    ("HuggingFaceTB/smoltalk", "smol-magpie-ultra"): {"category": "math", "difficulty": "easy", "quality": "good"},
    ("HuggingFaceTB/smoltalk", "self-oss-instruct"): {},
    ("HuggingFaceTB/smoltalk", "metamathqa-50k"): {},
    ("HuggingFaceTB/smol-smoltalk", None): {"source": "smol-magpie-ultra-short"},
    ("openai/gsm8k", "main"): {"question": "Tom has 12 apples and buys 30. How many?", "answer": "12 + 30\n#### 42"},
}


def model_type(name: str) -> str:
    found = [kind for start, kind in MODEL_TYPES.items() if name.startswith(start)]
    assert found, f"{name}: name its architecture in MODEL_TYPES of tests/small_recipe.py"
    return found[0]


def tiny_of(name: str, tokenizer_folder: Path, folder: Path, extra_rows: int = 0) -> Path:
    """A random model of the same `model_type` as `name`, with the given tokenizer; `extra_rows` pad its head."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    rows = len(tokenizer) + 8 + extra_rows  # beside a qwen2 model, transformers adds a token to any tokenizer
    config = AutoConfig.for_model(
        model_type(name), vocab_size=rows, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def local_rows(source: dict[str, Any], folder: Path) -> Path:
    """A file with the columns of the data set that `source` names, a handful of rows."""
    key = (source["path"], source.get("name"))
    assert key in COLUMNS, f"{key}: name its columns in COLUMNS of tests/small_recipe.py"
    chats = [[{"role": role, "content": text} for role, text in chat] for chat in CHAT]
    rows = Dataset.from_list([{"messages": chat, **COLUMNS[key]} for chat in chats * 8])
    path = folder / f"{'-'.join(part for part in key if part).replace('/', '-')}.jsonl"
    rows.to_json(path)
    return path


def make_small(path: Path, folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    """The recipe at `path`, to be trained for two steps on the CPU from what is put into `folder`."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    recipe["run"] = {"output_dir": str(folder / "run"), "seed": recipe["run"].get("seed", 0)}
    _replace_models(recipe, folder, tokenizer_folder)
    _shrink_sources(recipe, folder)
    _shorten(recipe)
    return recipe


def _replace_models(recipe: dict[str, Any], folder: Path, tokenizer_folder: Path) -> None:
    for number, section in enumerate([recipe["student"], *recipe.get("teachers", [])]):
        name = section.get("model_name_or_path")
        if name is not None:
            # The embedded tokenizer needs no stand-in. A teacher's head may have more rows than the student's.
            embedded = name == EMBEDDED or name.startswith(OWN)
            tokenizer = Path(resolve(EMBEDDED)) if embedded else tokenizer_folder
            section["model_name_or_path"] = str(tiny_of(name, tokenizer, folder / f"model-{number}", 64 * number))
        assert section.get("tokenizer_name_or_path") in (None, EMBEDDED)
        section.pop("revision", None)
        if find_spec("bitsandbytes") is None:
            section.pop("quantization", None)
        if "flash" in (section.get("attn_implementation") or ""):
            section.pop("attn_implementation")


def _shrink_sources(recipe: dict[str, Any], folder: Path) -> None:
    for part in ("data", "eval"):
        for source in recipe.get(part, {}).get("datasets", []):
            source["max_rows"] = 6
            if source["path"] in (EMBEDDED_DATA, TASKS_PATH):
                continue
            source["path"] = str(local_rows(source, folder))
            for key in ("name", "data_files"):
                source.pop(key, None)


def _shorten(recipe: dict[str, Any]) -> None:
    train, evaluation = recipe["train"], recipe.setdefault("eval", {})
    train |= {"use_cpu": True, "bf16": False, "fp16": False, "max_steps": 2, "logging_steps": 1, "warmup_steps": 0}
    train |= {"max_length": 64, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    train |= {key: 1 for key in ("eval_steps", "save_steps") if key in train}
    train |= {key: 8 for key in ("max_completion_length",) if key in train}
    train |= {key: False for key in ("use_vllm",) if key in train}
    if train["method"] == "rl":
        train |= {"num_generations": 2, "gradient_accumulation_steps": 1}
        train.pop("max_length")
    train.pop("dataset_num_proc", None)
    evaluation["max_rows"] = 2
    for task in evaluation.get("tasks", []):
        task |= {"n": 2, "max_new_tokens": 4}
