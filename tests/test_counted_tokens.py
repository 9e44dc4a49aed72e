"""Which tokens a run trains on: the completion and its end of turn once, never the prompt, whoever renders it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from runs import (
    built,
    chats,
    close,
    first_rows,
    loaded,
    log_probs,
    make_inputs,
    norm,
    one_step,
    prose,
    recipe,
    trained,
    write_rows,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def test_gradient_reaches_the_states_that_predict_counted_tokens_alone(inputs: Path, tmp_path: Path) -> None:
    """The last hidden state at every other place (prompt, padding, the last token) has a gradient of exactly 0."""
    data = recipe(inputs, tmp_path / "run", {"data.datasets.0": {"path": str(inputs / "chats.jsonl")}})
    data["data"]["datasets"] = data["data"]["datasets"][:1]
    job = built(data)
    kept: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    job.trainer.model.model.norm.register_forward_hook(keep)
    rows = first_rows(job, 8)
    one_step(job, rows)
    gradient = kept[0].grad.abs().sum(-1)
    expected = torch.zeros(gradient.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        expected[i, : len(row["counted"]) - 1] = torch.tensor(row["counted"][1:]).bool()
    assert 0 < expected.sum() < sum(len(r["input_ids"]) for r in rows) / 1.3, "prompts are there"
    assert torch.equal(gradient > 0, expected)


def chat_tokens(tokenizer: Any, row: Mapping[str, Any]) -> list[int]:
    return [i for i, c in zip(row["input_ids"], row["counted"], strict=True) if c]


@pytest.mark.parametrize("pad_is_eos", [False, True], ids=["own pad", "pad is eos"])
def test_counted_tokens_are_the_completion_and_its_eos_once(inputs: Path, tmp_path: Path, pad_is_eos: bool) -> None:
    """From the batches that the trainer trains on: what counts decodes to the answer and one end of turn."""
    tokenizer = AutoTokenizer.from_pretrained(inputs / "student")
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    folder = tmp_path / "tokenizer"
    tokenizer.save_pretrained(folder)
    changes = {"student.tokenizer_name_or_path": str(folder), "train.max_steps": 2}
    data = recipe(inputs, tmp_path / "run", changes)
    answers = {row["messages"][-1]["content"] for row in chats(45)}
    texts = {row["text"] for row in prose(60)}
    seen = set()
    for batch in built(data).trainer.get_train_dataloader():
        for ids, counted, domain in zip(batch["input_ids"], batch["counted"], batch["domain_ids"], strict=True):
            *words, last = ids[counted].tolist()
            assert last == tokenizer.eos_token_id and tokenizer.eos_token_id not in words
            text = tokenizer.decode(words)
            seen.add(int(domain[0]))
            if domain[0] == 1:
                assert text in answers
            else:  # the first token of a plain text has nothing before it
                assert tokenizer.decode(ids[0]) + text in texts
    assert seen == {0, 1}


def test_fully_masked_row_changes_nothing(inputs: Path, tmp_path: Path) -> None:
    """A batch with and without a row that has no counted token.  Not bitwise: the products have another shape."""
    job = built(recipe(inputs, tmp_path / "run"))
    rows = first_rows(job, 7)
    blank = dict(rows[0], counted=[0] * len(rows[0]["counted"]), n_bytes=0)
    loss, gradients = one_step(job, rows)
    with_blank, blank_gradients = one_step(job, [*rows[:3], blank, *rows[3:]])
    assert close(loss, with_blank)
    assert close(norm(gradients), norm(blank_gradients))
    alone, nothing = one_step(job, [blank])
    assert alone == 0.0 and norm(nothing) == 0.0


@pytest.mark.parametrize("normalize", ["all", "kept"])
def test_term_that_keeps_nothing_in_a_step_adds_nothing(inputs: Path, tmp_path: Path, normalize: str) -> None:
    terms = {
        "ce": {"term": "cross_entropy"},
        "chats": {"term": "forward_kl", "mask": {"domains": ["chats"]}, "normalize": normalize},
    }
    with_it = built(recipe(inputs, tmp_path / "with", {"objective.terms": terms}))
    without = built(recipe(inputs, tmp_path / "without", {"objective.terms": {"ce": terms["ce"]}}))
    rows = [row for row in first_rows(with_it, 16) if row["domains"] == [0]]
    loss, gradients = one_step(with_it, rows)
    expected, expected_gradients = one_step(without, rows)
    assert loss == expected > 0
    assert all(torch.equal(gradients[name], expected_gradients[name]) for name in expected_gradients)


def test_run_over_rows_without_an_answer_is_the_run_without_them(inputs: Path, tmp_path: Path) -> None:
    """Through the whole loop: a step whose every second row has no counted token."""
    blank = {"messages": [{"role": "user", "content": "nobody answers this"}]}
    full = chats(4)
    write_rows(tmp_path / "full.jsonl", full)
    write_rows(tmp_path / "blank.jsonl", [row for pair in zip(full, [blank] * 4, strict=True) for row in pair])
    lines = []
    for name, batch in (("full", 4), ("blank", 8)):
        changes = {
            "data.datasets": [{"path": str(tmp_path / f"{name}.jsonl")}], "train.per_device_train_batch_size": batch,
            "train.max_steps": 3, "train.adam_epsilon": 1e-4,
        }  # fmt: skip
        lines.append(trained(recipe(inputs, tmp_path / name, changes)))
    for a, b in zip(*lines, strict=True):
        assert close(a["loss"], b["loss"]) and close(a["grad_norm"], b["grad_norm"]) and a["tokens"] == b["tokens"]


# -- a teacher with a rendering of its own -----------------------------------------------------------------------------

OWN_TEMPLATE = (
    "{{ '<|system|>Answer kindly.<|pad|>' }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|pad|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_teacher_is_scored_on_its_own_rendering(inputs: Path, tmp_path: Path, packing: bool) -> None:
    """A system prompt and another end of turn: the KL on the words of the answers is that of a by-hand rendering."""
    teacher = tmp_path / "teacher"
    tokenizer = AutoTokenizer.from_pretrained(inputs / "teacher")
    model = loaded(inputs / "teacher")
    model.save_pretrained(teacher)
    tokenizer.chat_template = OWN_TEMPLATE
    tokenizer.save_pretrained(teacher)
    changes = {
        "teachers.0": {"model_name_or_path": str(teacher), "template": "own"}, "train.packing": packing,
        "train.max_length": 96, "data.datasets": [{"path": str(inputs / "chats.jsonl")}], "train.max_steps": 1,
        "objective.terms": {"kd": {"term": "forward_kl", "normalize": "kept"}},
    }  # fmt: skip
    job = built(recipe(inputs, tmp_path / "run", changes))
    loss, gradients = one_step(job, list(job.trainer.train_dataset))
    assert norm(gradients) > 0
    student = loaded(inputs / "student")

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    total, count = 0.0, 0
    for row in chats(45):
        question, answer = (ids(message["content"]) for message in row["messages"])
        ours = [*ids("<|user|>"), *question, *ids("<|end|><|assistant|>"), *answer]
        theirs = [*ids("<|system|>Answer kindly.<|pad|><|user|>"), *question, *ids("<|pad|><|assistant|>"), *answer]
        logq, logp = (log_probs(m, i)[-len(answer) :] for m, i in ((student, ours), (model, theirs)))
        total, count = total + float((logp.exp() * (logp - logq)).sum()), count + len(answer)
    assert close(loss, total / count)
    line = trained(recipe(inputs, tmp_path / "trained", {**changes, "train.max_steps": 3}))[-1]
    assert math.isfinite(line["loss"]) and 0 <= line["agreement"] <= 1
