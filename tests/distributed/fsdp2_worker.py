"""Trains a student that FSDP2 shards beside the same student whole, in two processes on the CPU, and compares.

    torchrun --nproc_per_node 2 tests/distributed/fsdp2_worker.py INPUTS OUT.json

accelerate enters FSDP on GPUs alone, so what it does there is called here: its own sharding of a model, and torch's
plain one.  The loss is the trainer's own method.  INPUTS: the folder that `launches.make_inputs` fills.
"""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import AutoModelForCausalLM

from llmkd.modelling import whole_head
from llmkd.objectives.objective import Objective, Term
from llmkd.teachers.local import LocalTeacher
from llmkd.trainers.held_out import HeldOut, measure
from llmkd.trainers.offpolicy import OffPolicyTrainer
from llmkd.trainers.tallies import Tallies
from llmkd.trl_compat import wrap_frozen

STEPS = 10
VOCABULARY = 384
OBJECTIVE = Objective(
    [
        Term("kd", "forward_kl", weight=0.7, teacher="teacher"),
        Term("ce", "cross_entropy", weight=0.4, domains=(1,), normalize="kept"),
    ],
    ["a", "b"],
    VOCABULARY,
    tau_student=1.5,
    tau_teacher=2.0,
)
DIVERGENCE = Term("kl", "forward_kl", teacher="teacher")
YARDSTICK = Objective([Term("ce", "cross_entropy"), DIVERGENCE], ["a", "b"], VOCABULARY)


class Rank:
    """What the loss and the evaluation ask of an accelerator; with FSDP2 on, what the sharding asks too."""

    def __init__(self, real: Accelerator, plugin: FullyShardedDataParallelPlugin | None) -> None:
        self.real = real
        self.state = SimpleNamespace(deepspeed_plugin=None, fsdp_plugin=plugin)
        self.distributed_type = DistributedType.FSDP if plugin else DistributedType.NO
        self.num_processes, self.process_index = (dist.get_world_size(), dist.get_rank()) if plugin else (1, 0)
        self.device, self.mixed_precision, self.is_main_process = torch.device("cpu"), "no", dist.get_rank() == 0
        self.autocast, self.unwrap_model = real.autocast, real.unwrap_model

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return self.real.reduce(tensor, reduction) if self.state.fsdp_plugin else tensor

    def prepare_model(self, model: nn.Module, evaluation_mode: bool) -> nn.Module:
        return model


