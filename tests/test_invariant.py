"""What must not change a loss and a gradient does not: batch split, padding, packing, checkpointing, masked rows.

"Equal" is bitwise where the operations are the same, and otherwise relative 1e-5 in float32.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from runs import (
    VOCABULARY,
    built,
    close,
    first_rows,
    loaded,
    log_probs,
    make_inputs,
    norm,
    one_step,
    prose,
    recipe,
    row_formulas,
    trained,
    write_rows,
)
from tiny import sentences, tiny_llama, tiny_tokenizer

SPLITS = {(8, 1): "8x1", (4, 2): "4x2", (2, 4): "2x4"}
MASKED = {
    "kd": {"term": "forward_kl", "weight": 0.75},
    "ce": {"term": "cross_entropy", "weight": 0.5, "mask": {"domains": ["chats"]}, "normalize": "kept"},
    "start": {"term": "reverse_kl", "weight": 0.25, "mask": {"positions": [0, 5]}, "normalize": "kept"},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


# -- the split of a step into batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [None, MASKED], ids=["kd+ce", "masked"])
def test_batch_and_accumulation_do_not_change_the_loss(
    inputs: Path, tmp_path: Path, terms: Mapping[str, Any] | None
) -> None:
    """Not bitwise: the products of 8 rows and of 4 add up in another order, and so do the micro-batches' gradients.

    Adam divides by the root of squared gradients, so a gradient of rounding errors alone would be blown up to a whole
    step: epsilon is set above them.
    """
    lines = {}
    for batch, accumulation in SPLITS:
        changes = {
            "train.max_steps": 20, "train.per_device_train_batch_size": batch, "train.adam_epsilon": 1e-4,
            "train.gradient_accumulation_steps": accumulation,
        }  # fmt: skip
        data = recipe(inputs, tmp_path / SPLITS[batch, accumulation], changes)
        data["objective"]["terms"] = terms or data["objective"]["terms"]
        lines[batch] = trained(data)
    assert [line["step"] for line in lines[8]] == list(range(1, 21))
    assert lines[8][0]["loss"] - lines[8][-1]["loss"] > 0.1, "it learns something"
    for other in (4, 2):
        for a, b in zip(lines[8], lines[other], strict=True):
            assert close(a["loss"], b["loss"]), (other, a, b)
            assert close(a["grad_norm"], b["grad_norm"]), (other, a, b)
            assert a["tokens"] == b["tokens"]
            assert a["kd/value"] == pytest.approx(b["kd/value"], rel=1e-5)


@pytest.mark.parametrize("terms", [None, MASKED], ids=["kd+ce", "masked"])
def test_loss_of_the_first_step_is_the_float64_formula(
    inputs: Path, tmp_path: Path, terms: Mapping[str, Any] | None
) -> None:
    """Rows alone, unpadded, through the models' own logits, summed and divided once by hand."""
    data = recipe(inputs, tmp_path / "run", {"train.max_steps": 1})
    data["objective"]["terms"] = terms or data["objective"]["terms"]
    rows = first_rows(built(data), 8)
    student, teacher = loaded(inputs / "student"), loaded(inputs / "teacher")
    found = [row_formulas(student, teacher, row) for row in rows]
    kl = torch.cat([f["forward_kl"] for f in found])
    ce = torch.cat([f["cross_entropy"] for f in found])
    in_chats = torch.cat(
        [torch.full((len(f["entropy"]),), r["domains"][0] == 1) for f, r in zip(found, rows, strict=True)]
    )
    expected = 0.75 * kl.sum() / len(kl)
    if terms is None:
        expected += 0.5 * ce.sum() / len(ce)
    else:
        start, kept = 0.0, 0
        for row in rows:
            counted = torch.tensor(row["counted"][1:]).bool()
            logq = log_probs(student, row["input_ids"])[counted][:5]
            logp = log_probs(teacher, row["input_ids"])[counted][:5]
            start, kept = start + (logq.exp() * (logq - logp)).sum(), kept + len(logq)
        expected += 0.5 * ce[in_chats].sum() / in_chats.sum() + 0.25 * start / kept
    line = trained(data)[0]
    assert 0 < in_chats.sum() < len(ce)
    assert close(line["loss"], float(expected))
    assert close(line["kd/value"], float(kl.mean()))


# -- padded and packed -------------------------------------------------------------------------------------------------


