"""Recipes of on-policy distillation, run whole on tiny models: what they leave, how they go on, what they refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from llmkd import cli
from llmkd.build_onpolicy import _completed
from llmkd.build_rollouts import keep_to_shared
from llmkd.checks.recipe import Subject, opened
from llmkd.trainers.onpolicy import OnPolicyTrainer
from llmkd.trainers.own_share import on_policy

from runs import (
    assert_same_run,
    built,
    crashed,
    held_out,
    main_with,
    make_inputs,
    metrics,
    one_message,
    prose,
    put,
    trained,
    without_step_time,
    write_recipe,
    write_rows,
)
from tiny import tiny_llama, tiny_tokenizer

OF_DATA = {"ce": {"term": "cross_entropy", "completions": "data"}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def recipe(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """GKD on chats, eight rows a step; changes: dotted keys, with __ for the dots."""
    data = {
        "run": {"output_dir": str(output), "seed": 3, "resume": "auto"},
        "student": {"model_name_or_path": str(inputs / "student")},
        "teachers": [{"model_name_or_path": str(inputs / "teacher")}],
        "data": {"datasets": [{"path": str(inputs / "chats.jsonl"), "domain": "chats"}]},
        "objective": {"terms": {"kd": {"term": "jsd", "beta": 0.5}}},
        "train": {
            "method": "onpolicy", "use_cpu": True, "max_steps": 4, "per_device_train_batch_size": 8, "lmbda": 0.5,
            "max_completion_length": 12, "learning_rate": 1e-3, "disable_tqdm": True,
        },
        "eval": {},
    }  # fmt: skip
    for key, value in changes.items():
        put(data, key.replace("__", "."), value)
    return data


def test_a_run_leaves_what_every_run_leaves(inputs: Path, tmp_path: Path) -> None:
    data = recipe(inputs, tmp_path / "run", eval__datasets=held_out(inputs), eval__samples=1, train__lmbda=1.0,
                  train__eval_strategy="steps", train__eval_steps=2)  # fmt: skip
    assert main_with(data) == 0
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    named = {"kd/value", "student_entropy", "teacher_entropy", "agreement", "tokens", "on_policy",
             "completions/mean_length", "completions/max_length", "completions/clipped_ratio"}  # fmt: skip
    assert all(named <= line.keys() for line in lines)
    evaluated = [line for line in metrics(tmp_path / "run") if "eval/mean/kl" in line]
    assert [line["step"] for line in evaluated] == [2, 4]
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert set(results["student"]["held_out"]) == {"prose", "chats"}
    assert results["student"]["tokens"] == lines[-1]["tokens"] > 0 and results["student"]["completions"] == 4 * 8
    assert (tmp_path / "run" / "samples.jsonl").is_file()
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("crash", [3, 4])
def test_broken_off_it_goes_on_as_if_it_had_not(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: int
) -> None:
    """Bitwise, with a state of the objective, dropout, and log lines of two steps: that of steps 3 and 4, of which one
    is on-policy, falls around a checkpoint."""
    assert on_policy(3, 2, 0.5) != on_policy(3, 3, 0.5)
    taid = {"term": "taid", "t": {"schedule": "adaptive", "from": 0.2, "alpha": 0.05, "beta": 0.5}}
    several = {
        "objective__terms__kd": taid, "train__max_steps": 7, "train__save_steps": 1, "train__logging_steps": 2,
        "train__per_device_train_batch_size": 4, "train__gradient_accumulation_steps": 2,
        "student__lora": {"r": 4, "lora_dropout": 0.1},
    }  # fmt: skip
    assert main_with(recipe(inputs, tmp_path / "whole", **several)) == 0
    crashed(monkeypatch, recipe(inputs, tmp_path / "broken", **several), crash, trainer=OnPolicyTrainer)
    assert main_with(recipe(inputs, tmp_path / "broken", **several)) == 0
    seen = [json.loads((tmp_path / name / "summary.json").read_text())["results"]["student"]["completions"]
            for name in ("whole", "broken")]  # fmt: skip
    assert seen[0] == seen[1] == 8 * sum(on_policy(3, step, 0.5) for step in range(7))
    without_step_time([tmp_path / "whole", tmp_path / "broken"])
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_verify_holds_its_laws_on_what_the_student_writes(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(recipe(inputs, tmp_path / "run", train__lmbda=1.0), tmp_path / "recipe.yaml")
    assert cli.main(["verify", str(path)]) == 0
    assert "jsd" in capsys.readouterr().out and not (tmp_path / "run").exists()


# -- completions of the teacher ---------------------------------------------------------------------------------------


def written(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "teacher_completions.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def test_what_the_teacher_wrote_is_kept_and_trained_on(inputs: Path, tmp_path: Path) -> None:
    job = built(recipe(inputs, tmp_path / "run", train__seq_kd=True, train__max_steps=8))
    header, *rows = written(tmp_path / "run")
    assert header["drawn"]["seed"] == 3 and header["drawn"]["by"]["model_name_or_path"] == str(inputs / "teacher")
    drawn = {row["row"]: row for row in rows}
    assert len(drawn) == len(rows)
    trainer, data_steps = job.trainer, [step for step in range(8) if not on_policy(3, step, 0.5)]
    order = list(trainer._get_train_sampler())
    assert 0 < len(data_steps) < 8
    assert set(drawn) == {row for step in data_steps for row in order[8 * step : 8 * step + 8]}
    for number, row in drawn.items():
        made = trainer.train_dataset[number]
        completion = [i for i, keep in zip(made["input_ids"], made["counted"], strict=True) if keep]
        assert completion == row["ids"] and len(row["ids"]) <= 12
        assert made["input_ids"][: -len(row["ids"])] == trainer.prompt_ids([made])[0]
        assert job.tokenizer.decode(row["ids"]) == row["text"]


def test_its_drawing_can_be_broken_off_anywhere(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that is missing and a line that was cut short come back the same, bitwise; the others are not drawn."""
    monkeypatch.setattr("llmkd.trainers.teacher_samples.CHUNK", 4)
    settings = {"train__seq_kd": True, "train__max_steps": 8}
    built(recipe(inputs, tmp_path / "run", **settings))
    file = tmp_path / "run" / "teacher_completions.jsonl"
    whole = file.read_text(encoding="utf-8")
    lines = whole.split("\n")
    assert len(lines) > 14
    file.write_text("\n".join(lines[:10]) + "\n" + lines[10][:20], encoding="utf-8")
    built(recipe(inputs, tmp_path / "run", **settings))
    assert written(tmp_path / "run") == [json.loads(line) for line in lines if line]

    def silent(*_: Any) -> None:
        raise AssertionError("nothing was missing")

    with monkeypatch.context() as patch:
        patch.setattr("llmkd.build_onpolicy._completed", silent)
        built(recipe(inputs, tmp_path / "run", **settings))
    before = written(tmp_path / "run")
    built(recipe(inputs, tmp_path / "run", **settings, train__top_k=3))
    after = written(tmp_path / "run")
    assert after[0] != before[0] and len(after) == len(before)
    assert not [row for row in after[1:] if row in before], "drawn otherwise, and kept"


