"""Recipes of reinforcement learning, run whole on tiny models: what they leave, how they go on, what they refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkd.checks.recipe import opened
from llmkd.objectives import compiled
from llmkd.trainers.rl import RLTrainer

from runs import (
    assert_same_run,
    built,
    crashed,
    held_out,
    main_with,
    make_inputs,
    metrics,
    one_message,
    put,
    write_recipe,
    write_rows,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    write_rows(
        folder / "sums.jsonl", [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(5) for b in range(5)]
    )
    (folder / "own.py").write_text(
        "def short(prompt, completion, reference):\n    return float(len(completion) < 20)\n\n\n"
        "def broken(prompt, completion, reference):\n    raise KeyError('no such thing')\n\n\n"
        "def nan(prompt, completion, reference):\n    return float('nan')\n\n\n"
        "counted = 0\n\n\ndef every_fourth(prompt, completion, reference):\n    global counted\n    counted += 1\n"
        "    return float(counted % 4 == 0)\n\n\n"
        "calls = 0\n\n\ndef now_and_then(prompt, completion, reference):\n    global calls\n    calls += 1\n"
        "    return float('nan') if calls % 4 == 1 else float(calls % 4 == 2)\n"
    )
    return folder


def recipe(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """KDRL on sums, eight completions of two prompts a step; changes: dotted keys, with __ for the dots."""
    data = {
        "run": {"output_dir": str(output), "seed": 3, "resume": "auto"},
        "student": {"model_name_or_path": str(inputs / "student")},
        "teachers": [{"model_name_or_path": str(inputs / "teacher")}],
        "data": {"datasets": [{"path": str(inputs / "sums.jsonl"), "domain": "sums"}]},
        "objective": {"terms": {
            "policy": {"term": "grpo"},
            "kd": {"term": "reverse_kl", "weight": {"schedule": "linear", "from": 0.2, "to": 0.1, "steps": 4}},
        }},
        "rewards": [{"path": f"{inputs / 'own.py'}:short", "name": "short", "column": None, "correct": True}],
        "train": {
            "method": "rl", "use_cpu": True, "max_steps": 4, "per_device_train_batch_size": 8, "num_generations": 4,
            "max_completion_length": 12, "learning_rate": 1e-3, "disable_tqdm": True,
        },
        "eval": {},
    }  # fmt: skip
    for key, value in changes.items():
        put(data, key.replace("__", "."), value)
    return data


def test_a_run_leaves_what_every_run_leaves(inputs: Path, tmp_path: Path) -> None:
    evaluated = {"train__eval_strategy": "steps", "train__eval_steps": 2, "eval__samples": 1}
    data = recipe(inputs, tmp_path / "run", eval__datasets=held_out(inputs), **evaluated)
    assert main_with(data) == 0
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["kd/weight"] for line in lines] == pytest.approx([0.175, 0.15, 0.125, 0.1])
    for line in lines:
        assert {"kd/loss", "kd/reverse_kl", "reward", "rewards/short/mean", "entropy", "tokens"} <= line.keys()
    assert [line["step"] for line in metrics(tmp_path / "run") if "eval/mean/kl" in line] == [2, 4]
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert (
        set(results["student"]["held_out"]) == {"prose", "chats"}
        and results["student"]["tokens"] == lines[-1]["tokens"]
    )
    assert (tmp_path / "run" / "samples.jsonl").is_file()


ENTROPY = {"train__use_adaptive_entropy": True, "train__entropy_coef_delta": 0.5, "train__entropy_coef_max": 9.0,
           "train__entropy_target": 99.0}  # fmt: skip


@pytest.mark.parametrize(("crash", "more"), [(2, {}), (3, {}), (3, ENTROPY)], ids=["between", "within", "entropy"])
def test_broken_off_between_and_within_rollouts_it_goes_on_as_if_it_had_not(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: int, more: dict[str, Any]
) -> None:
    """A rollout serves two updates, twice: the checkpoint of an odd step falls inside one."""
    several = {
        "train__num_iterations": 2, "train__steps_per_generation": 2, "train__per_device_train_batch_size": 4,
        "train__max_steps": 6, "train__save_steps": 1, **more,
    }  # fmt: skip
    assert main_with(recipe(inputs, tmp_path / "whole", **several)) == 0
    crashed(monkeypatch, recipe(inputs, tmp_path / "broken", **several), crash, trainer=RLTrainer)
    assert main_with(recipe(inputs, tmp_path / "broken", **several)) == 0
    clock = ("step_time",)
    for folder in ("whole", "broken"):
        path = tmp_path / folder / "metrics.jsonl"
        lines = [{k: v for k, v in line.items() if k not in clock} for line in metrics(tmp_path / folder)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    weights = [line["kd/weight"] for line in metrics(tmp_path / "broken") if "loss" in line]
    assert weights == pytest.approx([0.175, 0.15, 0.125, 0.1, 0.1, 0.1]), "the floor is reached at step 4 and kept"


def test_a_task_is_data_and_its_grader_a_reward(inputs: Path, tmp_path: Path) -> None:
    data = recipe(
        inputs, tmp_path / "run", train__max_steps=1,
        data__datasets=[{"path": "llmkd/tasks", "name": "arithmetic", "max_rows": 8, "options": {"levels": [1]}}],
        rewards=[{"kind": "arithmetic", "correct": True}, {"kind": "length", "max_tokens": 8, "weight": 0.1}],
        objective__terms__kd__mask="group_all_wrong",
    )  # fmt: skip
    assert main_with(data) == 0
    line = metrics(tmp_path / "run")[0]
    assert line["rewards/length/mean"] < 0 and line["kd/kept"] == 1


def test_adapters_and_their_base_as_the_teacher_share_its_memory(inputs: Path, tmp_path: Path) -> None:
    data = recipe(
        inputs, tmp_path / "run", teachers=[{"model_name_or_path": str(inputs / "student")}],
        student__lora={"r": 4, "target_modules": "all-linear"},
    )  # fmt: skip
    job = built(data)
    (teacher,) = job.teachers.values()
    assert teacher.model is job.trainer.model
    base = {p.data_ptr() for n, p in job.trainer.model.named_parameters() if "lora_" not in n}
    assert {p.data_ptr() for n, p in teacher.model.named_parameters() if "lora_" not in n} == base
    job.trainer.train()
    lines = [line for line in job.trainer.state.log_history if "loss" in line]
    assert lines[0]["kd/reverse_kl"] == pytest.approx(0, abs=1e-6)
    assert lines[-1]["kd/reverse_kl"] > 1e-6
    assert not any(torch.isnan(p).any() for p in job.trainer.model.parameters())


def test_a_teacher_without_adapters_is_measured_without_them(inputs: Path, tmp_path: Path) -> None:
    """The same student twice: as a teacher apart, and as the one that takes no memory."""
    found = []
    for name, same in (("shared", "student"), ("apart", "copy")):
        if same == "copy":
            shutil.copytree(inputs / "student", tmp_path / "copy")
        teacher = str(inputs / "student" if same == "student" else tmp_path / "copy")
        data = recipe(
            inputs, tmp_path / name, teachers=[{"model_name_or_path": teacher, "dtype": "float32"}],
            student__lora={"r": 4, "target_modules": "all-linear"}, eval__datasets=held_out(inputs),
            train__learning_rate=1e-2,
        )  # fmt: skip
        assert main_with(data) == 0
        found.append(json.loads((tmp_path / name / "summary.json").read_text())["results"])
    shared, apart = ({d: m["ce"] for d, m in results["teacher"]["held_out"].items()} for results in found)
    assert shared == pytest.approx(apart, rel=1e-5)
    assert shared != pytest.approx({d: m["ce"] for d, m in found[0]["student"]["held_out"].items()}, rel=1e-3)


def test_a_reward_that_raises_is_masked_counted_and_named(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"path": f"{inputs / 'own.py'}:broken", "name": "broken", "column": None}
    data = recipe(inputs, tmp_path / "run", train__max_steps=1)
    data["rewards"].append(broken)
    assert main_with(data) == 0
    assert metrics(tmp_path / "run")[0]["rewards/broken/masked"] == 8
    assert "reward broken: sample 0" in caplog.text and "no such thing" in caplog.text


def test_a_correctness_that_is_no_number_is_masked_counted_and_teaches_nothing(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The only reward, of every completion: no advantage, nothing kept by a mask, and no NaN in the student."""
    data = recipe(inputs, tmp_path / "run", train__max_steps=1, objective__terms__kd__mask="incorrect")
    data["rewards"][0] |= {"path": f"{inputs / 'own.py'}:nan"}
    assert main_with(data) == 0
    line = metrics(tmp_path / "run")[0]
    assert line["rewards/short/masked"] == 8 and line["policy/without_contrast"] == 1
    assert (line["loss"], line["grad_norm"], line["kd/kept"]) == (0, 0, 0)
    assert "reward short: sample 0: gave nan, which is not finite" in caplog.text