def test_packed_rows_give_the_loss_of_rows_alone(inputs: Path, tmp_path: Path) -> None:
    """All rows of the data in one batch, packed and unpacked: same loss, gradient and count, teacher included, and the
    loss is the float64 formula row by row.  Not bitwise: other shapes, other order of sums."""
    plain = built(recipe(inputs, tmp_path / "plain"))
    packed = built(recipe(inputs, tmp_path / "packed", {"train.packing": True}))
    rows, groups = list(plain.trainer.train_dataset), list(packed.trainer.train_dataset)
    assert len(groups) < len(rows) and max(len(g["seq_lengths"]) for g in groups) > 2
    assert sum(sum(g["counted"]) for g in groups) == sum(sum(r["counted"]) for r in rows)
    loss, gradients = one_step(plain, rows)
    packed_loss, packed_gradients = one_step(packed, groups)
    assert close(loss, packed_loss)
    assert close(norm(gradients), norm(packed_gradients))
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    student, teacher = loaded(inputs / "student"), loaded(inputs / "teacher")
    found = [row_formulas(student, teacher, row) for row in rows]
    kl, ce = (torch.cat([f[name] for f in found]).mean() for name in ("forward_kl", "cross_entropy"))
    assert close(packed_loss, float(0.75 * kl + 0.5 * ce))


def test_padding_does_not_change_the_loss(inputs: Path, tmp_path: Path) -> None:
    """Batches padded to a multiple of 64, over the same rows.  Not bitwise: other shapes."""
    plain, wide = (
        built(recipe(inputs, tmp_path / str(m), {"train.pad_to_multiple_of": m} if m else None)) for m in (None, 64)
    )
    rows = list(plain.trainer.train_dataset)[:8]
    assert wide.trainer.data_collator(rows)["input_ids"].shape[1] == 64
    loss, gradients = one_step(plain, rows)
    wide_loss, wide_gradients = one_step(wide, rows)
    assert close(loss, wide_loss) and close(norm(gradients), norm(wide_gradients))


# -- LoRA and gradient checkpointing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_gradient_checkpointing_changes_nothing(inputs: Path, tmp_path: Path, lora: bool) -> None:
    """Bitwise: the recomputed activations are made by the same operations."""
    lines = []
    for checkpointing in (False, True):
        changes = {"train.max_steps": 6, "train.gradient_checkpointing": checkpointing, "train.learning_rate": 1e-2}
        if lora:
            changes["student.lora"] = {"r": 4}
        lines.append(trained(recipe(inputs, tmp_path / str(checkpointing), changes)))
    assert all(line["grad_norm"] > 0 for line in lines[0])
    assert lines[0][-1]["loss"] < lines[0][0]["loss"]
    assert lines[0] == lines[1]


def test_gradient_checkpointing_really_recomputes(inputs: Path, tmp_path: Path) -> None:
    calls = {}
    for checkpointing in (False, True):
        changes = {"train.gradient_checkpointing": checkpointing, "train.max_steps": 1}
        job = built(recipe(inputs, tmp_path / str(checkpointing), changes))
        job.trainer.model.model.layers[0].input_layernorm.register_forward_hook(
            lambda *_, key=checkpointing: calls.update({key: calls.get(key, 0) + 1})
        )
        job.trainer.train()
    assert calls == {False: 1, True: 2}


def test_lora_trains_its_adapters_alone(inputs: Path, tmp_path: Path) -> None:
    job = built(recipe(inputs, tmp_path / "run", {"student.lora": {"r": 4}}))
    before = {n: p.detach().clone() for n, p in job.trainer.model.named_parameters()}
    job.trainer.train()
    changed = {n for n, p in job.trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all("lora_" in name for name in changed)


# -- student == teacher ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_student_equal_to_its_teacher_has_loss_and_gradient_zero(
    inputs: Path, tmp_path: Path, term: str, packing: bool
) -> None:
    changes = {
        "teachers.0.model_name_or_path": str(inputs / "student"), "objective.terms": {"kd": {"term": term}},
        "train.packing": packing, "train.max_steps": 3,
    }  # fmt: skip
    for line in trained(recipe(inputs, tmp_path / "run", changes)):
        assert line["loss"] == 0.0 and line["grad_norm"] == 0.0 and line["agreement"] == 1.0


