"""The final model loads with `from_pretrained` alone and is the model that was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkd.export import save_final

from runs import built, held_out, main_with, make_inputs, recipe, weights

IDS = torch.arange(5, 37).reshape(2, 16)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(input_ids=IDS).logits.float()


def exported(inputs: Path, output: Path, **changes: Any) -> Any:
    """A job trained for a few steps at a high rate and saved; its trainer still holds the live model."""
    job = built(recipe(inputs, output, {"train.learning_rate": 1e-2, "train.max_steps": 4, **changes}))
    job.trainer.train()
    save_final(job)
    return job


def test_full_model_is_the_trained_one(inputs: Path, tmp_path: Path) -> None:
    job = exported(inputs, tmp_path / "run")
    folder = tmp_path / "run" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(model), logits(job.trainer.model))
    assert not torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(inputs / "student")))
    assert not (tmp_path / "run" / "adapter").exists()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight, "tied as it was"
    assert not any("lm_head" in name for name in weights(folder)), "and saved once"


def test_it_generates_from_its_folder_alone(inputs: Path, tmp_path: Path) -> None:
    exported(inputs, tmp_path / "run")
    folder = tmp_path / "run" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "what does the red cat see?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert made.shape[1] > prompt["input_ids"].shape[1]
    assert model.config.use_cache and model.generation_config.eos_token_id == tokenizer.eos_token_id


LORA = {"r": 4, "lora_alpha": 32}


def test_lora_saves_its_adapter_and_the_merged_model(inputs: Path, tmp_path: Path) -> None:
    """Merged: not bitwise, since W + BA is rounded before the product, and not after it."""
    from peft import PeftModel

    job = exported(inputs, tmp_path / "run", **{"student.lora": LORA})
    live = logits(job.trainer.model)
    base = AutoModelForCausalLM.from_pretrained(inputs / "student")
    before = logits(base)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter"))
    assert torch.equal(logits(adapted), live), "the adapter on its base is the trained model"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert not list((tmp_path / "run" / "model").glob("adapter*"))
    torch.testing.assert_close(logits(merged), live, rtol=1e-4, atol=1e-5)
    assert (live - before).abs().max() > 100 * (logits(merged) - live).abs().max(), "it learned something"


def test_adapter_names_its_base(inputs: Path, tmp_path: Path) -> None:
    exported(inputs, tmp_path / "run", **{"student.lora": LORA})
    written = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(inputs / "student") and written["r"] == 4
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "adapter").chat_template


def test_adapter_alone_when_told_so(inputs: Path, tmp_path: Path) -> None:
    exported(inputs, tmp_path / "run", **{"student.lora": LORA, "student.merged_export": False})
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "v_proj"]], ids=["all-linear", "named"])
def test_adapters_are_where_the_recipe_says(inputs: Path, tmp_path: Path, modules: Any) -> None:
    job = built(recipe(inputs, tmp_path / "run", {"student.lora": {**LORA, "target_modules": modules}}))
    adapted = {name.split(".")[-4] for name, _ in job.trainer.model.named_parameters() if "lora_A" in name}
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted == (linear if modules == "all-linear" else set(modules)), "and never the head"


def test_lora_on_a_fresh_student_is_merged_into_the_weights_it_was_trained_on(inputs: Path, tmp_path: Path) -> None:
    fresh = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1,
    }  # fmt: skip
    student = {"from_config": fresh, "tokenizer_name_or_path": str(inputs / "student"), "lora": LORA}
    job = exported(inputs, tmp_path / "run", student=student)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    torch.testing.assert_close(logits(merged), logits(job.trainer.model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_save_dtype_is_the_dtype_of_the_final_model(inputs: Path, tmp_path: Path, lora: Any) -> None:
    changes = {"student.save_dtype": "bfloat16"} | ({"student.lora": lora} if lora else {})
    job = exported(inputs, tmp_path / "run", **changes)
    saved = weights(tmp_path / "run" / "model")
    assert {w.dtype for w in saved.values()} == {torch.bfloat16}
    assert len(list((tmp_path / "run" / "model").glob("*.safetensors"))) == 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype="auto")
    assert model.dtype == torch.bfloat16
    live = {n: p for n, p in job.trainer.model.named_parameters() if lora is None}
    for name, weight in live.items():
        assert torch.equal(saved[f"model.safetensors/{name}"], weight.detach().to(torch.bfloat16)), name
    assert {p.dtype for p in job.trainer.model.parameters()} == {torch.float32}, "the training keeps its own"


def test_weights_trained_in_bf16_are_saved_in_bf16(inputs: Path, tmp_path: Path) -> None:
    exported(inputs, tmp_path / "run", **{"student.dtype": "bfloat16"})
    assert {w.dtype for w in weights(tmp_path / "run" / "model").values()} == {torch.bfloat16}


def test_measures_of_the_summary_are_those_of_the_saved_model(inputs: Path, tmp_path: Path) -> None:
    """Not bitwise: the merged weights are rounded before the product."""
    data = recipe(inputs, tmp_path / "run", {
        "student.lora": LORA, "train.learning_rate": 1e-2, "eval.datasets": held_out(inputs),
    })  # fmt: skip
    assert main_with(data) == 0
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]["student"]["held_out"]
    again = recipe(inputs, tmp_path / "again", {
        "student.model_name_or_path": str(tmp_path / "run" / "model"), "eval.datasets": held_out(inputs),
    })  # fmt: skip
    measured = built(again).trainer.evaluate()
    for domain, values in found.items():
        for name, value in values.items():
            assert measured[f"eval_{domain}/{name}"] == pytest.approx(value, rel=1e-4)


def test_what_cannot_be_pushed_is_said_and_loses_nothing(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a network: the run ends well, with the command to push by hand."""
    assert main_with(recipe(inputs, tmp_path / "run", {"run.hub": {"model_id": "somebody/student"}})) == 0
    notes = json.loads((tmp_path / "run" / "summary.json").read_text())["notes"]
    assert len(notes) == 1 and "somebody/student was not pushed" in notes[0] and notes[0] in caplog.text
    assert weights(tmp_path / "run" / "model")