class Side:
    """A student with its teacher and optimizer: whole, or sharded with its rows dealt out to the ranks."""

    def __init__(self, student: nn.Module, teacher: nn.Module, accelerator: Rank, shard: Any) -> None:
        self.accelerator = accelerator
        self.student = shard(student.train())
        placed = wrap_frozen(teacher, accelerator)
        self.teacher = LocalTeacher("teacher", teacher, wrapped=placed, whole_head=whole_head(teacher))
        self.measured = Tallies(OBJECTIVE.domains)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-3, eps=1e-5)
        self.trainer = SimpleNamespace(
            objective=OBJECTIVE, teachers={"teacher": self.teacher}, accelerator=accelerator, measured=self.measured,
            state=SimpleNamespace(global_step=0),
        )  # fmt: skip

    def step(self, micro_batches: list[dict[str, Tensor]]) -> tuple[float, float]:
        """Loss and gradient norm of one optimizer step."""
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = [{k: v.chunk(ranks)[rank] for k, v in batch.items()} for batch in micro_batches]
        counts = self.accelerator.reduce(torch.stack([OBJECTIVE.counts(b) for b in mine]).sum(0), "sum")
        total = torch.zeros(())
        for i, batch in enumerate(mine):
            if isinstance(self.student, FSDPModule):
                self.student.set_requires_gradient_sync(i == len(mine) - 1)
            loss = OffPolicyTrainer.compute_loss(self.trainer, self.student, batch, num_items_in_batch=counts)
            loss.backward()
            total += loss.detach()
        norm = get_total_norm([p.grad for p in self.student.parameters()])
        self.optimizer.step()
        self.optimizer.zero_grad()
        total = self.accelerator.reduce(total, "sum") / ranks
        return float(total), float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def evaluate(self, rows: list[dict[str, Tensor]]) -> dict[str, float]:
        def collate(picked: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {k: torch.stack([row[k] for row in picked]) for k in picked[0]}

        self.student.eval()
        teachers = {"teacher": self.teacher}
        found = measure(self.student, HeldOut("a", rows, collate, 2), teachers, YARDSTICK, self.accelerator)
        self.student.train()
        return found

    def answer(self, prompt: Tensor) -> list[list[int]]:
        made = [m.generate(prompt, max_new_tokens=8, do_sample=False) for m in (self.student, self.teacher.model)]
        return [m[0].tolist() for m in made]


def batches(seed: int, count: int) -> list[dict[str, Tensor]]:
    """Micro-batches of 4 rows of unequal counts; the last two rows of the first one, which are those of the second of
    two ranks, have no counted token."""
    made = torch.Generator().manual_seed(seed)
    out = []
    for i in range(count):
        lengths = torch.randint(4, 24, (4, 1), generator=made)
        counted = (torch.arange(24) < lengths) & (torch.arange(24) > 1)
        if i == 0:
            counted[2:] = False
        ids = torch.randint(5, VOCABULARY, (4, 24), generator=made)
        domains = torch.tensor([0, 1, 1, 0])[:, None].expand(4, 24)
        out.append({"input_ids": ids, "counted": counted, "domain_ids": domains, "n_bytes": counted.sum(1)})
    return out


def by_torch(model: nn.Module) -> nn.Module:
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def plugin() -> FullyShardedDataParallelPlugin:
    """As recipes/accelerate/fsdp2.yaml asks for."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP", reshard_after_forward=True, cpu_offload=False,
        cpu_ram_efficient_loading=False, state_dict_type="FULL_STATE_DICT",
    )  # fmt: skip


def load(path: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def shards(model: nn.Module) -> dict[str, Any]:
    """FSDP units of a model, its parameters that are a rank's shard, and numbers held here and in all."""
    parameters = list(model.parameters())
    return {
        "class": type(model).__mro__[1].__name__,
        "units": sum(isinstance(m, FSDPModule) for m in model.modules()),
        "sharded": [isinstance(p, DTensor) and p.placements[0].is_shard() for p in parameters],
        "held": [sum(p.to_local().numel() for p in parameters), sum(p.numel() for p in parameters)],
    }


def compare(inputs: Path, head: str, way: str, real: Accelerator) -> dict[str, Any]:
    student = load(inputs / head)
    teacher = load(inputs / ("tied_teacher" if head == "tied" else "teacher"))
    fsdp = Rank(real, plugin())
    shard = by_torch if way == "torch" else lambda model: fsdp2_prepare_model(fsdp, model)
    whole = Side(copy.deepcopy(student), copy.deepcopy(teacher), Rank(real, None), lambda model: model)
    split = Side(student, teacher, fsdp, shard)
    proof = {"world": dist.get_world_size(), "student": shards(split.student), "teacher": shards(split.teacher.model)}
    steps = []
    for step in range(STEPS):
        made = batches(step, 2)
        steps.append([whole.step(made), split.step(made)])
    rows = [{k: v[i] for k, v in batch.items()} for batch in batches(99, 2) for i in range(4)][:5]
    state = whole.student.state_dict()
    gathered = {name: p.full_tensor() for name, p in split.student.state_dict().items()}
    return proof | {
        "steps": steps,
        "held_out": [whole.evaluate(rows), split.evaluate(rows)],
        "answers": [whole.answer(rows[0]["input_ids"][None, :4]), split.answer(rows[0]["input_ids"][None, :4])],
        "weights": max(float((state[name] - gathered[name]).abs().max()) for name in state),
        "measured": [whole.measured.take(whole.accelerator), split.measured.take(split.accelerator)],
    }


def rounded(inputs: Path, real: Accelerator) -> dict[str, Any]:
    """The loss of one batch where FSDP2 computes in bfloat16 and rounds what leaves a module."""
    options = plugin()
    options.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.bfloat16)
    fsdp = Rank(real, options)
    side = Side(load(inputs / "untied"), load(inputs / "teacher"), fsdp, lambda m: fsdp2_prepare_model(fsdp, m))
    counts = torch.tensor([40, 40, 40])
    loss = OffPolicyTrainer.compute_loss(side.trainer, side.student, batches(0, 2)[1], num_items_in_batch=counts)
    loss.backward()
    values = side.measured.sums
    terms = 0.7 * values["kd/value"][:, 0].sum() + 0.4 * values["ce/value"][:, 0].sum()
    gradient = sum(float(p.grad.full_tensor().square().sum()) for p in side.student.parameters())
    return {"dtype": str(loss.dtype), "loss": float(loss) / 2, "expected": float(terms / 40), "gradient": gradient}


if __name__ == "__main__":
    inputs, out = Path(sys.argv[1]), Path(sys.argv[2])
    real = Accelerator(cpu=True)
    found = {f"{h}-{w}": compare(inputs, h, w, real) for h in ("tied", "untied") for w in ("torch", "accelerate")}
    found["rounded"] = rounded(inputs, real)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))
    dist.destroy_process_group()
