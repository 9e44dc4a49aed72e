"""On-policy distillation in one process and in two, started by torchrun: same steps, losses, gradients and model.

The student writes the likeliest tokens, since two processes draw others than one; the teacher, whose completions do not
depend on the processes, draws.
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
Runs = dict[str, tuple[Path, Path]]


def recipes(inputs: Path) -> dict[str, dict[str, Any]]:
    base = changed(
        recipe(inputs), objective={"terms": {"kd": {"term": "jsd", "beta": 0.3}}}, eval={"datasets": []},
        train={"method": "onpolicy", "max_completion_length": 8, "max_steps": 6, "lmbda": 0.5,
               "eval_strategy": "no", "eval_steps": None},
    )  # fmt: skip
    likeliest = {"generation_kwargs": {"do_sample": False}}
    two_teachers = [*base["teachers"], {"name": "base", "model_name_or_path": str(inputs / "untied")}]
    anchored = {"kd": {"term": "jsd", "beta": 0.3, "teacher": "teacher"},
                "anchor": {"term": "reverse_kl", "teacher": "base", "weight": 0.5}}  # fmt: skip
    lora = changed(base, student={"lora": {"r": 4}}, train={**likeliest, "learning_rate": 0.01})
    lora |= {"teachers": two_teachers, "objective": {**base["objective"], "terms": anchored}}
    kinds = {"skl": {"term": "skew_forward_kl", "completions": "data", "normalize": "kept"},
             "srkl": {"term": "skew_reverse_kl", "completions": "own", "normalize": "kept"}}  # fmt: skip
    return {
        "mixed": changed(base, train=likeliest),
        "pairs": changed(base, train={**likeliest, "lmbda": None, "pairs": True}, objective={"terms": kinds}),
        "replay": changed(base, train={**likeliest, "lmbda": 1.0, "replay_capacity": 20, "max_steps": 9}),
        "lora": lora,
        "seq": changed(base, train={"lmbda": 0.0, "seq_kd": True}),
    }


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return recipes(make_inputs(tmp_path_factory.mktemp("inputs")))


@pytest.fixture(scope="module")
def here(wanted: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("one")
    return {name: run_here(folder / f"{name}.yaml", content) for name, content in wanted.items()}


@pytest.fixture(scope="module")
def runs(here: dict[str, Path], wanted: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Each in one process and in two; `mixed` and `replay` were cut off in two processes and went on."""
    halves = {name: halved(content) for name, content in wanted.items()}
    two = run_in_two(torchrun(), tmp_path_factory.mktemp("two"), halves, cut={"mixed": 3, "replay": 6})
    return {name: (here[name], two[name]) for name in wanted}


def test_it_ran_distributed(runs: Runs) -> None:
    for _, two in runs.values():
        for proof in (p for rank in proofs(two) for p in rank):
            assert (proof["world"], proof["wrapper"]) == (2, "DistributedDataParallel")
    first, second = ([n for proof in rank for n in proof["counted"]] for rank in proofs(runs["mixed"][1]))
    assert first != second, "both processes had the same rows"


@pytest.mark.parametrize("name", ["mixed", "pairs", "replay", "lora", "seq"])
def test_same_losses_and_gradients(runs: Runs, name: str) -> None:
    found = differences(*runs[name], "loss")
    assert {k: v for k, v in found.items() if v > EQUAL and k not in CLOCKS} == {}
    steps = lines(runs[name][0], "loss").values()
    assert {row["on_policy"] for row in steps} == {"seq": {0.0}, "pairs": {0.5}}.get(name, {0.0, 1.0})
    assert name != "replay" or sum(row["replay"] for row in steps) > 1
    assert name != "lora" or max(row["anchor/value"] for row in steps) > 1e-3


@pytest.mark.parametrize("name", ["mixed", "pairs", "replay", "lora", "seq"])
def test_same_final_model(runs: Runs, name: str) -> None:
    one, two = (load_file(run / "model" / "model.safetensors") for run in runs[name])
    assert all(weight.sub(two[key]).abs().max() < EQUAL for key, weight in one.items())


def test_the_teacher_wrote_the_same(runs: Runs) -> None:
    one, two = ((run / "teacher_completions.jsonl").read_text() for run in runs["seq"])
    assert sorted(one.split("\n")[1:]) == sorted(two.split("\n")[1:])


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs llmkd[deepspeed]")
def test_sharded_student_and_teacher_are_the_same(
    here: dict[str, Path], wanted: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Under ZeRO-3, where the student is gathered to write and the teacher to write and to be asked."""
    halves = {name: halved(content) for name, content in wanted.items()}
    two = run_in_two(accelerate("zero3.yaml", tmp_path), tmp_path, halves)
    for name, run in two.items():
        for proof in (p for rank in proofs(run) for p in rank):
            assert (proof["stage"], proof["teacher_wrapper"]) == (3, "DeepSpeedEngine")
            assert proof["student"][0] < proof["student"][1] and proof["teacher"][0] < proof["teacher"][1]
        found = differences(here[name], run, "loss")
        assert {k: v for k, v in found.items() if v > EQUAL and k not in CLOCKS} == {}
