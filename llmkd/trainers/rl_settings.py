"""What the ``train`` section of a recipe of reinforcement learning may say: TRL's GRPOConfig, and our few."""

from __future__ import annotations

from dataclasses import dataclass

from trl import GRPOConfig

from llmkd.trainers.sample_settings import SampleSettings


@dataclass
class RLSettings(SampleSettings, GRPOConfig):
    """TRL's ``GRPOConfig`` and what it lacks.  Keys that TRL knows keep TRL's meaning."""


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
