"""On-policy distillation: what it is equal to, on tiny models that write for themselves.

"Equal" is relative 1e-5 in float32 where rows are added up in another order: TRL shuffles the rows of a step.
"""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DistillationConfig, DistillationTrainer

from llmkd.data.prompts import GroupedOrder
from llmkd.objectives.objective import Objective, Term
from llmkd.teachers.local import LocalTeacher
from llmkd.trainers.onpolicy import OnPolicyTrainer
from llmkd.trainers.onpolicy_settings import OnPolicySettings
from llmkd.trainers.own_share import on_policy
from llmkd.trainers.policy_terms import TeacherTerm
from llmkd.trainers.settings import train_fields

from rollouts import VOCABULARY, lines, models, prompts, rl, weights
from runs import built, loaded, make_inputs, noted, put, trained, write_rows
from tiny import tiny_llama, tiny_tokenizer

EQUAL = 1e-5
END = 1  # of the tiny tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    tiny_tokenizer(folder / "padded")
    tiny_llama(folder / "padded", vocab=448, initializer_range=0.1, seed=6)
    return folder


def recipe(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Reverse KL on chats, eight completions a step; changes: dotted keys, with __ for the dots."""
    data = {
        "run": {"output_dir": str(output), "seed": 3},
        "student": {"model_name_or_path": str(inputs / "student")},
        "teachers": [{"model_name_or_path": str(inputs / "teacher")}],
        "data": {"datasets": [{"path": str(inputs / "chats.jsonl"), "domain": "chats"}]},
        "objective": {"terms": {"kd": {"term": "reverse_kl"}}},
        "train": {
            "method": "onpolicy", "use_cpu": True, "max_steps": 4, "per_device_train_batch_size": 8,
            "max_completion_length": 10, "learning_rate": 1e-3, "logging_steps": 1, "disable_tqdm": True,
        },
        "eval": {},
    }  # fmt: skip
    for key, value in changes.items():
        put(data, key.replace("__", "."), value)
    return data


def equal(one: list[dict], other: list[dict], keys: tuple[str, ...] = ("loss", "grad_norm", "kd/value")) -> None:
    assert len(one) == len(other) > 1
    for line, beside in zip(one, other, strict=True):
        assert {k: line[k] for k in keys} == pytest.approx({k: beside[k] for k in keys}, rel=EQUAL)
        assert line["tokens"] == beside["tokens"]


# -- equal to other methods -------------------------------------------------------------------------------------------


def test_without_on_policy_steps_it_is_off_policy_distillation(inputs: Path, tmp_path: Path) -> None:
    data = recipe(inputs, tmp_path / "on", train__lmbda=0.0, train__max_length=48)
    same = copy.deepcopy(data) | {"run": {"output_dir": str(tmp_path / "off"), "seed": 3}}
    put(same, "train.method", "offpolicy")
    for key in ("lmbda", "max_completion_length"):
        put(same, f"train.{key}", None)
    equal(trained(data), trained(same))


def test_questions_of_text_are_the_same_turns_on_the_data_as_when_the_student_answers(
    inputs: Path, tmp_path: Path
) -> None:
    """Rows of texts against the same ones written as conversations."""
    pairs = [(f"{a} + {b} =", str(a + b)) for a in range(4) for b in range(5)]
    texts = write_rows(tmp_path / "texts.jsonl", [{"prompt": p, "completion": c} for p, c in pairs])
    turns = write_rows(tmp_path / "turns.jsonl", [
        {"messages": [{"role": "system", "content": "Add."}, {"role": "user", "content": p},
                      {"role": "assistant", "content": c}]} for p, c in pairs
    ])  # fmt: skip
    found = [
        trained(recipe(inputs, tmp_path / path.stem, train__lmbda=0.5, train__max_steps=6, data__datasets=[
            {"path": str(path)}], train__system_prompt="Add."))
        for path in (texts, turns)
    ]  # fmt: skip
    equal(*found)
    assert {line["on_policy"] for line in found[0]} == {0.0, 1.0}


SETTINGS = {
    "use_cpu": True, "bf16": False, "max_steps": 3, "per_device_train_batch_size": 8, "max_completion_length": 8,
    "report_to": [], "learning_rate": 1e-3, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
    "lr_scheduler_type": "constant", "gradient_checkpointing": False,
}  # fmt: skip


def order(group: int) -> GroupedOrder:
    """Eight rows a step, each prompt so often."""
    return GroupedOrder([i % 16 for i in range(400)], 8 // group, group, 1)


def ours(folder: Path, group: int) -> OnPolicyTrainer:
    """The trainer on the models and prompts of `rollouts`, trained."""
    trainer = OnPolicyTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "student"), train_dataset=prompts(),
        processing_class=AutoTokenizer.from_pretrained(folder / "student"),
        args=OnPolicySettings(output_dir=str(folder / "ours"), **SETTINGS),
        objective=Objective([Term("kd", "reverse_kl", teacher="t")], ["all"], VOCABULARY),
        teachers={"t": LocalTeacher("t", AutoModelForCausalLM.from_pretrained(folder / "teacher"))},
        ends={"t": [END]}, collate=None, order=lambda _: order(group),
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("models"))


def test_reverse_kl_is_that_of_rl_without_a_policy(folder: Path) -> None:
    own = ours(folder, 4)
    exact = TeacherTerm("kd", "t", estimator="exact", weight=1.0)
    theirs = rl(folder, None, [exact], max_steps=3)
    for line, beside in zip(lines(own), lines(theirs), strict=True):
        assert line["loss"] == pytest.approx(beside["loss"], rel=EQUAL)
        assert line["kd/value"] == pytest.approx(beside["kd/reverse_kl"], rel=EQUAL)
        assert line["tokens"] == beside["tokens"]
    assert lines(own)[0]["grad_norm"] == pytest.approx(lines(theirs)[0]["grad_norm"], rel=EQUAL)
    torch.testing.assert_close(weights(own), weights(theirs), rtol=0, atol=1e-5)


def test_reverse_kl_is_that_of_trls_distillation_trainer(folder: Path) -> None:
    class Ordered(DistillationTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return order(1)

    theirs = Ordered(
        model=AutoModelForCausalLM.from_pretrained(folder / "student"), train_dataset=prompts(),
        teacher_model=AutoModelForCausalLM.from_pretrained(folder / "teacher"),
        args=DistillationConfig(output_dir=str(folder / "trl"), beta=1.0, **SETTINGS),
        processing_class=AutoTokenizer.from_pretrained(folder / "student"),
    )  # fmt: skip
    theirs.train()
    own = ours(folder, 1)
    for line, beside in zip(lines(own), lines(theirs), strict=True):
        assert line["loss"] == pytest.approx(beside["loss"], rel=EQUAL)
        assert line["student_entropy"] == pytest.approx(beside["entropy"], rel=EQUAL)
    assert lines(own)[0]["grad_norm"] == pytest.approx(lines(theirs)[0]["grad_norm"], rel=EQUAL)


# -- by hand ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(student: Any, teacher: Any, batch: dict[str, Tensor], tau: tuple[float, float], kind: str) -> Tensor:
    """The divergence at every counted token, in float64, from one row at a time without what is behind its end."""
    found = []
    for ids, counted in zip(batch["input_ids"], batch["counted"], strict=True):
        length = int(counted.nonzero().max()) + 1
        logits = [m(input_ids=ids[None, :length]).logits[0, :-1, :VOCABULARY].double() for m in (student, teacher)]
        logq, logp = ((z / t).log_softmax(-1)[counted[1:length]] for z, t in zip(logits, tau, strict=True))
        if kind == "reverse_kl":
            found.append((logq.exp() * (logq - logp)).sum(-1))
            continue
        middle = torch.log(0.3 * logp.exp() + 0.7 * logq.exp())
        found.append(0.3 * (logp.exp() * (logp - middle)).sum(-1) + 0.7 * (logq.exp() * (logq - middle)).sum(-1))
    return torch.cat(found)


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
@pytest.mark.parametrize("term", [{"term": "reverse_kl"}, {"term": "jsd", "beta": 0.3}])
def test_loss_is_the_formulas_mean_over_the_tokens_of_the_step(
    inputs: Path, tmp_path: Path, term: dict, lmbda: float
) -> None:
    data = recipe(inputs, tmp_path / "run", objective__terms__kd=term, train__max_steps=1, train__lmbda=lmbda)
    data["objective"]["temperature"] = {"student": 1.5, "teacher": 0.8}
    data["train"] |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    job = built(data)
    seen = noted(job.trainer)
    job.trainer.train()
    assert len(seen) == 2
    models = loaded(inputs / "student"), loaded(inputs / "teacher")
    values = torch.cat([by_hand(*models, batch, (1.5, 0.8), term["term"]) for batch in seen])
    line = lines(job.trainer)[0]
    assert line["loss"] == pytest.approx(float(values.mean()), rel=EQUAL)
    assert line["kd/value"] == pytest.approx(float(values.mean()), rel=EQUAL)
    assert line["tokens"] == len(values)


def test_a_teacher_with_a_padded_head_is_heard_on_the_rows_that_both_have(inputs: Path, tmp_path: Path) -> None:
    data = recipe(inputs, tmp_path / "run", teachers__0__model_name_or_path=str(inputs / "padded"), train__max_steps=1)
    job = built(data)
    seen = noted(job.trainer)
    job.trainer.train()
    values = by_hand(loaded(inputs / "student"), loaded(inputs / "padded"), seen[0], (1.0, 1.0), "reverse_kl")
    assert lines(job.trainer)[0]["loss"] == pytest.approx(float(values.mean()), rel=EQUAL)


# -- invariances ------------------------------------------------------------------------------------------------------


def test_a_teacher_that_is_the_student_says_nothing(inputs: Path, tmp_path: Path) -> None:
    data = recipe(inputs, tmp_path / "run", teachers__0__model_name_or_path=str(inputs / "student"))
    line = trained(data)[0]
    assert line["loss"] == pytest.approx(0, abs=1e-6) and line["grad_norm"] == pytest.approx(0, abs=1e-5)
    assert line["agreement"] == 1


@pytest.mark.parametrize(("size", "lmbda"), [(4, 1.0), (1, 0.5)])
def test_micro_batches_change_nothing(inputs: Path, tmp_path: Path, size: int, lmbda: float) -> None:
    whole = recipe(inputs, tmp_path / "whole", train__lmbda=lmbda)
    split = recipe(inputs, tmp_path / "split", train__lmbda=lmbda, train__per_device_train_batch_size=size,
                   train__gradient_accumulation_steps=8 // size)  # fmt: skip
    equal(trained(split), trained(whole), ("loss", "grad_norm", "kd/value", "student_entropy", "teacher_entropy"))


def ending_at(trainer: Any, at: list[int]) -> None:
    """Let the student's completions end after so many tokens each, with other tokens behind the end."""
    generate = trainer.model.generate

    def written(input_ids: Tensor, **rest: Any) -> Tensor:
        out = generate(input_ids=input_ids, **rest)
        for row, end in zip(out[:, input_ids.shape[1] :], at, strict=True):
            row[:] = row.clamp(min=7)  # no end of its own
            row[end] = END
        return out

    trainer.model.generate = written


def test_the_end_counts_once_and_nothing_behind_it(inputs: Path, tmp_path: Path) -> None:
    job = built(recipe(inputs, tmp_path / "run", train__max_steps=1))
    ending_at(job.trainer, at := [0, 1, 2, 3, 4, 5, 6, 9])
    seen = noted(job.trainer)
    job.trainer.train()
    ids, counted = seen[0]["input_ids"], seen[0]["counted"]
    assert sorted(counted.sum(1).tolist()) == [end + 1 for end in at]
    assert all(line[mask].tolist().count(END) == 1 and line[mask][-1] == END
               for line, mask in zip(ids, counted, strict=True))  # fmt: skip
    values = by_hand(loaded(inputs / "student"), loaded(inputs / "teacher"), seen[0], (1.0, 1.0), "reverse_kl")
    line = lines(job.trainer)[0]
    assert line["loss"] == pytest.approx(float(values.mean()), rel=EQUAL)
    assert line["completions/clipped_ratio"] == 0


def test_where_the_teacher_ends_a_turn_otherwise_it_is_not_heard(inputs: Path, tmp_path: Path) -> None:
    """Its values are left out, and the tokens still count."""
    job = built(recipe(inputs, tmp_path / "run", train__max_steps=1))
    job.trainer.ends = {"teacher": [2]}
    ending_at(job.trainer, [0, 1, 2, 3, 4, 5, 6, 9])
    seen = noted(job.trainer)
    job.trainer.train()
    batch = seen[0]
    values = by_hand(loaded(inputs / "student"), loaded(inputs / "teacher"), batch, (1.0, 1.0), "reverse_kl")
    own = batch["input_ids"][batch["counted"]] == END
    assert own.sum() == 8
    line = lines(job.trainer)[0]
    assert line["loss"] == pytest.approx(float(values[~own].sum() / len(values)), rel=EQUAL)
    assert line["kd/value"] == pytest.approx(float(values[~own].mean()), rel=EQUAL)


def test_a_student_that_never_ends_is_warned_of_once(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = built(recipe(inputs, tmp_path / "run", train__generation_kwargs={"suppress_tokens": [END, 0]}))
    job.trainer.train()
    assert caplog.text.count("not one completion of the step ended by itself") == 1
    assert "step 1: " in caplog.text and "train.max_completion_length=10" in caplog.text


def test_adapters_and_their_base_as_the_teacher_share_its_memory(inputs: Path, tmp_path: Path) -> None:
    job = built(recipe(
        inputs, tmp_path / "run", teachers__0__model_name_or_path=str(inputs / "student"),
        student__lora={"r": 4, "target_modules": "all-linear"},
    ))  # fmt: skip
    (teacher,) = job.teachers.values()
    base = {p.data_ptr() for n, p in job.trainer.model.named_parameters() if "lora_" not in n}
    assert base and {p.data_ptr() for n, p in teacher.model.named_parameters() if "lora_" not in n} == base
    job.trainer.train()
    assert lines(job.trainer)[0]["loss"] == pytest.approx(0, abs=1e-6)


def test_a_teacher_without_the_adapters_is_the_base_model(inputs: Path, tmp_path: Path) -> None:
    """Whatever the adapters have learned: against the formula with the models as two."""
    job = built(recipe(
        inputs, tmp_path / "run", teachers__0__model_name_or_path=str(inputs / "student"), train__max_steps=1,
        student__lora={"r": 4, "target_modules": "all-linear"},
    ))  # fmt: skip
    with torch.no_grad():
        for name, weight in job.trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    merged = copy.deepcopy(job.trainer.model).merge_and_unload().eval()
    seen = noted(job.trainer)
    job.trainer.train()
    values = by_hand(merged, loaded(inputs / "student"), seen[0], (1.0, 1.0), "reverse_kl")
    line = lines(job.trainer)[0]
    assert line["loss"] == pytest.approx(float(values.mean()), rel=EQUAL) and line["loss"] > 1e-3
    assert line["grad_norm"] > 0


@pytest.mark.parametrize("lora", [{"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_a_base_that_is_trained_itself_is_no_teacher(inputs: Path, tmp_path: Path, lora: dict) -> None:
    job = built(recipe(
        inputs, tmp_path / "run", teachers__0__model_name_or_path=str(inputs / "student"),
        student__lora={"r": 4, "target_modules": ["q_proj"], **lora},
    ))  # fmt: skip
    mine = {p.data_ptr() for p in job.trainer.model.parameters()}
    assert mine.isdisjoint(p.data_ptr() for p in job.teachers["teacher"].model.parameters())


# -- which steps are on-policy ----------------------------------------------------------------------------------------


def test_the_share_of_on_policy_steps_is_drawn_by_seed_and_step() -> None:
    drawn = [on_policy(5, step, 0.3) for step in range(2000)]
    assert drawn == [on_policy(5, step, 0.3) for step in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.3, abs=0.04)
    assert drawn != [on_policy(6, step, 0.3) for step in range(2000)]
    assert not any(on_policy(5, step, 0.0) for step in range(99)) and all(on_policy(5, s, 1.0) for s in range(99))


def test_steps_are_on_policy_as_they_were_drawn(inputs: Path, tmp_path: Path) -> None:
    found = trained(recipe(inputs, tmp_path / "run", train__lmbda=0.5, train__max_steps=8))
    assert [line["on_policy"] for line in found] == [float(on_policy(3, step, 0.5)) for step in range(8)]
    assert all(("completions/mean_length" in line) == (line["on_policy"] == 1) for line in found)


def test_masks_look_at_completions_by_domain_and_position(inputs: Path, tmp_path: Path) -> None:
    """Two terms that share the tokens between them are the one that has them all."""
    halves = {name: {"term": "reverse_kl", "mask": {"positions": span}} for name, span in
              {"head": [0, 4], "tail": [4, None]}.items()}  # fmt: skip
    sources = [{"path": str(inputs / "chats.jsonl"), "domain": d} for d in ("a", "b")]
    one = trained(recipe(inputs, tmp_path / "one", data__datasets=sources))
    two = trained(recipe(inputs, tmp_path / "two", data__datasets=sources, objective__terms=halves))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=EQUAL)
    assert {"kd/value/a", "kd/value/b"} <= one[0].keys()


def test_prompts_are_the_rows_of_the_order_whatever_the_micro_batch(inputs: Path, tmp_path: Path) -> None:
    def asked(size: int) -> list[str]:
        job = built(recipe(inputs, tmp_path / f"run-{size}", train__per_device_train_batch_size=size,
                           train__gradient_accumulation_steps=8 // size))  # fmt: skip
        seen: list[str] = []
        tokenize = job.trainer._tokenize_prompts

        def noting(prompts: list) -> Any:
            seen.extend(prompt[0]["content"] for prompt in prompts)
            return tokenize(prompts)

        job.trainer._tokenize_prompts = noting
        job.trainer.train()
        return seen

    whole = asked(8)
    assert whole == asked(2)
    rows = Dataset.from_json(str(inputs / "chats.jsonl"))
    assert len(set(whole)) == len({m[0]["content"] for m in rows["messages"]} & set(whole)) > 20


# -- what is taken from TRL -------------------------------------------------------------------------------------------


def test_settings_keep_the_fields_of_trl_and_add_few() -> None:
    added = set(OnPolicySettings.__dataclass_fields__) - set(DistillationConfig.__dataclass_fields__)
    own = {"lmbda", "lmbda_schedule", "replay_capacity", "pairs", "seq_kd", "teacher_mixture"}
    shared = {"text_prompts", "system_prompt", "early_stopping_patience", "muon_learning_rate"}
    assert added == own | shared | {"max_length"}
    assert {"temperature", "lmbda", "use_vllm"} <= train_fields("onpolicy").keys()
    assert not {"beta", "teacher_model_name_or_path", "loss_type", "output_dir"} & train_fields("onpolicy").keys()


def test_every_hook_that_is_overridden_exists_above() -> None:
    private = [name for name, value in vars(OnPolicyTrainer).items() if name.startswith("_") and callable(value)]
    ours = {"__init__", "_completions", "_written", "_given", "_replayed", "_columns", "_mixture"}
    assert not [name for name in private if name not in ours and not hasattr(DistillationTrainer, name)]
    for hook in ("_generate_and_score_completions", "_get_train_sampler", "compute_loss", "training_step", "log"):
        mine, theirs = (list(inspect.signature(getattr(kind, hook)).parameters)
                        for kind in (OnPolicyTrainer, DistillationTrainer))  # fmt: skip
        assert mine == theirs
