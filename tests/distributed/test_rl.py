"""Reinforcement learning with a teacher in one process and in two: same steps, losses, gradients and model.

The student writes the likeliest tokens, since two processes draw others than one.  Then all completions of a prompt are
the same, and the reward, which counts its calls, tells them apart.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from launches import (
    accelerate,
    changed,
    differences,
    halved,
    lines,
    make_inputs,
    proofs,
    recipe,
    run_here,
    run_in_two,
    torchrun,
)

pytestmark = pytest.mark.distributed
EQUAL = 1e-5
CLOCKS = ("seconds", "peak_memory", "step_time")
REWARD = """
calls = 0


def third(prompt, completion, reference):
    global calls
    calls += 1
    if calls % 4 == 2:
        return float("nan")
    return float(calls % 4 == 3 or (calls % 4 == 0 and len(str(prompt)) % 2 == 0))
"""


def kdrl(inputs: Path, output: Path, policy: str = "grpo", beta: float = 0.0, **kd: Any) -> dict[str, Any]:
    """KDRL, two groups of four a step: one a process where there are two."""
    (output / "own.py").write_text(REWARD)
    data = changed(
        recipe(inputs), objective={"terms": {"policy": {"term": policy}, "kd": {"term": "reverse_kl", **kd}}},
        eval={"datasets": []},
        train={"method": "rl", "max_length": None, "max_completion_length": 8, "max_steps": 4, "num_generations": 4,
               "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "eval_strategy": "no",
               "eval_steps": None, "generation_kwargs": {"do_sample": False}, "learning_rate": 1e-3, "beta": beta},
    )  # fmt: skip
    data["objective"]["temperature"] = {"student": 1.0, "teacher": 1.0}
    data["rewards"] = [{"path": f"{output / 'own.py'}:third", "name": "third", "column": None, "correct": True}]
    return data


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    inputs, folder = make_inputs(tmp_path_factory.mktemp("inputs")), tmp_path_factory.mktemp("reward")
    return {
        "k2": kdrl(inputs, folder, weight=0.1),
        "kept": kdrl(inputs, folder, weight=0.1, estimator="exact", mask="incorrect", normalize="kept"),
        "shaped": kdrl(inputs, folder, beta=0.1, weight=0.1, estimator="k1_reward"),
        "nft": kdrl(inputs, folder, policy="nft", weight=1.0, estimator="topk", k=64),
    }


@pytest.fixture(scope="module")
def here(wanted: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("one")
    return {name: run_here(folder / f"{name}.yaml", content) for name, content in wanted.items()}


def assert_same(one: Path, two: Path) -> None:
    found = differences(one, two, "loss")
    assert {k: v for k, v in found.items() if v > EQUAL and k not in CLOCKS} == {}
    first = lines(one, "loss").values()
    heard = [row.get("kd/loss", row.get("kd/reverse_kl")) for row in first]
    assert all(row["policy/without_contrast"] < 1 for row in first) and min(heard) > 1e-3, "nothing is learned"
    assert {row["rewards/third/masked"] for row in first} == {2.0}


def test_two_processes_are_one(here: dict[str, Path], wanted: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    two = run_in_two(torchrun(), tmp_path, {name: halved(content) for name, content in wanted.items()})
    for name, run in two.items():
        for proof in (p for rank in proofs(run) for p in rank):
            assert (proof["world"], proof["wrapper"]) == (2, "DistributedDataParallel")
        assert_same(here[name], run)
        one, other = (load_file(folder / "model" / "model.safetensors") for folder in (here[name], run))
        apart = {key: float(weight.sub(other[key]).abs().max()) for key, weight in one.items()}
        assert max(apart.values()) < EQUAL, apart


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs llmkd[deepspeed]")
def test_sharded_student_and_teacher_are_the_same(
    here: dict[str, Path], wanted: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    halves = {name: halved(content) for name, content in wanted.items()}
    for name, run in run_in_two(accelerate("zero3.yaml", tmp_path), tmp_path, halves).items():
        for proof in (p for rank in proofs(run) for p in rank):
            assert (proof["stage"], proof["teacher_wrapper"]) == (3, "DeepSpeedEngine")
            assert proof["student"][0] < proof["student"][1] and proof["teacher"][0] < proof["teacher"][1]
        assert_same(here[name], run)
