"""Loading what a recipe names."""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from llmkd.config import Student
from llmkd.modelling import load_tokenizer

from tiny import tiny_tokenizer


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2"])
def test_a_tokenizer_keeps_its_entries_beside_any_family(tmp_path: Path, family: str) -> None:
    """transformers would load it as the family's own class, for Qwen2 with an entry more."""
    tiny_tokenizer(tmp_path)
    config = AutoConfig.for_model(
        family, vocab_size=384, hidden_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        intermediate_size=32, head_dim=32,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(Student(model_name_or_path=str(tmp_path)))
    assert len(tokenizer) == 384 and tokenizer.eos_token == "<|end|>" and tokenizer.chat_template