def test_teacher_with_dropout_in_train_mode_is_put_in_eval(inputs: Path, tmp_path: Path) -> None:
    """The student's own weights with dropout in their config: the loss is exactly 0 only without that dropout."""
    teacher = tmp_path / "dropout"
    model = loaded(inputs / "student")
    model.config.attention_dropout = 0.5
    model.save_pretrained(teacher)
    AutoTokenizer.from_pretrained(inputs / "student").save_pretrained(teacher)
    changes = {
        "teachers.0.model_name_or_path": str(teacher), "objective.terms": {"kd": {"term": "forward_kl"}},
        "train.max_steps": 2,
    }  # fmt: skip
    job = built(recipe(inputs, tmp_path / "run", changes))
    live = job.teachers["teacher"].model
    assert live.config.attention_dropout == 0.5
    batch = job.trainer.data_collator(first_rows(job, 4))
    live.train()
    noisy = live(batch["input_ids"]).logits
    assert not torch.equal(noisy, live(batch["input_ids"]).logits), "the dropout is real"
    with pytest.raises(AssertionError, match="train mode"):
        job.teachers["teacher"].score(batch)
    live.eval()
    job.trainer.train()
    assert not live.training
    assert [line["loss"] for line in job.trainer.state.log_history if "loss" in line] == [0.0, 0.0]
    assert not any(p.requires_grad for p in live.parameters())


# -- vocabulary --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [(576, 512), (512, 576)], ids=["student padded", "teacher padded"])
def test_padded_heads_train_on_the_common_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: tuple[int, int]
) -> None:
    for name, count, seed in (("student", rows[0], 1), ("teacher", rows[1], 2)):
        tiny_tokenizer(tmp_path / name, VOCABULARY)
        tiny_llama(tmp_path / name, vocab=count, seed=seed, tie=False, initializer_range=0.1)
    write_rows(tmp_path / "prose.jsonl", prose(8))
    changes = {"data.datasets": [{"path": str(tmp_path / "prose.jsonl")}], "train.max_steps": 1}
    data = recipe(tmp_path, tmp_path / "run", changes)
    with caplog.at_level(logging.WARNING, "llmkd"):
        job = built(data)
    assert "512 common rows" in caplog.text and "576" in caplog.text
    batch = first_rows(job, 8)
    loss, gradients = one_step(job, batch)
    student, teacher = loaded(tmp_path / "student"), loaded(tmp_path / "teacher")
    found = [row_formulas(student, teacher, row, vocabulary=512) for row in batch]
    kl, ce = (torch.cat([f[name] for f in found]).mean() for name in ("forward_kl", "cross_entropy"))
    assert close(loss, float(0.75 * kl + 0.5 * ce))
    assert not gradients["lm_head.weight"][512:].any(), "rows that only one of them has get no gradient"
    assert gradients["lm_head.weight"][:512].any()


def test_different_tokenizers_are_refused(inputs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_tokenizer(other, VOCABULARY, seed_text=[line.upper() for line in sentences()])
    tiny_llama(other, vocab=VOCABULARY)
    ours, theirs = (
        {i: t for t, i in AutoTokenizer.from_pretrained(f).get_vocab().items()} for f in (inputs / "student", other)
    )
    first = min(i for i in ours if ours[i] != theirs.get(i))
    with pytest.raises(ValueError) as caught:
        built(recipe(inputs, tmp_path / "run", {"teachers.0.model_name_or_path": str(other)}))
    message = str(caught.value)
    assert str(inputs / "student") in message and str(other) in message
    assert f"id {first}" in message and repr(ours[first]) in message and repr(theirs[first]) in message


# -- precision ---------------------------------------------------------------------------------------------------------


def test_bf16_runs_and_is_near(inputs: Path, tmp_path: Path) -> None:
    """bfloat16 has 8 bits: each product is off by up to 0.4 %, and what is measured stays within a few percent."""
    exact, rounded = (
        trained(recipe(inputs, tmp_path / str(bf16), {"train.bf16": bf16, "train.max_steps": 10}))
        for bf16 in (False, True)
    )
    for a, b in zip(exact, rounded, strict=True):
        assert math.isfinite(b["loss"]) and close(a["loss"], b["loss"], 0.03) and a["loss"] != b["loss"]
    assert rounded[-1]["loss"] < rounded[0]["loss"]


def test_bf16_weights_run_and_are_near(inputs: Path, tmp_path: Path) -> None:
    changes = {"student.dtype": "bfloat16", "teachers.0.dtype": "bfloat16", "train.max_steps": 1}
    exact = trained(recipe(inputs, tmp_path / "exact", {"train.max_steps": 1}))[0]
    rounded = trained(recipe(inputs, tmp_path / "rounded", changes))[0]
    assert close(exact["loss"], rounded["loss"], 0.03)
