"""Greedy completions do not depend on how prompts are batched; exact match counts what the task's grader accepts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkd.data.tasks import arithmetic
from llmkd.evaluation.exact_match import EVALUATION_SEED, arithmetic_by_level, complete, render_question

NEW_TOKENS = 12
PROMPTS = ["the red cat", "def add_7(x):", "12 + 30 =", "an old teacher remembers the answer before breakfast", "x"]


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def alone(model: Any, tokenizer: Any) -> list[str]:
    """Each prompt by itself, by a loop that takes the most likely token of the model's own logits."""
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        made: list[int] = []
        while len(made) < NEW_TOKENS and tokenizer.eos_token_id not in made:
            with torch.no_grad():
                logits = model(torch.tensor([ids + made])).logits[0, -1]
            made.append(int(logits.argmax()))
        texts.append(tokenizer.decode(made, skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_padding_on_the_left_changes_nothing(model: Any, tokenizer: Any, alone: list[str], batch: int) -> None:
    assert complete(model, tokenizer, PROMPTS, NEW_TOKENS, batch=batch) == alone


def test_padding_side_of_the_tokenizer_changes_nothing(tokenizer: Any, model: Any, alone: list[str]) -> None:
    before = tokenizer.padding_side
    tokenizer.padding_side = "right"
    try:
        assert complete(model, tokenizer, PROMPTS, NEW_TOKENS) == alone
    finally:
        tokenizer.padding_side = before


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_the_model_is_put_back(model: Any, tokenizer: Any, training: bool) -> None:
    model.train(training)
    complete(model, tokenizer, PROMPTS[:1], 2)
    assert model.training is training
    model.eval()


class Answers(nn.Module):
    """Generates, for each prompt that it finds in its book, the text that stands there, an EOS, and padding."""

    def __init__(self, tokenizer: Any, book: dict[str, str]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.book = book
        self.anchor = nn.Parameter(torch.zeros(()))

    def generate(self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, **_: Any) -> Tensor:
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            prompt = self.tokenizer.decode(ids[mask.bool()])
            made = self.tokenizer(self.book.get(prompt, ""), add_special_tokens=False)["input_ids"]
            made = [*made, self.tokenizer.eos_token_id][:max_new_tokens]
            rows.append(made + [self.tokenizer.pad_token_id] * (max_new_tokens - len(made)))
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)


def book(tokenizer: Any, level: int, count: int) -> dict[str, str]:
    rows = arithmetic.problems(EVALUATION_SEED, count, [level], "heldout")
    return {render_question(tokenizer, row["question"]): row["solution"] for row in rows}


def test_perfect_model_has_all_right(tokenizer: Any) -> None:
    known = book(tokenizer, 1, 10) | book(tokenizer, 3, 10)
    assert arithmetic_by_level(Answers(tokenizer, known), tokenizer, [1, 3], 10, 400) == {"1": 1.0, "3": 1.0}


def test_blank_model_has_none_right(tokenizer: Any) -> None:
    assert arithmetic_by_level(Answers(tokenizer, {}), tokenizer, [2], 10, 400) == {"2": 0.0}


def test_share_is_by_level(tokenizer: Any) -> None:
    known = book(tokenizer, 1, 10) | dict(list(book(tokenizer, 2, 10).items())[:3])
    assert arithmetic_by_level(Answers(tokenizer, known), tokenizer, [1, 2], 10, 400) == {"1": 1.0, "2": 0.3}


def test_answer_that_is_cut_off_does_not_count(tokenizer: Any) -> None:
    assert arithmetic_by_level(Answers(tokenizer, book(tokenizer, 1, 10)), tokenizer, [1], 10, 3) == {"1": 0.0}


def test_question_is_bare_without_a_chat_template(tokenizer_folder: Path) -> None:
    bare = AutoTokenizer.from_pretrained(tokenizer_folder)
    bare.chat_template = None
    assert render_question(bare, "How many?") == "How many?\n"


def test_question_is_asked_by_the_chat_template(tokenizer: Any) -> None:
    assert render_question(tokenizer, "How many?") == "<|user|>How many?<|end|><|assistant|>"
