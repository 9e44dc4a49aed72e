"""What the ``train`` section of a recipe of on-policy distillation may say: TRL's DistillationConfig, and our few."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import DistillationConfig


@dataclass
class OnPolicySettings(DistillationConfig):
    """TRL's ``DistillationConfig`` and what it lacks.  Keys that TRL knows keep TRL's meaning, but ``temperature`` is
    that of drawing alone: the divergence has its own, in the objective."""

    lmbda: float = field(
        default=1.0, metadata={"help": "Share of steps on the student's own completions; the others are on the data's."}
    )
    seq_kd: bool = field(
        default=False, metadata={"help": "The data's completions are the teacher's own, drawn before the training."}
    )
    max_length: int | None = field(
        default=1024, metadata={"help": "Longest row of a step on the data, in tokens; longer ones are truncated."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Write a line of metrics every so many steps."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations in the backward."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for parameters without a gradient at every step, with DDP."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Log the last finite loss in place of one that is not."}
    )
    text_prompts: str = field(
        default="auto",
        metadata={"help": "A prompt of text is a user's turn, or raw; auto: a turn where there is a chat template."},
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "A system message in front of every conversation that has none."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )


# Beside those of every trainer: what other sections own (the teacher, the divergence), or what our trainer decides.
NOT_IN_A_RECIPE = {
    "beta", "teacher_model_name_or_path", "teacher_model_revision", "teacher_model_init_kwargs", "disable_dropout",
    "max_tool_calling_iterations",
}  # fmt: skip
CHOICES = {
    "text_prompts": ("auto", "user", "raw"),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers"),
}
