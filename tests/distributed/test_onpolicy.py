"""On-policy distillation in one process and in two, started by torchrun: same steps, losses, gradients and model.

The student writes the likeliest tokens, since two processes draw others than one; the teacher, whose completions do not
depend on the processes, draws.
"""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from launches import changed, differences, halved, lines, make_inputs, proofs, recipe, run_here, run_in_two, torchrun

pytestmark = pytest.mark.distributed
EQUAL = 1e-5
Runs = dict[str, tuple[Path, Path]]


def recipes(inputs: Path) -> dict[str, dict[str, Any]]:
    base = changed(
        recipe(inputs), objective={"terms": {"kd": {"term": "jsd", "beta": 0.3}}}, eval={"datasets": []},
        train={"method": "onpolicy", "max_completion_length": 8, "max_steps": 6, "lmbda": 0.5,
               "eval_strategy": "no", "eval_steps": None},
    )  # fmt: skip
    return {
        "mixed": changed(base, train={"generation_kwargs": {"do_sample": False}}),
        "seq": changed(base, train={"lmbda": 0.0, "seq_kd": True}),
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    inputs = make_inputs(tmp_path_factory.mktemp("inputs"))
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    wanted = recipes(inputs)
    pairs = run_in_two(torchrun(), two, {n: halved(r) for n, r in wanted.items()}, cut={"mixed": 3})
    return {name: (run_here(one / f"{name}.yaml", content), pairs[name]) for name, content in wanted.items()}


def test_it_ran_distributed(runs: Runs) -> None:
    for _, two in runs.values():
        for proof in (p for rank in proofs(two) for p in rank):
            assert (proof["world"], proof["wrapper"]) == (2, "DistributedDataParallel")
    first, second = ([n for proof in rank for n in proof["counted"]] for rank in proofs(runs["mixed"][1]))
    assert first != second, "both processes had the same rows"


@pytest.mark.parametrize("name", ["mixed", "seq"])
def test_same_losses_and_gradients(runs: Runs, name: str) -> None:
    """`mixed` was cut off in two processes and went on."""
    found = differences(*runs[name], "loss")
    clocks = ("seconds", "peak_memory", "step_time")
    assert {k: v for k, v in found.items() if v > EQUAL and k not in clocks} == {}
    steps = lines(runs[name][0], "loss").values()
    assert {row["on_policy"] for row in steps} == ({0.0, 1.0} if name == "mixed" else {0.0})


@pytest.mark.parametrize("name", ["mixed", "seq"])
def test_same_final_model(runs: Runs, name: str) -> None:
    one, two = (load_file(run / "model" / "model.safetensors") for run in runs[name])
    assert all(weight.sub(two[key]).abs().max() < EQUAL for key, weight in one.items())


def test_the_teacher_wrote_the_same(runs: Runs) -> None:
    one, two = ((run / "teacher_completions.jsonl").read_text() for run in runs["seq"])
    assert sorted(one.split("\n")[1:]) == sorted(two.split("\n")[1:])