def test_where_one_of_several_rewards_fails_nothing_is_learned_from_that_sample(inputs: Path, tmp_path: Path) -> None:
    """The sum of the others would be another reward: of a correct answer it would say that it is wrong."""
    data = recipe(inputs, tmp_path / "run", train__max_steps=1)
    data["rewards"][0]["path"] = f"{inputs / 'own.py'}:now_and_then"
    data["rewards"].append({"path": f"{inputs / 'own.py'}:short", "name": "other", "column": None, "weight": 0.0})
    trainer = built(data).trainer
    seen: list[Any] = []
    score = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: seen.append(score(rows)) or seen[-1]
    trainer.train()
    first, *others = seen[0]["advantages"].view(2, 4).T.tolist()
    assert first == [0, 0] and all(value != 0 for pair in others for value in pair)
    logged = trainer.state.log_history[0]
    assert (logged["rewards/short/masked"], logged["rewards/other/masked"]) == (2, 0)


def test_a_reward_that_is_only_watched_may_fail(inputs: Path, tmp_path: Path) -> None:
    """Its weight is 0: the sum of the others is whole."""
    data = recipe(inputs, tmp_path / "run", train__max_steps=1)
    data["rewards"][0]["path"] = f"{inputs / 'own.py'}:every_fourth"
    data["rewards"].append({"path": f"{inputs / 'own.py'}:nan", "name": "watched", "column": None, "weight": 0.0})
    assert main_with(data) == 0
    line = metrics(tmp_path / "run")[0]
    assert line["rewards/watched/masked"] == 8 and line["policy/without_contrast"] == 0 and line["reward_std"] > 0


