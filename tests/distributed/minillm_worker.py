"""Runs a recipe of MiniLLM as `worker.py` does, and keeps what this process drew and trained on in its first step.

    torchrun --nproc_per_node 2 tests/distributed/minillm_worker.py RECIPE.yaml

Beside RECIPE.yaml stands RECIPE-drawnN.pt afterwards: what the sampler was asked and said, and the micro-batches.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from worker import prepare_deepspeed, run

from llmkd.trainers.mixed_sampling import TeacherMixed
from llmkd.trainers.onpolicy import OnPolicyTrainer

drawn: list[tuple[Tensor, Tensor]] = []
trained: list[dict[str, Tensor]] = []


def watch() -> None:
    ask, compute = TeacherMixed.__call__, OnPolicyTrainer.compute_loss

    def asked(self: TeacherMixed, input_ids: Tensor, scores: Tensor) -> Tensor:
        out = ask(self, input_ids, scores)
        if not trained:
            drawn.append((input_ids.clone(), out.clone()))
        return out

    def computed(self: OnPolicyTrainer, model: Any, inputs: Any, *rest: Any, **more: Any) -> Tensor:
        if self.state.global_step == 0:
            trained.append({k: v.clone() for k, v in inputs.items()})
        return compute(self, model, inputs, *rest, **more)

    TeacherMixed.__call__, OnPolicyTrainer.compute_loss = asked, computed  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        prepare_deepspeed()
    watch()
    run(sys.argv[1])
    torch.save((drawn, trained), Path(sys.argv[1]).with_suffix("").as_posix() + f"-drawn{dist.get_rank()}.pt")
