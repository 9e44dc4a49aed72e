"""Runs recipes as `-m llmkd.train` does, one after the other, and writes what this process saw of each.

    torchrun --nproc_per_node 2 tests/distributed/worker.py RECIPE.yaml [RECIPE.yaml ...]

Beside RECIPE.yaml stands RECIPE-rankN.json afterwards: a Proof for every training of the run.  RECIPE.yaml@7 is cut off
after step 7 and resumed; with RECIPE.yaml!3 the second process fails after step 3, and the others do not.
"""

import json
import os
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback

import llmkd.job
from llmkd.backbone import head_module
from llmkd.train import main

# So small a model would be kept whole from the first step on: let ZeRO-3 keep nothing, as it does with large ones.
KEEP_NOTHING = dict.fromkeys(
    ("stage3_max_reuse_distance", "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size"), 0
)


@dataclass
class Proof:
    """world: processes; wrapper: class of what is called; stage: of ZeRO; student, teacher: numbers of the parameters
    that this process owns, and how many there are; counted: counted tokens of each micro-batch of this process; head:
    numbers of the head's weight that were here after the forward pass of the loss, before the backward pass."""

    world: int
    wrapper: str
    stage: int | None
    student: list[int]
    teacher: list[int]
    teacher_wrapper: str
    counted: list[int] = field(default_factory=list)
    head: list[int] = field(default_factory=list)


class Cut(BaseException):
    """The end of a process, as far as a run is concerned."""


def owned(model: nn.Module) -> list[int]:
    here = sum(p.ds_tensor.numel() if hasattr(p, "ds_tensor") else p.numel() for p in model.parameters())
    return [here, sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())]


class Witness(TrainerCallback):
    def __init__(self, cut: int | None, fail: int | None) -> None:
        self.job: Any = None
        self.proof: Proof | None = None
        self.cut = cut
        self.fail = fail

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        trainer = self.job.trainer
        wrapped = trainer.model_wrapped
        teacher = next(iter(self.job.teachers.values()), None)
        self.proof = proof = Proof(
            world=trainer.accelerator.num_processes,
            wrapper=type(wrapped).__name__,
            stage=wrapped.zero_optimization_stage() if hasattr(wrapped, "zero_optimization_stage") else None,
            student=owned(trainer.model),
            teacher=owned(teacher.model) if teacher else [],
            teacher_wrapper=type(teacher.wrapped).__name__ if teacher else "",
        )
        compute = trainer.compute_loss

        def recorded(model: Any, inputs: Any, **rest: Any) -> Any:
            counted = inputs["counted"] if "counted" in inputs else inputs["completion_mask"]
            proof.counted.append(int(counted.sum()))
            loss = compute(model, inputs, **rest)
            proof.head.append(head_module(trainer.model).weight.numel())
            return loss

        trainer.compute_loss = recorded

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == self.cut:
            raise Cut
        if state.global_step == self.fail and dist.get_rank() == 1:
            raise ValueError("row 17 of the second process is bad")


def run(argument: str) -> None:
    path, mark, step = re.fullmatch(r"(.*?)(?:([@!])(\d+))?", argument).groups()
    path = Path(path)
    cut, fail = (int(step) if mark == m else None for m in "@!")
    witnesses: list[Witness] = []

    def witnessed(recipe: Any, callbacks: list[Any], **rest: Any) -> Any:
        witness = Witness(None if len(witnesses) else cut, fail)
        witnesses.append(witness)
        witness.job = build(recipe, callbacks=[*callbacks, witness], **rest)
        return witness.job

    build, llmkd.job.build = llmkd.job.build, witnessed
    try:
        code = main([str(path)])
    except Cut:
        code = main([str(path), "run.resume=auto"])
    llmkd.job.build = build
    proofs = [asdict(w.proof) for w in witnesses if w.proof]
    path.with_name(f"{path.stem}-rank{dist.get_rank()}.json").write_text(json.dumps(proofs))
    if code:
        sys.exit(code)


def prepare_deepspeed() -> None:
    import deepspeed

    initialize = deepspeed.initialize

    def strict(*args: Any, **options: Any) -> Any:
        config = options.get("config") or options["config_params"]
        config["zero_optimization"].update(KEEP_NOTHING)
        return initialize(*args, **options)

    deepspeed.initialize = strict
    # Reductions through shared memory would be compiled first, with a compiler that may not be there.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        prepare_deepspeed()
    for name in sys.argv[1:]:
        run(name)