def test_a_compiled_loss_is_the_same_loss(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BLOCK_BYTES", 4 * 384 * 16)
    exact = {"term": "reverse_kl", "estimator": "exact"}
    found = []
    for asked in (False, True):
        data = recipe(inputs, tmp_path / str(asked), objective__compiled=asked, objective__terms={"kd": exact},
                      rewards=[], train__max_steps=2)  # fmt: skip
        job = built(data)
        assert job.trainer.whole_terms["kd"].compiled == asked
        job.trainer.train()
        found.append([line["kd/loss"] for line in job.trainer.state.log_history if "loss" in line])
    assert found[0] == pytest.approx(found[1], rel=1e-4) and min(found[0]) > 0.01


def test_a_reward_that_raises_can_stop_the_run(inputs: Path, tmp_path: Path, capsys: Any) -> None:
    data = recipe(inputs, tmp_path / "run")
    data["rewards"][0] |= {"path": f"{inputs / 'own.py'}:broken", "on_error": "stop"}
    assert main_with(data) == 2
    assert "reward short: sample 0" in one_message(capsys)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": []}, "rewards: are missing"),
        ({"rewards__0__correct": False, "objective__terms__kd__mask": "incorrect"}, "mark one with correct: true"),
        ({"train__temperature": 0.7}, "objective.temperature.student"),
        ({"train__num_generations": 3}, "num_generations"),
        ({"teachers__0__template": "own"}, "give template: student"),
        ({"train__max_completion_length": 100000}, "leaves no room for a prompt"),
        ({"objective__terms__kd__estimator": "k4"}, "k1_reward, k2, k3, exact, topk"),
        ({"objective__terms__kd": {"term": "jsd", "estimator": "k2"}}, "estimates reverse_kl, not jsd"),
        ({"objective__terms__ce": {"term": "cross_entropy"}}, "is no divergence"),
        ({"objective__terms__kd__mask": "wrong"}, "mask: 'wrong' is not one of correct, incorrect, group_all_wrong"),
        ({"objective__terms__kd__mask": {"domains": ["sums"]}}, "give correct, incorrect or group_all_wrong"),
        ({"objective__terms__other": {"term": "nft"}}, "keep one of them"),
        ({"objective__terms__kd__advantage": "plain"}, "is read by the term nft, not by reverse_kl: leave it out"),
        ({"objective__terms__policy__negative_weight": 0.5}, "is read by the term nft, not by grpo: leave it out"),
        ({"objective__terms__policy": {"term": "nft", "negative_weight": -1}}, "negative_weight"),
        ({"objective__terms__policy": {"term": "nft", "advantage": "half"}}, "normalised, plain, unweighted"),
        ({"objective__terms__policy": {"term": "nft", "mask": "group_all_wrong"}}, "that nft learns nothing from"),
        ({"objective__terms__kd": {"term": "taid"}}, "adaptive (its default) is not read by method: rl"),
        ({"objective__terms__kd": {"term": "reverse_kl", "estimator": "topk"},
          "objective__temperature": {"teacher": 2.0}}, "kd hears the likeliest tokens of the teacher as it is"),
        ({"objective__compiled": True}, "objective.compiled: true, but no term is made over the whole vocabulary"),
        ({"train__beta": -0.1}, "train.beta: -0.1 would reward leaving the reference model"),
        ({"rewards__0__column": "solution"}, "there is no column 'solution'"),
        ({"train__method": "offpolicy"}, "grpo is a term of method: rl"),
        ({"train__method": "nft"}, "nft is a term: give method: rl and objective.terms: {policy: {term: nft}}"),
        ({"train__lmbda": 0.5}, "lmbda"),
        ({"train__temperature": "hot"}, "train.temperature"),
        ({"train__metric_for_best_model": "reward", "train__eval_strategy": "steps", "train__eval_steps": 2},
         "train.metric_for_best_model: eval/reward is not measured"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(inputs: Path, tmp_path: Path, capsys: Any, changes: dict, words: str) -> None:
    assert main_with(recipe(inputs, tmp_path / "run", **changes)) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_once_an_epoch_is_once_an_epoch(inputs: Path, tmp_path: Path) -> None:
    """Of the prompts, each drawn once; not of the one pass that a run is."""
    data = recipe(inputs, tmp_path / "run", train__max_steps=-1, train__num_train_epochs=3, train__save_steps=None,
                  train__save_strategy="epoch")  # fmt: skip
    args = built(data).trainer.args
    prompts_a_step = 8 / 4
    assert args.save_strategy == "steps" and abs(args.save_steps - 25 / prompts_a_step) < 1
    assert args.max_steps == pytest.approx(3 * args.save_steps, abs=3)
    data["train"] |= {"num_train_epochs": 0.5}
    args = built(data).trainer.args
    assert args.save_steps == args.max_steps > 1, "once at the end, where there is no whole epoch"


def test_a_mask_of_none_is_no_mask(inputs: Path, tmp_path: Path) -> None:
    (term,) = built(recipe(inputs, tmp_path / "run", objective__terms__kd__mask="none")).trainer.terms
    assert term.mask is None


def test_verify_of_such_a_recipe_says_what_it_cannot(inputs: Path, tmp_path: Path) -> None:
    path = write_recipe(recipe(inputs, tmp_path / "run"), tmp_path / "run.yaml")
    with pytest.raises(ValueError, match="verify without a recipe"), opened(str(path), [], None):
        pass


def test_a_prompt_as_long_as_the_context_is_named(inputs: Path, tmp_path: Path, capsys: Any) -> None:
    rows = [{"prompt": "1 + 1 =", "answer": "2"}, {"prompt": "seven letters " * 300, "answer": "7"}]
    data = recipe(inputs, tmp_path / "run", data__datasets=[{"path": str(write_rows(tmp_path / "long.jsonl", rows))}])
    assert main_with(data) == 2
    assert "data.datasets.0, row 1: the prompt has" in one_message(capsys)