def test_sequence_level_distillation_alone_trains_on_what_the_teacher_wrote(inputs: Path, tmp_path: Path) -> None:
    """Kim and Rush's: no term looks at the teacher, who is asked to write all the same."""
    data = recipe(inputs, tmp_path / "run", train__seq_kd=True, train__lmbda=0.0, objective__terms=OF_DATA)
    assert main_with(data) == 0
    assert len(written(tmp_path / "run")) > 1
    assert metrics(tmp_path / "run")[-1]["on_policy"] == 0


def test_verify_has_the_teacher_write_to_what_it_looks_at_alone(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def noting(model: Any, prompts: Any, *rest: Any) -> Any:
        asked.append(len(prompts))
        return _completed(model, prompts, *rest)

    monkeypatch.setattr("llmkd.build_onpolicy._completed", noting)
    data = recipe(inputs, tmp_path / "run", train__seq_kd=True, train__lmbda=0.0, train__max_steps=40,
                  train__gradient_accumulation_steps=4)  # fmt: skip
    with opened(str(write_recipe(data, tmp_path / "run.yaml")), [], None):
        pass
    assert 0 < sum(asked) <= 2 * 8


def test_verify_looks_at_what_the_teacher_wrote_wherever_the_steps_are(inputs: Path, tmp_path: Path) -> None:
    """Hardly a step is on it, and the term has its weight in the middle of the run alone."""
    term = {"term": "forward_kl", "completions": "data", "weight": {"schedule": "switch_at", "from": 0.0, "to": 1.0,
                                                                   "steps": 10}}  # fmt: skip
    data = recipe(inputs, tmp_path / "run", train__seq_kd=True, train__lmbda=0.9, train__max_steps=40,
                  objective__terms={"kd": term})  # fmt: skip
    with opened(str(write_recipe(data, tmp_path / "run.yaml")), [], None) as job:
        subject = Subject(job, None)
        assert subject.step == 20
        assert all((call.request.terms[0].weight > 0).any() for call in subject.measured)


def test_drawing_it_disturbs_no_other_sample(inputs: Path, tmp_path: Path) -> None:
    plain, ours = (trained(recipe(inputs, tmp_path / name, train__seq_kd=name == "seq", train__max_steps=6))
                   for name in ("plain", "seq"))  # fmt: skip
    first_on_data = next(step for step in range(6) if not on_policy(3, step, 0.5))
    assert first_on_data > 0
    assert [line["loss"] for line in ours[:first_on_data]] == [line["loss"] for line in plain[:first_on_data]]
    assert ours[first_on_data]["loss"] != plain[first_on_data]["loss"]


def test_a_teacher_that_is_the_students_base_writes_as_the_base_does(inputs: Path, tmp_path: Path) -> None:
    lora = {"student__lora": {"r": 4}, "teachers__0__model_name_or_path": str(inputs / "student")}
    built(recipe(inputs, tmp_path / "shared", train__seq_kd=True, **lora))
    del lora["student__lora"]
    built(recipe(inputs, tmp_path / "two", train__seq_kd=True, **lora))
    assert written(tmp_path / "shared")[1:] == written(tmp_path / "two")[1:]


def test_what_it_wrote_ends_as_the_student_ends(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher's own end, a token that is none to the student, is put right; what did not end stays so."""
    other = tiny_llama(tmp_path / "other", initializer_range=0.1, eos_token_id=2)
    tiny_tokenizer(other)
    said = [[7, 2], [7, 8]]
    monkeypatch.setattr("llmkd.build_onpolicy._completed", lambda _, prompts, *__: said * (len(prompts) // 2))
    job = built(recipe(inputs, tmp_path / "run", teachers__0__model_name_or_path=str(other), train__seq_kd=True,
                       train__lmbda=0.0, train__max_steps=1))  # fmt: skip
    _, *rows = written(tmp_path / "run")
    assert [row["ids"] for row in rows] == said * 4
    ends = [job.trainer.train_dataset[row["row"]]["input_ids"][-2:] for row in rows]
    assert ends == [[7, 1], [7, 8]] * 4


def test_it_is_drawn_as_the_recipe_says_not_as_the_teacher_was_saved(inputs: Path, tmp_path: Path) -> None:
    """Chat models come with settings of their own for drawing."""
    one = str(shutil.copytree(inputs / "teacher", tmp_path / "teacher"))
    found = []
    for saved in ({}, {"do_sample": True, "top_k": 1, "repetition_penalty": 9.0, "temperature": 0.1, "top_p": 0.2}):
        GenerationConfig(eos_token_id=1, pad_token_id=0, **saved).save_pretrained(one)
        built(recipe(inputs, tmp_path / f"run-{len(saved)}", teachers__0__model_name_or_path=one, train__seq_kd=True))
        found.append(written(tmp_path / f"run-{len(saved)}")[1:])
    assert found[0] == found[1] != []


@pytest.mark.parametrize("wider", ["student", "teacher"])
def test_nobody_draws_what_the_other_has_no_row_for(inputs: Path, tmp_path: Path, wider: str) -> None:
    """A head of 448 rows whose padding is likelier than all else, beside one of 384."""
    folder = tiny_llama(tiny_tokenizer(tmp_path / "padded"), vocab=448, tie=False, initializer_range=0.1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[384:] = model.lm_head.weight[:64] * 20
    model.save_pretrained(folder)
    data = recipe(inputs, tmp_path / "run", train__seq_kd=True)
    (data["student"] if wider == "student" else data["teachers"][0])["model_name_or_path"] = str(folder)
    job = built(data)
    job.trainer.train()
    assert {line["on_policy"] for line in job.trainer.state.log_history if "loss" in line} == {0.0, 1.0}
    assert max(token for row in written(tmp_path / "run")[1:] for token in row["ids"]) < 384


def test_vllm_is_asked_to_leave_padding_out() -> None:
    """By a bias, one for each row of padding: SamplingParams has no list of tokens to suppress."""
    assert keep_to_shared({"seed": 1}, 6, 4, vllm=True) == {"seed": 1, "logit_bias": {4: -100.0, 5: -100.0}}
    assert keep_to_shared({"logit_bias": {2: 1.0}}, 5, 4, vllm=True) == {"logit_bias": {2: 1.0, 4: -100.0}}
    assert keep_to_shared({"suppress_tokens": [1]}, 6, 4, vllm=False) == {"suppress_tokens": [1, 4, 5]}
    assert keep_to_shared(None, 4, 4, vllm=True) == {}


def test_a_completion_goes_up_to_its_first_end() -> None:
    class Writes(torch.nn.Linear):
        def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
            assert input_ids.tolist() == [[0, 5, 6], [3, 4, 5]] and attention_mask.tolist() == [[0, 1, 1], [1, 1, 1]]
            return torch.cat([input_ids, torch.tensor([[9, 2, 0, 0], [1, 9, 9, 2]])], dim=1)

    found = _completed(Writes(1, 1), [[5, 6], [3, 4, 5]], GenerationConfig(), [2], pad=0)
    assert found == [[9, 2], [1, 9, 9, 2]]


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__lmbda": 1.5}, "train.lmbda: 1.5 is outside [0, 1]"),
        ({"train__beta": 0.5}, "objective.terms.NAME.beta of term: jsd"),
        ({"train__temperature": "hot"}, "train.temperature"),
        ({"train__num_generations": 4}, "num_generations"),
        ({"train__seq_kd": True, "train__lmbda": 1.0}, "give train.lmbda below 1"),
        ({"train__seq_kd": True, "train__lmbda": 0.0, "teachers": [], "objective__terms": OF_DATA},
         "train.seq_kd: true, and there are 0 teachers: give the one that writes"),
        ({"train__lmbda": "high"}, "train.lmbda"),
        ({"objective__terms__kd": {"term": "grpo"}}, "grpo is a term of method: rl, not of onpolicy"),
        ({"objective__terms__kd": {"term": "reverse_kl", "estimator": "k2"}}, "is read by method: rl, not by onpolicy"),
        ({"objective__terms__kd__mask": "incorrect"}, "incorrect needs rewards, which method: onpolicy has not"),
        ({"objective__terms__ce": {"term": "cross_entropy"}}, "cross_entropy looks at the tokens of the data"),
        ({"objective__terms__kd__token_weight": {"by": "column", "column": "w"}}, "a column of the data is not read"),
        ({"objective__temperature": {"student": {"column": "w"}}}, "a column of the data is not read"),
        ({"rewards": [{"kind": "exact"}]}, "rewards: read by method: rl only"),
        ({"eval__baseline": True}, "make it a recipe of its own"),
        ({"teachers__0__template": "own"}, "give template: student"),
        ({"teachers": []}, "jsd needs a teacher"),
        ({"train__max_completion_length": 512}, "leaves no room for a prompt"),
        ({"data__datasets__0__streaming": True}, "prompts are drawn from all rows"),
        ({"train__method": "offpolicy"}, "the share of on-policy steps is read by method: onpolicy"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(inputs: Path, tmp_path: Path, capsys: Any, changes: dict, words: str) -> None:
    assert main_with(recipe(inputs, tmp_path / "run", **changes)) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_two_teachers_do_not_both_write(inputs: Path, tmp_path: Path, capsys: Any) -> None:
    two = [{"name": name, "model_name_or_path": str(inputs / name)} for name in ("teacher", "near")]
    data = recipe(inputs, tmp_path / "run", teachers=two, train__seq_kd=True, objective__terms__kd__teacher="near")
    assert main_with(data) == 2
    assert "train.seq_kd: true, and there are 2 teachers" in one_message(capsys)


@pytest.mark.parametrize("lmbda", [0.5, 1.0])
def test_plain_text_has_no_prompt(inputs: Path, tmp_path: Path, capsys: Any, lmbda: float) -> None:
    path = write_rows(tmp_path / "texts.jsonl", prose(5))
    data = recipe(inputs, tmp_path / "run", data__datasets=[{"path": str(path)}], train__lmbda=lmbda)
    assert main_with(data) == 2
    assert "data.datasets.0" in (said := one_message(capsys)) and "prompt" in said


def test_prompts_alone_serve_on_policy_steps_alone(inputs: Path, tmp_path: Path, capsys: Any) -> None:
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"{a} + 1 ="} for a in range(9)])
    sources = [{"path": str(path)}]
    assert main_with(recipe(inputs, tmp_path / "on", data__datasets=sources, train__lmbda=1.0)) == 0
    assert main_with(recipe(inputs, tmp_path / "mixed", data__datasets=sources)) == 2
    assert "accepted are `messages` | `prompt` and `completion`" in one_message(capsys)
    assert main_with(recipe(inputs, tmp_path / "seq", data__datasets=sources, train__seq_kd=True)) == 0
