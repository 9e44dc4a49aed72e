"""One process and two under DeepSpeed, started by `accelerate launch` with the configs that are shipped, over the same
rows.  Under ZeRO-3 student and teacher are sharded, and the worker lets it keep no weight between two uses.

Not bitwise: each process adds up its own rows before the sums are added, so float32 rounds in another order.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from launches import (
    MANY_TERMS,
    STEPS,
    WORKER,
    accelerate,
    changed,
    differences,
    halved,
    launch,
    make_inputs,
    proofs,
    recipe,
    run_here,
    run_in_two,
    write_recipe,
)

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs llmkd[deepspeed]"),
]
EQUAL = 1e-5
CUT = 7
TASKS = [{"task": "arithmetic", "levels": [1], "n": 3, "max_new_tokens": 8}]
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
FRESH = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 2, "tie_word_embeddings": True, "initializer_range": 0.1}  # fmt: skip
Runs = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def here(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs of one process: untied heads with two terms, tied ones with many."""
    folder = tmp_path_factory.mktemp("one")
    return {name: run_here(folder / f"{name}.yaml", content) for name, content in plain(inputs).items()}


def plain(inputs: Path) -> dict[str, dict[str, Any]]:
    tied = changed(recipe(inputs, "tied", "tied_teacher"), objective={"terms": MANY_TERMS})
    return {"untied": recipe(inputs), "tied": tied}


def pairs(config: str, here: dict[str, Path], inputs: Path, folder: Path) -> Runs:
    """Each head in one process and in two; the tied one was cut off in two processes and went on."""
    wanted = {name: halved(content) for name, content in plain(inputs).items()}
    two = run_in_two(accelerate(config, folder), folder, wanted, cut={"tied": CUT})
    return {name: (here[name], two[name]) for name in wanted}


