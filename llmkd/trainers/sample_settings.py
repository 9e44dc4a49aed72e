"""Fields that the trainers on a student's own samples have beside TRL's."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SampleSettings:
    """To be inherited in front of a config of TRL's, whose fields of the same name it replaces."""

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
    muon_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Train hidden matrices with torch.optim.Muon at this rate, the rest with AdamW."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )
