"""What is measured on held-out rows is the float64 formula over each row once, however they fall into batches."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkd.trainers.held_out import HeldOut

from runs import built, chats, close, held_out, make_inputs, prose, recipe, row_formulas

Measured = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def counted_bytes(tokenizer: Any) -> dict[str, int]:
    """UTF-8 bytes of the text that counts: plain texts but for their first token, and the answers of chats."""
    heads = [tokenizer.decode(tokenizer(row["text"])["input_ids"][:1]) for row in prose(7, 1000)]
    texts = [row["text"][len(head) :] for row, head in zip(prose(7, 1000), heads, strict=True)]
    answers = [row["messages"][-1]["content"] for row in chats(5, 1000)]
    return {"prose": len("".join(texts).encode()), "chats": len("".join(answers).encode())}


@pytest.fixture(scope="module")
def expected(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """By hand: every held-out row alone through both models."""
    job = built(recipe(inputs, tmp_path_factory.mktemp("expected") / "run", {"eval.datasets": held_out(inputs)}))
    student, teacher = (AutoModelForCausalLM.from_pretrained(inputs / n).eval() for n in ("student", "near"))
    n_bytes = counted_bytes(AutoTokenizer.from_pretrained(inputs / "student"))
    out = {}
    for held in job.held_out:
        found = [row_formulas(student, teacher, row) for row in held.rows]
        values = {name: torch.cat([f[name] for f in found]) for name in found[0]}
        out[held.domain] = {
            "ce": float(values["cross_entropy"].mean()),
            "kl": float(values["forward_kl"].mean()),
            "agreement": float(values["agreement"].mean()),
            "entropy": float(values["entropy"].mean()),
            "teacher_entropy": float(values["teacher_entropy"].mean()),
            "bits_per_byte": float(values["cross_entropy"].sum()) / math.log(2) / n_bytes[held.domain],
        }
        assert 0.1 < out[held.domain]["agreement"] < 0.9
    return out


def evaluated(inputs: Path, output: Path, changes: Mapping[str, Any]) -> dict[str, float]:
    near = {"eval.datasets": held_out(inputs), "teachers": [{"model_name_or_path": str(inputs / "near")}]}
    return built(recipe(inputs, output, near | changes)).trainer.evaluate()


@pytest.mark.parametrize(
    "changes",
    [
        {"train.per_device_eval_batch_size": 8},
        {"train.per_device_eval_batch_size": 2},
        {"train.per_device_eval_batch_size": 1},
        {"train.per_device_eval_batch_size": 2, "train.eval_packing": True},
        {"train.per_device_eval_batch_size": 4, "train.packing": True, "train.eval_packing": False},
    ],
    ids=["one batch", "2 do not divide 7 and 5", "alone", "packed", "packed in training alone"],
)
def test_measures_are_the_float64_formulas(
    inputs: Path, tmp_path: Path, expected: Measured, changes: dict[str, Any]
) -> None:
    found = evaluated(inputs, tmp_path / "run", changes)
    keys = {f"eval_{d}/{m}" for d in (*expected, "mean") for m in expected["prose"]}
    assert set(found) == keys
    for domain, values in expected.items():
        for name, value in values.items():
            assert close(found[f"eval_{domain}/{name}"], value), (domain, name)
    for name in expected["prose"]:
        mean = sum(values[name] for values in expected.values()) / 2
        assert close(found[f"eval_mean/{name}"], mean), name


def test_the_objective_does_not_change_what_is_measured(inputs: Path, tmp_path: Path, expected: Measured) -> None:
    """Trained by another term at other temperatures, measured by forward KL and cross-entropy at temperature 1."""
    changes = {
        "objective": {
            "temperature": {"student": 2.0, "teacher": 3.0},
            "terms": {"rkl": {"term": "reverse_kl", "mask": {"domains": ["chats"]}}},
        }
    }
    found = evaluated(inputs, tmp_path / "run", changes)
    for domain, values in expected.items():
        assert close(found[f"eval_{domain}/kl"], values["kl"]) and close(found[f"eval_{domain}/ce"], values["ce"])


def test_plain_fine_tuning_is_measured_without_a_teacher(inputs: Path, tmp_path: Path, expected: Measured) -> None:
    changes = {"teachers": [], "objective": None, "train.method": "sft"}
    found = evaluated(inputs, tmp_path / "run", changes)
    assert {key.split("/")[1] for key in found} == {"ce", "bits_per_byte", "entropy"}
    assert close(found["eval_prose/ce"], expected["prose"]["ce"])


def test_fidelity_may_be_left_out(inputs: Path, tmp_path: Path) -> None:
    found = evaluated(inputs, tmp_path / "run", {"eval.fidelity": False})
    assert not [key for key in found if "kl" in key or "agreement" in key]


def test_two_teachers_have_a_kl_each(inputs: Path, tmp_path: Path, expected: Measured) -> None:
    teachers = [
        {"name": "big", "model_name_or_path": str(inputs / "near")},
        {"name": "twin", "model_name_or_path": str(inputs / "student")},
    ]
    terms = {
        "big": {"term": "forward_kl", "teacher": "big"},
        "twin": {"term": "reverse_kl", "teacher": "twin", "weight": 3.0},
    }
    found = evaluated(inputs, tmp_path / "run", {"teachers": teachers, "objective.terms": terms})
    for domain, values in expected.items():
        assert close(found[f"eval_{domain}/kl@big"], values["kl"])
        assert close(found[f"eval_{domain}/agreement@big"], values["agreement"])
        assert found[f"eval_{domain}/kl@twin"] == 0.0 and found[f"eval_{domain}/agreement@twin"] == 1.0


def test_first_rows_alone_with_max_rows(inputs: Path, tmp_path: Path) -> None:
    job = built(recipe(inputs, tmp_path / "run", {"eval.datasets": held_out(inputs), "eval.max_rows": 3}))
    assert [len(h.rows) for h in job.held_out] == [3, 3]


def test_measuring_does_not_touch_the_training(inputs: Path, tmp_path: Path) -> None:
    """With dropout, whose random numbers an evaluation in between must not use up; train mode is put back."""
    lines = []
    for strategy in ("no", "steps"):
        changes = {
            "student.lora": {"r": 2, "lora_dropout": 0.2}, "eval.datasets": held_out(inputs),
            "train.eval_strategy": strategy, "train.eval_steps": 1,
        }  # fmt: skip
        job = built(recipe(inputs, tmp_path / strategy, changes))
        job.trainer.train()
        lines.append([line["loss"] for line in job.trainer.state.log_history if "loss" in line])
        job.trainer.model.train()
        job.trainer.evaluate()
        assert job.trainer.model.training
    assert lines[0] == lines[1]


# -- shares of several ranks -------------------------------------------------------------------------------------------


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[row["id"]] for row in rows])
    return {"input_ids": ids, "counted": ids > 0, "shared@t": ids > 0, "n_bytes": ids[:, 0]}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 5, 7, 12])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_ranks_see_each_row_once_in_equally_many_batches(ranks: int, count: int, size: int) -> None:
    """What is left over is a batch without a counted token: a sharded model needs every rank in every forward."""
    held = HeldOut("d", [{"id": i} for i in range(1, count + 1)], collate, size)
    shares = [held.batches(rank, ranks, torch.device("cpu")) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    seen = [int(i) for share in shares for batch in share for i in batch["input_ids"][batch["counted"]]]
    assert sorted(seen) == list(range(1, count + 1))
    assert sum(int(batch["n_bytes"].sum()) for share in shares for batch in share) == sum(seen)
    assert all(torch.equal(b["counted"], b["shared@t"]) for share in shares for b in share)
    assert all(len(b["input_ids"]) > 0 for share in shares for b in share)
