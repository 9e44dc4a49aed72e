"""pass@k is the chance over all choices of k samples; a problem counts as solved where its task's grader says so."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkd.data.tasks import table
from llmkd.evaluation.exact_match import EVALUATION_SEED, render_question
from llmkd.evaluation.pass_at import pass_at, problems, solved


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_folder)


class Answers(nn.Module):
    """Says for each prompt of its book the text that stands there; when sampling, only every second time it is asked
    that prompt."""

    def __init__(self, tokenizer: Any, book: dict[str, str]) -> None:
        super().__init__()
        self.tokenizer, self.book = tokenizer, book
        self.asked: Counter[str] = Counter()
        self.anchor = nn.Parameter(torch.zeros(()))

    def generate(self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, **how: Any) -> Tensor:
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            prompt = self.tokenizer.decode(ids[mask.bool()])
            silent = how["do_sample"] and self.asked[prompt] % 2 == 1
            self.asked[prompt] += 1
            text = "" if silent else self.book.get(prompt, "")
            made = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            made = [*made, self.tokenizer.eos_token_id][:max_new_tokens]
            rows.append(made + [self.tokenizer.pad_token_id] * (max_new_tokens - len(made)))
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)


def book(tokenizer: Any, task: str, n: int, options: dict[str, Any]) -> dict[str, str]:
    rows = table.rows(task, n, "heldout", {"seed": EVALUATION_SEED, **options})
    return {render_question(tokenizer, row["prompt"][0]["content"]): row["completion"][0]["content"] for row in rows}


@pytest.mark.parametrize("options", [{}, {"seed": 5}])
@pytest.mark.parametrize("task", ["arithmetic", "countdown", "knights_and_knaves"])
def test_a_model_that_knows_three_solutions_has_solved_three(tokenizer: Any, task: str, options: dict) -> None:
    known = dict(list(book(tokenizer, task, 10, options).items())[:3])
    found = solved(Answers(tokenizer, known), tokenizer, task, 10, max_new_tokens=600, options=options)
    assert found == [[True]] * 3 + [[False]] * 7
    assert sum(pass_at(1, found)) == 3


def test_samples_of_a_problem_stay_together(tokenizer: Any) -> None:
    known = dict(list(book(tokenizer, "countdown", 4, {}).items())[1:])
    found = solved(Answers(tokenizer, known), tokenizer, "countdown", 4, samples=4, max_new_tokens=600)
    assert found == [[False] * 4] + [[True, False, True, False]] * 3
    assert pass_at(1, found) == [0.0, 0.5, 0.5, 0.5]


def test_samples_differ_and_the_same_seed_draws_the_same(tokenizer: Any, model_folder: Path, monkeypatch: Any) -> None:
    from llmkd.evaluation import pass_at as module

    texts: list[list[str]] = []
    real = module.complete
    monkeypatch.setattr(module, "complete", lambda *a, **k: texts.append(real(*a, **k)) or texts[-1])
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    for n, samples, seed in ((3, 40, 0), (3, 40, 0), (3, 40, 1), (100, 2, 0)):
        solved(model, tokenizer, "countdown", n, samples=samples, max_new_tokens=8, seed=seed)
    assert texts[0] == texts[1] and not set(texts[0]) & set(texts[2])
    assert len(set(texts[0])) == 120, "samples of one batch and of the next differ"
    assert len(set(texts[3])) == 200, "also where a problem has the same place in both"


def test_without_samples_no_seed_changes_the_completions(tokenizer: Any, model_folder: Path, monkeypatch: Any) -> None:
    from llmkd.evaluation import pass_at as module

    texts: list[list[str]] = []
    real = module.complete
    monkeypatch.setattr(module, "complete", lambda *a, **k: texts.append(real(*a, **k)) or texts[-1])
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    for seed in (0, 1):
        solved(model, tokenizer, "countdown", 3, max_new_tokens=8, seed=seed)
    prompts = [render_question(tokenizer, row["prompt"][0]["content"]) for row in problems("countdown", 3)]
    assert texts[0] == texts[1] == [real(model, tokenizer, [prompt], 8)[0] for prompt in prompts]


def test_pass_at_k_is_the_share_of_choices_of_k_samples_with_a_right_one() -> None:
    for n in range(1, 7):
        for found in itertools.product((False, True), repeat=n):
            for k in range(1, n + 1):
                choices = list(itertools.combinations(found, k))
                assert pass_at(k, [found])[0] == pytest.approx(sum(map(any, choices)) / len(choices), abs=1e-12)


@pytest.mark.parametrize("k", [0, 3])
def test_k_outside_the_samples_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"pass@{k}: k is outside \[1, 2\]"):
        pass_at(k, [[True, False], [True, True, False]])