@pytest.fixture(scope="module")
def zero2(here: dict[str, Path], inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return pairs("zero2.yaml", here, inputs, tmp_path_factory.mktemp("zero2"))


@pytest.fixture(scope="module")
def zero3(here: dict[str, Path], inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return pairs("zero3.yaml", here, inputs, tmp_path_factory.mktemp("zero3"))


def assert_equal(one: Path, two: Path) -> None:
    """Every number that was logged, and the final model."""
    for key in ("loss", "eval/a/ce"):
        found = differences(one, two, key)
        assert {k: v for k, v in found.items() if v > EQUAL and k not in ("seconds", "peak_memory")} == {}
    assert found.keys() >= {"eval/a/kl", "eval/mean/bits_per_byte"}
    assert "grad_norm" in differences(one, two, "loss")
    first, second = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    assert first.keys() == second.keys()
    assert all(weight.sub(second[key]).abs().max() < EQUAL for key, weight in first.items())


def assert_same_results(one: Path, two: Path) -> None:
    first, second = (json.loads((run / "summary.json").read_text())["results"] for run in (one, two))
    assert first.keys() == second.keys()
    for name, result in first.items():
        assert second[name]["tasks"] == result["tasks"], name
        assert second[name]["parameters"] == result["parameters"], name
        for domain, measures in result["held_out"].items():
            assert second[name]["held_out"][domain] == pytest.approx(measures, rel=EQUAL), (name, domain)


def test_zero2_ran_distributed(zero2: Runs) -> None:
    for _, two in zero2.values():
        for proof in (p for rank in proofs(two) for p in rank):
            assert (proof["world"], proof["wrapper"], proof["stage"]) == (2, "DeepSpeedEngine", 2)


def test_zero2_shards_the_optimizer(zero2: Runs) -> None:
    """The moments of a saved checkpoint are in two files, each with half of them."""
    _, two = zero2["untied"]
    files = sorted((two / f"checkpoint-{STEPS}" / f"global_step{STEPS}").glob("*_optim_states.pt"))
    assert len(files) == 2
    sizes = []
    for file in files:
        state = torch.load(file, weights_only=False)["optimizer_state_dict"]["base_optimizer_state"]
        sizes.append(sum(t.numel() for s in state["state"].values() for t in s.values() if t.dim()))
    parameters = proofs(two)[0][0]["student"][1]
    assert sum(sizes) >= 2 * parameters and max(sizes) < 1.1 * parameters


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_zero2_is_one_process(zero2: Runs, head: str) -> None:
    assert_equal(*zero2[head])
    assert_same_results(*zero2[head])


def test_zero3_ran_sharded(zero3: Runs) -> None:
    for _, two in zero3.values():
        for proof in (p for rank in proofs(two) for p in rank):
            assert (proof["world"], proof["wrapper"], proof["stage"]) == (2, "DeepSpeedEngine", 3)
            assert proof["teacher_wrapper"] == "DeepSpeedEngine"
            for own, whole in (proof["student"], proof["teacher"]):
                assert whole / 2 <= own < 0.6 * whole


def test_zero3_gathers_the_head_for_the_loss_alone(zero3: Runs) -> None:
    """Its weight is gone between the forward and the backward pass: both gather it."""
    for _, two in zero3.values():
        for proof in (p for rank in proofs(two) for p in rank):
            assert set(proof["head"]) == {0}


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_zero3_is_one_process(zero3: Runs, head: str) -> None:
    assert_equal(*zero3[head])
    assert_same_results(*zero3[head])


def test_resumed_in_the_middle(zero2: Runs, zero3: Runs) -> None:
    for runs in (zero2, zero3):
        for rank in proofs(runs["tied"][1]):
            assert [len(p["counted"]) for p in rank] == [2 * CUT, 2 * (STEPS - 5)]


@pytest.fixture(scope="module")
def all_of_it(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Under ZeRO-3: a fresh student with a baseline, samples, tasks and another dtype at the end; and LoRA."""
    one, folder = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    untied, tied = (
        changed(r, train={"max_steps": 6, "eval_steps": 3, "save_steps": 3}) for r in plain(inputs).values()
    )
    fresh = {"model_name_or_path": None, "from_config": FRESH, "tokenizer_name_or_path": str(inputs / "tied"),
             "save_dtype": "bfloat16"}  # fmt: skip
    wanted = {
        "fresh": changed(untied, student=fresh, eval={"baseline": True, "samples": 2, "tasks": TASKS}),
        "lora": changed(tied, student={"lora": LORA}, eval={"samples": 1, "tasks": TASKS},
                        train={"gradient_checkpointing": True, "learning_rate": 0.02, "packing": True}),
    }  # fmt: skip
    two = run_in_two(
        accelerate("zero3.yaml", folder), folder, {n: halved(r) for n, r in wanted.items()}, cut={"lora": 4}
    )
    return {name: (run_here(one / f"{name}.yaml", content), two[name]) for name, content in wanted.items()}


@pytest.mark.parametrize("name", ["fresh", "lora"])
def test_zero3_does_all_that_one_process_does(all_of_it: Runs, name: str) -> None:
    one, two = all_of_it[name]
    assert proofs(two)[0][0]["stage"] == 3
    for key in ("loss", "eval/a/ce"):
        found = differences(one, two, key)
        assert {k: v for k, v in found.items() if v > EQUAL and k not in ("seconds", "peak_memory")} == {}
    assert_same_results(one, two)
    assert (two / "samples.jsonl").read_text() == (one / "samples.jsonl").read_text()


def test_zero3_baseline_is_the_one_of_one_process(all_of_it: Runs) -> None:
    one, two = (run / "baseline" for run in all_of_it["fresh"])
    assert differences(one, two, "loss")["loss"] < EQUAL
    assert_same_results(one, two)


@pytest.mark.parametrize(("name", "dtype"), [("fresh", torch.bfloat16), ("lora", torch.float32)])
def test_zero3_final_model_loads_and_is_that_of_one_process(all_of_it: Runs, name: str, dtype: torch.dtype) -> None:
    first, second = (AutoModelForCausalLM.from_pretrained(run / "model", dtype="auto") for run in all_of_it[name])
    assert second.dtype == dtype
    # Two float32 weights on either side of a rounding border are the last bit of a bfloat16 apart.
    tolerance = EQUAL if dtype == torch.float32 else 2**-7
    for key, weight in first.state_dict().items():
        assert torch.allclose(weight.float(), second.state_dict()[key].float(), rtol=tolerance, atol=EQUAL), key
    tokenizer = AutoTokenizer.from_pretrained(all_of_it[name][1] / "model")
    ids = tokenizer("the red cat", return_tensors="pt").input_ids
    assert second.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]


@pytest.mark.full
@pytest.mark.parametrize(
    ("config", "settings", "train", "message"),
    [
        ("zero3.yaml", {"zero3_save_16bit_model": False}, {}, "set zero3_save_16bit_model: true"),
        ("zero3.yaml", {}, {"muon_learning_rate": 0.01}, "Muon needs whole matrices"),
        ("fsdp2.yaml", {}, {}, "accelerate shards with FSDP on GPUs alone"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    inputs: Path, tmp_path: Path, config: str, settings: dict[str, Any], train: dict[str, Any], message: str
) -> None:
    content = halved(changed(recipe(inputs), train=train))
    launcher = accelerate(config, tmp_path, **settings)
    done = launch(launcher, [str(WORKER), str(write_recipe(tmp_path / "bad.yaml", content))])
    assert done.returncode != 0 and done.stdout.count("error: ") == 1, done.stdout[-4000:]
    assert message in done.stdout and "]: Traceback" not in done.stdout
    assert not (tmp_path / "bad" / "metrics.jsonl").exists()
