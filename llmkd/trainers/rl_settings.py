"""What the ``train`` section of a recipe of reinforcement learning may say: TRL's GRPOConfig, and our few."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig


@dataclass
class RLSettings(GRPOConfig):
    """TRL's ``GRPOConfig`` and what it lacks.  Keys that TRL knows keep TRL's meaning."""

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


# Beside those of every trainer: what other sections own, or what our trainer decides.
NOT_IN_A_RECIPE = {
    "reward_weights", "disable_dropout", "log_completions_hub_repo", "log_multimodal", "max_tool_calling_iterations",
    "num_generations_eval", "use_transformers_paged", "vllm_importance_sampling_cap", "cast_lm_head_to_fp32",
}  # fmt: skip
CHOICES = {
    "text_prompts": ("auto", "user", "raw"),
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"),
    "vllm_mode": ("colocate", "server"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
