"""Tokens drawn by a student and a teacher together, on tiny models."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, MambaConfig

from llmkd.trainers.mixed_sampling import TeacherMixed, check_can_mix

from minillm import by_hand, check_drawn, recipe
from rollouts import lines
from runs import built, loaded, make_inputs, noted
from tiny import tiny_llama, tiny_tokenizer

FEW = 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    tiny_tokenizer(folder / "padded")
    tiny_llama(folder / "padded", vocab=448, initializer_range=0.1, seed=6)
    tiny_tokenizer(folder / "absolute")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 1, "vocab_size": 384, "eos_token_id": 1, "bos_token_id": None}
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(GPT2Config(**sizes, initializer_range=0.3)).save_pretrained(folder / "absolute")
    return folder


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """What the sampler is asked, and what it hands back."""
    seen: list[tuple[Tensor, Tensor]] = []
    ask = TeacherMixed.__call__

    def watching(self: TeacherMixed, input_ids: Tensor, scores: Tensor) -> Tensor:
        out = ask(self, input_ids, scores)
        seen.append((input_ids.clone(), out.clone()))
        return out

    monkeypatch.setattr(TeacherMixed, "__call__", watching)
    return seen


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("student", "teacher"), ("student", "padded"), ("padded", "teacher"), ("student", "absolute")],
)
def test_tokens_are_drawn_from_the_mixture(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: str, teacher: str
) -> None:
    """Prompts of several lengths, padded on the left; heads of two sizes; a teacher with absolute positions."""
    seen = watched(monkeypatch)
    built(recipe(
        inputs, tmp_path / "run", train__max_steps=1, student__model_name_or_path=str(inputs / student),
        teachers__0__model_name_or_path=str(inputs / teacher),
    )).trainer.train()  # fmt: skip
    assert len(seen) == 6
    assert check_drawn(seen, loaded(inputs / student), loaded(inputs / teacher), 0.3) > 30


def test_adapters_draw_together_with_their_base(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is the student's own weights, with the adapters switched off for each of its tokens."""
    job = built(recipe(
        inputs, tmp_path / "run", teachers__0__model_name_or_path=str(inputs / "student"), train__max_steps=1,
        student__lora={"r": 4, "target_modules": "all-linear", "lora_dropout": 0.5},
    ))  # fmt: skip
    with torch.no_grad():
        for name, weight in job.trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2)
    merged = copy.deepcopy(job.trainer.model).merge_and_unload().eval()
    assert not torch.allclose(
        *(m(input_ids=torch.arange(9)[None]).logits for m in (merged, loaded(inputs / "student")))
    )
    seen, batches = watched(monkeypatch), noted(job.trainer)
    job.trainer.train()
    assert check_drawn(seen, merged, loaded(inputs / "student"), 0.3) > 30
    tokens = by_hand(merged, loaded(inputs / "student"), batches[0], 0.3, mean=True, deaf=False)
    line = lines(job.trainer)[0]
    assert line["future/return"] == pytest.approx(sum(t["A"] for t in tokens) / len(tokens), rel=1e-3)
    assert line["grad_norm"] > 0


def test_what_is_drawn_is_distributed_so(inputs: Path, tmp_path: Path) -> None:
    """4000 first tokens of FEW: chi-squared of 3 degrees of freedom, above 16.3 once in a thousand."""
    trainer = built(recipe(inputs, tmp_path / "run", train__max_completion_length=1)).trainer
    trainer.sequences = replace(trainer.sequences, vocabulary=FEW)
    prompt = trainer.prompt_ids([trainer.train_dataset[0]])[0]
    drawn = torch.tensor(trainer._generate_single_turn([prompt] * 4000, None, {}))[:, 0]
    with torch.no_grad():
        q, p = (m(input_ids=torch.tensor([prompt])).logits[0, -1, :FEW].softmax(-1)
                for m in (loaded(inputs / "student"), loaded(inputs / "teacher")))  # fmt: skip
    wanted = 4000 * (0.3 * p + 0.7 * q)
    counts = torch.bincount(drawn, minlength=FEW)
    assert float(((counts - wanted) ** 2 / wanted).sum()) < 16.3
    assert float(((counts - 4000 * q) ** 2 / (4000 * q)).sum()) > 16.3


def test_a_teacher_without_a_cache_of_keys_and_values_is_refused() -> None:
    config = MambaConfig(vocab_size=9, hidden_size=8, state_size=4, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"teachers\.t: MambaForCausalLM takes no "):
        check_can_mix(AutoModelForCausalLM.from_config(config), "teachers.t")
