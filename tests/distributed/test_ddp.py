"""One process and two under DDP, started by torchrun, over the same rows: same losses, gradients, metrics and model.

Not bitwise: each process adds up its own rows before the sums are added, so float32 rounds in another order.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from launches import (
    MANY_TERMS,
    STEPS,
    WORKER,
    changed,
    differences,
    finish,
    halved,
    launch,
    lines,
    make_inputs,
    proofs,
    recipe,
    run_here,
    run_in_two,
    start,
    torchrun,
    write_recipe,
)

pytestmark = pytest.mark.distributed
EQUAL = 1e-5
CUT = 7
Runs = dict[str, tuple[Path, Path]]


def recipes(inputs: Path) -> dict[str, dict]:
    untied, tied = recipe(inputs), recipe(inputs, "tied", "tied_teacher")
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    stream = [{**untied["data"]["datasets"][0], "streaming": True}]
    everywhere = {"kd": {"term": "forward_kl"}, "ce": {"term": "cross_entropy", "weight": 0.5}}
    fresh = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 2, "tie_word_embeddings": True, "initializer_range": 0.1}  # fmt: skip
    return {
        "untied": untied,
        "resumed": changed(tied, train={"logging_steps": 2}),
        "lora": changed(tied, student={"lora": lora}, train={"gradient_checkpointing": True, "learning_rate": 0.02}),
        "packed": changed(untied, train={"packing": True}),
        "terms": changed(untied, objective={"terms": MANY_TERMS, "temperature": {"student": 1.5, "teacher": 1.5}}),
        "stream": changed(untied, data={"datasets": stream}, objective={"terms": everywhere}, eval={"datasets": []},
                          train={"eval_strategy": "no", "max_length": 24}),
        "fresh": changed(untied, student={"model_name_or_path": None, "from_config": fresh,
                         "tokenizer_name_or_path": str(inputs / "tied")}),
    }  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def runs(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Name -> run folders of one process and of two; `resumed` was cut off in two processes and went on."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    wanted = recipes(inputs)
    pairs = run_in_two(torchrun(), two, {n: halved(r) for n, r in wanted.items()}, cut={"resumed": CUT})
    return {name: (run_here(one / f"{name}.yaml", content), pairs[name]) for name, content in wanted.items()}


def test_it_ran_distributed(runs: Runs) -> None:
    for name, (_, two) in runs.items():
        for proof in (p for rank in proofs(two) for p in rank):
            assert (proof["world"], proof["wrapper"]) == (2, "DistributedDataParallel"), name
        assert json.loads((two / "summary.json").read_text())["processes"] == 2


def test_ranks_had_unequal_counts_and_empty_batches(runs: Runs) -> None:
    """Otherwise a count of one rank in place of all, or a rank that waits for one without rows, would not show."""
    first, second = (rank[0]["counted"] for rank in proofs(runs["untied"][1]))
    assert sum(a != b for a, b in zip(first, second, strict=True)) > STEPS
    assert any(a == 0 and b > 0 for a, b in [*zip(first, second, strict=True), *zip(second, first, strict=True)])


@pytest.mark.parametrize("name", ["untied", "resumed", "lora", "packed", "terms", "stream", "fresh"])
def test_same_losses_and_gradients(runs: Runs, name: str) -> None:
    one, two = runs[name]
    found = differences(one, two, "loss")
    assert found["loss"] < EQUAL and found["grad_norm"] < EQUAL, found
    assert {k: v for k, v in found.items() if v > EQUAL and k not in ("seconds", "peak_memory")} == {}
    assert len({row["loss"] for row in lines(one, "loss").values()}) > STEPS // 3


@pytest.mark.parametrize("name", ["untied", "resumed", "lora", "packed", "terms", "fresh"])
def test_same_evaluations_while_training(runs: Runs, name: str) -> None:
    found = differences(*runs[name], "eval/a/ce")
    assert {k: v for k, v in found.items() if v > EQUAL and k not in ("seconds", "peak_memory")} == {}
    assert {"eval/a/kl", "eval/b/bits_per_byte", "eval/mean/kl"} <= found.keys()


@pytest.mark.parametrize("name", ["untied", "resumed", "lora", "packed", "terms", "stream", "fresh"])
def test_same_final_model(runs: Runs, name: str) -> None:
    one, two = (load_file(run / "model" / "model.safetensors") for run in runs[name])
    assert one.keys() == two.keys()
    for key, weight in one.items():
        assert weight.sub(two[key]).abs().max() < EQUAL, key


def test_resumed_in_the_middle(runs: Runs) -> None:
    for rank in proofs(runs["resumed"][1]):
        assert [len(p["counted"]) for p in rank] == [2 * CUT, 2 * (STEPS - 5)]


def test_only_the_first_process_writes_and_prints(runs: Runs) -> None:
    two = runs["untied"][1]
    one_each = [line["step"] for line in map(json.loads, (two / "metrics.jsonl").read_text().splitlines())]
    trained = [json.loads(line)["step"] for line in (two / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert trained == list(range(1, STEPS + 1)) and one_each == sorted(one_each)
    output = (two.parent / "output.txt").read_text()
    assert output.count(f"run folder: {two.resolve()}") == 1
    assert output.count("student: offpolicy") == len(runs) + 1
    assert output.count("longer than max_length 48 and were truncated") % 2 == 0


def test_real_command_warns_of_another_world_size(inputs: Path, runs: Runs, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "plain.yaml", halved(recipe(inputs)))
    done = launch(torchrun("-m"), ["llmkd.train", str(path), "run.world_size=8"])
    assert done.returncode == 0, done.stdout[-4000:]
    assert done.stdout.count("run.world_size: the recipe is meant for 8 processes, this is a run of 2") == 1
    assert json.loads((tmp_path / "plain" / "summary.json").read_text())["processes"] == 2
    assert differences(runs["untied"][0], tmp_path / "plain", "loss")["loss"] < EQUAL


def test_error_on_one_rank_ends_both_with_one_message(inputs: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "bad.yaml", halved(recipe(inputs)))
    done = launch(torchrun(), [str(WORKER), f"{path}!3"], timeout=120)
    assert done.returncode != 0
    said = [line for line in done.stdout.splitlines() if line.startswith(("error", "stopped"))]
    assert said == ["error: row 17 of the second process is bad"], done.stdout[-4000:]
    assert "]: Traceback" not in done.stdout, "a traceback of one of the processes"


@pytest.mark.full
def test_error_on_both_ranks_is_said_once(inputs: Path, tmp_path: Path) -> None:
    content = recipe(inputs)
    content["data"]["datasets"][1]["path"] = str(inputs / "absent.jsonl")
    done = launch(torchrun("-m"), ["llmkd.train", str(write_recipe(tmp_path / "bad.yaml", content))], timeout=120)
    assert done.returncode != 0
    assert done.stdout.count("error: ") == 1 and "absent.jsonl" in done.stdout, done.stdout[-4000:]
    assert "]: Traceback" not in done.stdout


@pytest.mark.full
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_stopped_or_killed_run_goes_on_where_it_was(inputs: Path, tmp_path: Path, end: int) -> None:
    """Ctrl-C for the whole launch, or the death of one process: it ends soon, and resumed it is, bitwise, the run that
    was never stopped."""
    options = {"max_steps": 60, "save_steps": 10, "eval_strategy": "no"}
    content = halved(changed(recipe(inputs), train=options, eval={"datasets": []}))
    whole, stopped = (write_recipe(tmp_path / f"{name}.yaml", content) for name in ("whole", "stopped"))
    assert launch(torchrun("-m"), ["llmkd.train", str(whole)]).returncode == 0
    process = start(torchrun("-m"), ["llmkd.train", str(stopped)])
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 25)
    if end == signal.SIGINT:
        os.killpg(process.pid, end)
    else:
        psutil.Process(process.pid).children()[1].send_signal(end)
    done = finish(process, timeout=60)
    assert done.returncode != 0 and not (tmp_path / "stopped" / "summary.json").is_file()
    assert done.stdout.count("run the same command with run.resume=auto") == (1 if end == signal.SIGINT else 0)
    again = launch(torchrun("-m"), ["llmkd.train", str(stopped), "run.resume=auto"])
    assert again.returncode == 0, again.stdout[-4000:]
    found = differences(tmp_path / "whole", tmp_path / "stopped", "loss")
    assert {k: v for k, v in found.items() if v > 0 and k not in ("seconds", "peak_memory")} == {}


def wait_for(condition: Callable[[], bool], timeout: float = 120) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)
