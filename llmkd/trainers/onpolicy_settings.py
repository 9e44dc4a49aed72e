"""What the ``train`` section of a recipe of on-policy distillation may say: TRL's DistillationConfig, and our few."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import DistillationConfig

from llmkd.trainers.sample_settings import SampleSettings


@dataclass
class OnPolicySettings(SampleSettings, DistillationConfig):
    """TRL's ``DistillationConfig`` and what it lacks.  Keys that TRL knows keep TRL's meaning, but ``temperature`` is
    that of drawing alone: the divergence has its own, in the objective."""

    lmbda: float = field(
        default=1.0, metadata={"help": "Share of steps on the student's own completions; the others are on the data's."}
    )
    lmbda_schedule: str = field(
        default="constant",
        metadata={"help": "adaptive: lmbda is where the share starts; it rises where the held-out cross-entropy does."},
    )
    replay_capacity: int = field(
        default=0, metadata={"help": "Completions of the student's that are kept to be trained on again; 0 keeps none."}
    )
    pairs: bool = field(
        default=False, metadata={"help": "Every step has the data's completion and the student's own of each prompt."}
    )
    seq_kd: bool = field(
        default=False,
        metadata={"help": "The data's completions are the teacher's own, drawn before training; none is truncated."},
    )
    teacher_mixture: float = field(
        default=0.0,
        metadata={"help": "Share of the teacher in the distribution that the student's completions are drawn from."},
    )
    max_length: int | None = field(
        default=1024, metadata={"help": "Longest row of a step on the data, in tokens; longer ones are truncated."}
    )


# Beside those of every trainer: what other sections own (the teacher, the divergence), or what our trainer decides.
NOT_IN_A_RECIPE = {
    "beta", "teacher_model_name_or_path", "teacher_model_revision", "teacher_model_init_kwargs", "disable_dropout",
    "max_tool_calling_iterations",
}  # fmt: skip
CHOICES = {
    "lmbda_schedule": ("constant", "adaptive"),
    "text_prompts": ("auto", "user", "raw"),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers"),
}
