"""MiniLLM in two processes, each of which draws with the teacher: what it draws from, and the loss of both together.

Two processes draw other tokens than one, so each is held against plain forward passes of the models from disk.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from launches import ROOT, accelerate, changed, launch, lines, make_inputs, proofs, recipe, torchrun, write_recipe
from minillm import by_hand, check_drawn

pytestmark = pytest.mark.distributed
WORKER = ROOT / "tests" / "distributed" / "minillm_worker.py"
Drawn = list[tuple[list[tuple[Tensor, Tensor]], list[dict[str, Tensor]]]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def minillm(inputs: Path) -> dict[str, Any]:
    weighed = {"by": "importance"}
    terms = {
        "token": {"term": "reverse_kl", "token_weight": weighed},
        "future": {"term": "future_reverse_kl", "token_weight": weighed},
    }
    return changed(
        recipe(inputs), eval={"datasets": []},
        objective={"terms": terms, "temperature": {"student": 1.0, "teacher": 1.0}},
        train={"method": "onpolicy", "max_completion_length": 6, "max_steps": 2, "teacher_mixture": 0.3,
               "eval_strategy": "no", "eval_steps": None},
    )  # fmt: skip


def run(launcher: list[str], folder: Path, content: dict[str, Any]) -> tuple[Path, Drawn]:
    path = write_recipe(folder / "run.yaml", content)
    done = launch(launcher, [str(WORKER), str(path)])
    assert done.returncode == 0, done.stdout[-8000:]
    return folder / "run", [torch.load(folder / f"run-drawn{rank}.pt") for rank in range(2)]


def check(folder: Path, drawn: Drawn, inputs: Path) -> None:
    models = [AutoModelForCausalLM.from_pretrained(inputs / name).eval() for name in ("untied", "teacher")]
    first, second = ([b["input_ids"].tolist() for b in batches] for _, batches in drawn)
    assert first != second, "both processes wrote the same"
    tokens = []
    for seen, batches in drawn:
        assert len(batches) == 2 and check_drawn(seen, *models, 0.3) > 20
        tokens += [t for batch in batches for t in by_hand(*models, batch, 0.3, mean=True, deaf=False)]
    means = {
        "token": sum(t["w"] * t["kl"] for t in tokens) / len(tokens),
        "future/value": sum(-t["w"] * t["A"] * t["logq"] for t in tokens) / len(tokens),
        "future/return": sum(t["A"] for t in tokens) / len(tokens),
        "importance_weight": sum(t["w"] for t in tokens) / len(tokens),
    }
    line = lines(folder, "loss")[1]
    assert line["tokens"] == len(tokens)
    assert line["loss"] == pytest.approx(means.pop("token") + means["future/value"], rel=1e-4)
    assert {name: line[name] for name in means} == pytest.approx(means, rel=1e-4)
    assert set(lines(folder, "loss")) == {1, 2}


def test_each_process_draws_with_the_teacher(inputs: Path, tmp_path: Path) -> None:
    folder, drawn = run(torchrun(), tmp_path, minillm(inputs))
    assert all(p["wrapper"] == "DistributedDataParallel" and p["world"] == 2 for rank in proofs(folder) for p in rank)
    check(folder, drawn, inputs)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs llmkd[deepspeed]")
def test_sharded_student_and_teacher_draw_together(inputs: Path, tmp_path: Path) -> None:
    """Under ZeRO-3, where both are gathered to draw, and asked in parts to score what was drawn."""
    folder, drawn = run(accelerate("zero3.yaml", tmp_path), tmp_path, minillm(inputs))
    for proof in (p for rank in proofs(folder) for p in rank):
        assert (proof["stage"], proof["teacher_wrapper"]) == (3, "DeepSpeedEngine")
        assert proof["student"][0] < proof["student"][1] and proof["teacher"][0] < proof["teacher"][1]
    check(folder, drawn, inputs)
