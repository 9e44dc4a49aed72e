"""A student and a teacher that FSDP2 shards, in two processes on the CPU, beside the same ones whole.

`fsdp2_worker.py` trains both sides with the trainer's own loss.  Not bitwise: each process adds up its own rows before
the sums are added, so float32 rounds in another order.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from launches import ROOT, launch, make_inputs, recipe, torchrun, write_recipe

pytestmark = pytest.mark.distributed
EQUAL = 1e-5
CASES = [f"{head}-{way}" for head in ("tied", "untied") for way in ("torch", "accelerate")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fsdp2")
    program = [str(ROOT / "tests" / "distributed" / "fsdp2_worker.py"), str(make_inputs(folder)), f"{folder}/out.json"]
    done = launch(torchrun(), program)
    assert done.returncode == 0, done.stdout[-6000:]
    return json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_it_ran_sharded(found: dict[str, Any], case: str) -> None:
    assert found[case]["world"] == 2
    layers = {"student": 2, "teacher": 3}
    for name in layers:
        proof = found[case][name]
        assert proof["class"] == "FSDPModule" and proof["units"] > layers[name], "layers and root"
        assert all(proof["sharded"])
        here, whole = proof["held"]
        assert whole / 2 <= here < 0.6 * whole


@pytest.mark.parametrize("case", CASES)
def test_same_losses_and_gradient_norms(found: dict[str, Any], case: str) -> None:
    for whole, split in found[case]["steps"]:
        assert split == pytest.approx(whole, rel=EQUAL)


@pytest.mark.parametrize("case", CASES)
def test_same_measured_values(found: dict[str, Any], case: str) -> None:
    whole, split = found[case]["measured"]
    assert split == pytest.approx(whole, rel=EQUAL)


@pytest.mark.parametrize("case", CASES)
def test_same_held_out_values(found: dict[str, Any], case: str) -> None:
    whole, split = found[case]["held_out"]
    assert split == pytest.approx(whole, rel=EQUAL) and {"ce", "kl", "bits_per_byte"} <= split.keys()


@pytest.mark.parametrize("case", CASES)
def test_same_weights_in_the_end(found: dict[str, Any], case: str) -> None:
    assert found[case]["weights"] < EQUAL


@pytest.mark.parametrize("case", CASES)
def test_student_and_teacher_generate_the_same(found: dict[str, Any], case: str) -> None:
    whole, split = found[case]["answers"]
    assert split == whole


def test_loss_is_not_rounded_to_bfloat16(found: dict[str, Any]) -> None:
    """Under accelerate's mixed precision FSDP2 rounds what a module returns, the loss among it."""
    rounded = found["rounded"]
    assert rounded["dtype"] == "torch.float32"
    assert rounded["loss"] == pytest.approx(rounded["expected"], rel=1e-6)
    assert rounded["gradient"] > 0


def test_fsdp_on_a_cpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """accelerate would train whole copies of the model there, without a word."""
    from llmkd.train import main

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert main([str(write_recipe(tmp_path / "run.yaml", recipe(tmp_path)))]) == 2
    assert "accelerate shards with FSDP on GPUs alone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
