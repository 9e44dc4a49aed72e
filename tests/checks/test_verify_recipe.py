"""`llmkd verify RECIPE`: the recipe's own terms, on what its models say of its rows; and faults that show there."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from llmkd import backbone, cli
from llmkd.checks import recipe as recipe_checks
from llmkd.checks.law import Result
from llmkd.checks.recipe import Subject, opened
from llmkd.checks.verify import run
from llmkd.objectives import engine
from llmkd.objectives.objective import Objective

from runs import loaded, make_inputs, recipe, write_recipe

TERMS = {
    "kd": {"term": "forward_kl", "weight": 0.75, "normalize": "kept", "mask": {"domains": ["chats"]}},
    "js": {"term": "jsd", "beta": 0.2, "weight": {"schedule": "linear", "from": 0.0, "to": 1.0}},
    "ce": {"term": "cross_entropy", "weight": 0.5, "mask": {"positions": [1, None]},
           "token_weight": {"by": "student_entropy", "floor": 0.2}},
}  # fmt: skip
RICH = {
    "objective.terms": TERMS, "objective.temperature": {"student": 2.0, "teacher": 1.5}, "train.packing": True,
    "train.max_steps": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def judged(data: Mapping[str, Any], folder: Path, dtype: torch.dtype | None = None) -> list[Result]:
    """What becomes of the laws on its models alone."""
    with opened(str(write_recipe(data, folder / "recipe.yaml")), [], None) as job:
        return run(Subject(job, dtype).laws())


def failed(results: list[Result]) -> set[tuple[str, str]]:
    return {(r.entry, r.law.removesuffix(" on the recipe's rows")) for r in results if not r.passed}


# -- everything holds -------------------------------------------------------------------------------------------------


def test_whole_command(inputs, tmp_path, capsys):
    path = write_recipe(recipe(inputs, tmp_path / "run", RICH), tmp_path / "recipe.yaml")
    before = sorted(tmp_path.rglob("*"))
    found = tmp_path.parent / f"{tmp_path.name}.json"
    assert cli.main(["verify", str(path), "--json", str(found), "train.per_device_train_batch_size=3"]) == 0
    assert sorted(tmp_path.rglob("*")) == before, "something was left in the user's folder"
    out = capsys.readouterr().out
    assert "laws hold" in out and "float32 on cpu" in out
    content = json.loads(found.read_text())
    assert content["passed"] and content["recipe"] == str(path) and content["dtype"] == "float32"
    assert list(content["entries"]) == [
        "forward_kl",
        "jsd",
        "cross_entropy",
        "objective",
        "student",
        "teachers.teacher",
    ]
    laws = {(r["entry"], r["law"]) for r in content["results"] if r["group"] == "recipe"}
    dense, rest = "fused equals dense on the recipe's rows", "a student that is its teacher has no loss and no gradient"
    assert {("forward_kl", dense), ("jsd", dense), ("cross_entropy", dense)} <= laws
    assert ("forward_kl", f"{rest}, on the recipe's rows") in laws
    assert ("student", "packed rows are the rows one by one") in laws
    assert {r["group"] for r in content["results"]} == {"formulas", "engine", "sparse", "batches", "recipe"}


VARIANTS: dict[str, dict[str, Any]] = {
    "fine-tuning": {"teachers": None, "train.method": "sft", "objective.terms": {"ce": {"term": "cross_entropy"}}},
    "bfloat16": {"train.bf16": True, "train.packing": True, "teachers.0.dtype": "bfloat16"},
    "weights in bfloat16": {"student.dtype": "bfloat16"},
    "lora": {"student.lora": {"r": 4}},
    "one row a step": {"train.per_device_train_batch_size": 1},
    "a term of every shape": {"objective.logit_standardize": True, "objective.terms": {
        "ab": {"term": "alpha_beta", "alpha": 0.2, "beta": 0.7}, "taid": {"term": "taid"}, "nkd": {"term": "nkd"},
        "mix": {"term": "mixture", "of": {"reverse_kl": 0.5, "skew_forward_kl": 0.5}}, "sq": {"term": "squared_logit"},
    }},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_all_hold(name, inputs, tmp_path):
    data = recipe(inputs, tmp_path / "run", VARIANTS[name])
    results = judged(data, tmp_path)
    assert results and failed(results) == set()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_all_hold_in_a_precision_that_is_asked_for(dtype, inputs, tmp_path):
    assert failed(judged(recipe(inputs, tmp_path / "run", RICH), tmp_path, dtype)) == set()


@pytest.mark.parametrize("packing", [False, True])
def test_all_hold_beside_a_teacher_with_its_own_rendering(packing, inputs, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(inputs / "teacher")
    tokenizer.chat_template = tokenizer.chat_template.replace("{% for", "{{ '<|system|>Be kind.<|end|>' }}{% for", 1)
    tokenizer.save_pretrained(tmp_path / "teacher")
    loaded(inputs / "teacher").save_pretrained(tmp_path / "teacher")
    changes = {"teachers.0": {"model_name_or_path": str(tmp_path / "teacher"), "template": "own"},
               "train.packing": packing, "train.max_length": 96,
               "data.datasets": [{"path": str(inputs / "chats.jsonl")}]}  # fmt: skip
    assert failed(judged(recipe(inputs, tmp_path / "run", changes), tmp_path)) == set()


@pytest.mark.gpu
def test_all_hold_on_a_gpu(inputs, tmp_path):
    path = write_recipe(recipe(inputs, tmp_path / "run", {**RICH, "train.bf16": True}), tmp_path / "recipe.yaml")
    assert cli.main(["verify", str(path), "--device", "cuda"]) == 0


@pytest.mark.full
def test_the_quickstart_holds():
    assert cli.main(["verify", "recipes/quickstart.yaml"]) == 0


# -- planted faults ---------------------------------------------------------------------------------------------------


def tau_squared(patch: pytest.MonkeyPatch) -> None:
    original = engine.fused_loss

    def wrong(hidden, head, request):
        terms = [replace(t, weight=t.weight * 4) if t.teacher is not None else t for t in request.terms]
        return original(hidden, head, replace(request, terms=terms))

    patch.setattr(engine, "fused_loss", wrong)


def leaking_rows(patch: pytest.MonkeyPatch) -> None:
    """Packed rows as one long row: each sees those before it."""
    original = backbone.hidden_states

    def wrong(model, batch, view=""):
        return original(model, {k: v for k, v in batch.items() if not k.startswith("position_ids")}, view)

    patch.setattr(recipe_checks, "hidden_states", wrong)


def local_counts(patch: pytest.MonkeyPatch) -> None:
    original = Objective.__call__

    def wrong(self, hidden, head, signals, batch, counts, step=0):
        return original(self, hidden, head, signals, batch, self.counts(batch), step)

    patch.setattr(Objective, "__call__", wrong)


def counting_padding(patch: pytest.MonkeyPatch) -> None:
    original = Objective.counts

    def wrong(self, batch):
        return original(self, batch) + batch["input_ids"].shape[1]

    patch.setattr(Objective, "counts", wrong)


ALL_DENSE = {
    ("forward_kl", "fused equals dense"),
    ("jsd", "fused equals dense"),
    ("objective", "all terms together equal dense"),
}
FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], set[tuple[str, str]]]] = {
    "tau squared": (tau_squared, ALL_DENSE),
    "leaking rows": (leaking_rows, {("student", "packed rows are the rows one by one")}),
    "local counts": (local_counts, {("objective", "batch split changes nothing")}),
    "padding that is counted": (counting_padding, {("objective", "padding changes nothing"),
                                                   ("objective", "batch split changes nothing")}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named(name, inputs, tmp_path, monkeypatch):
    plant, expected = FAULTS[name]
    plant(monkeypatch)
    assert failed(judged(recipe(inputs, tmp_path / "run", RICH), tmp_path)) == expected


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.no_such_key=1", "no_such_key"),
        ("objective.terms.kd.term=forwards_kl", "forwards_kl"),
        ("student.model_name_or_path=no/such/folder/at/all", "no/such/folder/at/all"),
    ],
)
def test_a_mistake_is_said_in_a_line_without_a_traceback(override, message, inputs, tmp_path, capsys):
    path = write_recipe(recipe(inputs, tmp_path / "run", RICH), tmp_path / "recipe.yaml")
    assert cli.main(["verify", str(path), override]) == 2
    said = capsys.readouterr()
    assert message in said.err and "Traceback" not in said.err and "laws" not in said.out
    assert not (tmp_path / "run").exists()


def test_the_objective_calls_the_engine_again_afterwards(inputs, tmp_path):
    before = sys.modules[Objective.__module__].fused_loss
    judged(recipe(inputs, tmp_path / "run"), tmp_path)
    assert sys.modules[Objective.__module__].fused_loss is before is engine.fused_loss
