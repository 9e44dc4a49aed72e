"""A trainer of reinforcement learning on tiny models, with a reward that is right now and then, and TRL's beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

from llmkd.build_rl import FORMULAS
from llmkd.data.prompts import GroupedOrder
from llmkd.objectives.objective import Objective, Term, TokenWeight
from llmkd.teachers.local import LocalTeacher
from llmkd.trainers.policy_terms import WHOLE, PolicyTerm, TeacherTerm
from llmkd.trainers.rl import RLTrainer
from llmkd.trainers.rl_settings import RLSettings

from tiny import tiny_model, tiny_tokenizer

VOCABULARY, GROUP = 384, 4
GRPO = PolicyTerm("policy")


def models(folder: Path) -> Path:
    """A student, a teacher that has nothing to do with it, and a ``near`` one: its own weights and some noise."""
    tiny_model(folder / "student", seed=1)
    tiny_model(folder / "teacher", seed=5)
    tiny_tokenizer(folder / "near")
    near = AutoModelForCausalLM.from_pretrained(folder / "student")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in near.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    near.save_pretrained(folder / "near")
    return folder


def prompts() -> Dataset:
    texts = [f"{a} + {b} =" for a in range(4) for b in range(4)]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}], "domain_id": 0} for text in texts])


def now_and_then(completions: Sequence[Any], **_: Any) -> list[float]:
    """1 for about every third completion."""
    return [float(len(completion[0]["content"]) % 3 == 0) for completion in completions]


def always(completions: Sequence[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def settings(folder: Path, **changes: Any) -> RLSettings:
    defaults = {
        "use_cpu": True, "bf16": False, "max_steps": 2, "per_device_train_batch_size": 8, "num_generations": GROUP,
        "max_completion_length": 8, "report_to": [], "learning_rate": 1e-3, "save_strategy": "no",
        "disable_tqdm": True, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return RLSettings(output_dir=str(folder / "out"), **(defaults | changes))


def order(args: RLSettings) -> GroupedOrder:
    per_round = args.generation_batch_size // args.num_generations
    rows = [i % 16 for i in range(400)]
    return GroupedOrder(rows, per_round, args.num_generations, args.steps_per_generation * args.num_iterations)


def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder / "student")


def student(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "student")


def rl(
    folder: Path, policy: PolicyTerm | None, terms: Sequence[TeacherTerm] = (), *, reward: Any = now_and_then,
    teacher: str = "teacher", ends: Sequence[int] | None = None, train: bool = True,
    knobs: Mapping[str, Any] | None = None, **changes: Any,
) -> RLTrainer:  # fmt: skip
    args = settings(folder, **changes)
    tokens = tokenizer(folder)
    trainer = RLTrainer(
        model=student(folder), args=args, reward_funcs=[reward], train_dataset=prompts(), processing_class=tokens,
        policy=policy, terms=terms, whole={t.name: whole(t, knobs or {}) for t in terms if t.estimator in WHOLE},
        formulas=FORMULAS, teachers={}, ends={"t": [tokens.eos_token_id] if ends is None else ends}, correct=0,
        vocabulary=VOCABULARY, tau_teacher=1.0, domains=["all"], order=lambda _: order(args), yardstick=None,
    )  # fmt: skip
    trainer.teachers = {"t": LocalTeacher("t", AutoModelForCausalLM.from_pretrained(folder / teacher))}
    if train:
        trainer.train()
    return trainer


def whole(term: TeacherTerm, knobs: Mapping[str, Any]) -> Objective:
    weight = TokenWeight("column", column="weight")
    return Objective([Term(term.name, term.kind, teacher="t", knobs=knobs, token_weight=weight)], ["all"], VOCABULARY)


def trls(folder: Path, *, reference: str | None = None, **changes: Any) -> GRPOTrainer:
    """TRL's own trainer on the same prompts in the same order, trained; reference: in the place of its reference
    model."""
    args = settings(folder, **changes)

    class Ordered(GRPOTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return order(args)

    trainer = Ordered(
        model=student(folder), args=args, reward_funcs=[now_and_then], train_dataset=prompts(),
        processing_class=tokenizer(folder),
    )  # fmt: skip
    if reference is not None:
        other = AutoModelForCausalLM.from_pretrained(folder / reference)
        trainer.ref_model.load_state_dict(other.state_dict())
    trainer.train()
    return trainer


def weights(trainer: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def lines(trainer: Any) -> list[dict[str, Any]]:
    return [line for line in trainer.state.log_history if "loss" in line]
