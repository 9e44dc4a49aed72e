"""What a training step is measured of: our trainers and TRL's, on the same models, prompts and reward.

Everything is made from the seed: two processes that build the same case have the same weights and prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DistillationConfig, DistillationTrainer, GRPOTrainer

from llmkd.build_rewards import reward_functions
from llmkd.build_rl import FORMULAS
from llmkd.config import Reward
from llmkd.data.prompts import GroupedOrder
from llmkd.objectives.objective import Objective, Term, TokenWeight
from llmkd.teachers.local import LocalTeacher
from llmkd.trainers.onpolicy import OnPolicyTrainer
from llmkd.trainers.onpolicy_settings import OnPolicySettings
from llmkd.trainers.policy_terms import PolicyTerm, TeacherTerm
from llmkd.trainers.rl import RLTrainer
from llmkd.trainers.rl_settings import RLSettings

HEAD_DIM = 64
PAD, END = 0, 1
ROWS = 64
"""Prompts of the data set, which are gone through again and again."""
CHECKED = 2
"""Steps whose losses are compared before anything is timed: the second one is after an update."""
TEACHER_WEIGHT = 0.1
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Case:
    """student, teacher: width and layers; prompt, completion: tokens, the same of every row; prompts: of a step, each
    of them ``group`` times, and as many rows of other prompts in on-policy distillation."""

    student: tuple[int, int] = (256, 4)
    teacher: tuple[int, int] = (512, 4)
    vocabulary: int = 8192
    prompt: int = 32
    completion: int = 32
    prompts: int = 2
    group: int = 4
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Case:
        return cls(**values | {side: tuple(values[side]) for side in ("student", "teacher")})

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"student": list(self.student), "teacher": list(self.teacher)}


def tokenizer(case: Case) -> PreTrainedTokenizerFast:
    """A word a token: texts are as long as a case says."""
    words = {"<pad>": PAD, "<end>": END} | {f"w{i}": i for i in range(2, case.vocabulary)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>", padding_side="left")


def model(case: Case, side: str) -> LlamaForCausalLM:
    width, layers = getattr(case, side)
    config = LlamaConfig(
        vocab_size=case.vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // HEAD_DIM, num_key_value_heads=width // HEAD_DIM, head_dim=HEAD_DIM,
        max_position_embeddings=max(512, case.prompt + case.completion), tie_word_embeddings=True,
        initializer_range=0.1, bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed + (1 if side == "student" else 2))
        return LlamaForCausalLM(config).to(case.device)


def prompts(case: Case) -> Dataset:
    draw = torch.Generator().manual_seed(case.seed)
    ids = torch.randint(2, case.vocabulary, (ROWS, case.prompt), generator=draw).tolist()
    return Dataset.from_list(
        [{"prompt": " ".join(f"w{i}" for i in row), "domain_id": 0, "reference": "{}"} for row in ids]
    )


def even_digits(prompt: Any, completion: str, reference: Any) -> float:
    """Share of even digits in a completion: of a random model, a number of its own for nearly every completion."""
    digits = [c for c in completion if c.isdigit()]
    return sum(c in "02468" for c in digits) / max(1, len(digits))


def plainly(prompts: Sequence[Any], completions: Sequence[str], **_: Any) -> list[float]:
    """The same, as one gives it to TRL."""
    return [even_digits(*pair, None) for pair in zip(prompts, completions, strict=True)]


def settings(kind: Any, case: Case, folder: Path, steps: int, **more: Any) -> Any:
    """Every completion has ``completion`` tokens: the end is not drawn before them."""
    return kind(
        output_dir=str(folder / "out"), max_steps=steps, per_device_train_batch_size=case.prompts * case.group,
        max_completion_length=case.completion, generation_kwargs={"min_new_tokens": case.completion},
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", seed=case.seed, logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True, use_cpu=case.device == "cpu", bf16=case.dtype == "bfloat16",
        gradient_checkpointing=False, **more,
    )  # fmt: skip


def order(args: Any, group: int) -> GroupedOrder:
    rows = args.per_device_train_batch_size
    drawn: Any = [i % ROWS for i in range(args.max_steps * rows)]
    return GroupedOrder(drawn, rows // group, group, 1)


def in_our_order(kind: Any, group: int) -> Any:
    """A trainer of TRL that takes its prompts as ours does; that is all that is changed."""

    class Ordered(kind):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return order(self.args, group)

    return Ordered


def trl_grpo(case: Case, folder: Path, steps: int) -> Any:
    return in_our_order(GRPOTrainer, case.group)(
        model=model(case, "student"), reward_funcs=[plainly], train_dataset=prompts(case),
        args=settings(RLSettings, case, folder, steps, num_generations=case.group), processing_class=tokenizer(case),
    )  # fmt: skip


def llmkd_rl(estimator: str | None) -> Callable[[Case, Path, int], Any]:
    """GRPO; with an estimator KDRL, which is GRPO and reverse KL towards a teacher."""

    def make(case: Case, folder: Path, steps: int) -> Any:
        term = TeacherTerm("kd", "t", estimator=estimator or "k2", weight=heard)  # type: ignore[arg-type]
        exact = Objective(
            [Term("kd", "reverse_kl", teacher="t", token_weight=TokenWeight("column", column="weight"))], ["all"],
            case.vocabulary,
        )  # fmt: skip
        args = settings(RLSettings, case, folder, steps, num_generations=case.group)
        functions, _ = reward_functions([Reward(path=f"{__file__}:even_digits", column=None)])
        return RLTrainer(
            model=model(case, "student"), args=args, reward_funcs=functions, train_dataset=prompts(case),
            processing_class=tokenizer(case), policy=PolicyTerm("policy"), terms=[term] if estimator else [],
            whole={"kd": exact} if estimator == "exact" else {}, formulas=FORMULAS, teachers=teachers(case, estimator),
            ends={"t": [END]}, correct=None, vocabulary=case.vocabulary, tau_teacher=1.0, domains=["all"],
            order=lambda _: order(args, case.group), yardstick=exact,
        )  # fmt: skip

    return make


def heard(step: int) -> float:
    """The weight of a teacher's term: 0 at every third step that is not compared, where the step is GRPO's."""
    return 0.0 if step >= CHECKED and (step - CHECKED) % 3 == 2 else TEACHER_WEIGHT


def teachers(case: Case, wanted: Any) -> dict[str, LocalTeacher]:
    return {"t": LocalTeacher("t", model(case, "teacher"))} if wanted else {}


def trl_distillation(case: Case, folder: Path, steps: int) -> Any:
    return in_our_order(DistillationTrainer, 1)(
        model=model(case, "student"), teacher_model=model(case, "teacher"), train_dataset=prompts(case),
        args=settings(DistillationConfig, case, folder, steps, beta=1.0), processing_class=tokenizer(case),
    )  # fmt: skip


def llmkd_onpolicy(case: Case, folder: Path, steps: int) -> Any:
    return OnPolicyTrainer(
        model=model(case, "student"), train_dataset=prompts(case), processing_class=tokenizer(case),
        args=(args := settings(OnPolicySettings, case, folder, steps, lmbda=1.0)),
        objective=Objective([Term("kd", "reverse_kl", teacher="t")], ["all"], case.vocabulary),
        teachers=teachers(case, True), ends={"t": [END]}, collate=None, order=lambda _: order(args, 1),
    )  # fmt: skip


ARMS: dict[str, Callable[[Case, Path, int], Any]] = {
    "trl_grpo": trl_grpo,
    "llmkd_grpo": llmkd_rl(None),
    "llmkd_kdrl_k2": llmkd_rl("k2"),
    "llmkd_kdrl_exact": llmkd_rl("exact"),
    "trl_distillation": trl_distillation,
    "llmkd_onpolicy": llmkd_onpolicy,
}
