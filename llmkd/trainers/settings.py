"""What the ``train`` section of a recipe may say: the fields of TRL's config of the method, and our few."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from importlib.util import find_spec
from typing import Any

import torch
from trl import SFTConfig

from llmkd.config import Recipe, TrainField
from llmkd.trainers import onpolicy_settings, rl_settings
from llmkd.trainers.onpolicy_settings import OnPolicySettings
from llmkd.trainers.rl_settings import RLSettings


@dataclass
class OffPolicySettings(SFTConfig):
    """TRL's ``SFTConfig`` and what it lacks.  Keys that TRL knows keep TRL's meaning."""

    logging_steps: float = field(default=10, metadata={"help": "Write a line of metrics every so many steps."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data, where max_steps is not set."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations in the backward."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for parameters without a gradient at every step, with DDP."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Log the last finite loss in place of one that is not."}
    )
    # What is saved is a model to generate with; our forward passes say themselves that they use no cache.
    use_cache: bool = field(default=True, metadata={"help": "The key-value cache of the final model's config."})
    assistant_only_loss: bool | None = field(
        default=None, metadata={"help": "Count the assistant's turns alone. Default: yes, where rows have messages."}
    )
    over_long: str = field(
        default="truncate",
        metadata={"help": "Rows longer than max_length: truncate, split (plain text), drop or error."},
    )
    muon_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Train hidden matrices with torch.optim.Muon at this rate, the rest with AdamW."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )


# Fields that other sections own, that the design fixes, or that would change nothing here: the data come prepared, in
# an order of their own, evaluation is our own, and a checkpoint is always one to resume from.
NOT_IN_A_RECIPE = {
    "output_dir", "seed", "data_seed", "run_name", "report_to", "resume_from_checkpoint", "do_train", "do_eval",
    "do_predict", "push_to_hub", "model_init_kwargs", "trust_remote_code", "chat_template_path", "dataset_text_field",
    "dataset_kwargs", "shuffle_dataset", "padding_free", "loss_type", "label_smoothing_factor", "remove_unused_columns",
    "label_names", "use_liger_kernel", "liger_kernel_config", "auto_find_batch_size", "average_tokens_across_devices",
    "pad_token", "eos_token", "train_sampling_strategy", "use_cache", "router_aux_loss_coef", "save_only_model",
    "ignore_data_skip", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint", "bf16_full_eval",
    "fp16_full_eval", "prediction_loss_only", "eval_accumulation_steps", "batch_eval_metrics", "include_for_metrics",
    "eval_do_concat_batches", "eval_use_gather_object", "local_rank",
}  # fmt: skip
CHOICES = {
    "over_long": ("truncate", "split", "drop", "error"),
    "truncation_mode": ("keep_start", "keep_end"),
    "packing_strategy": ("bfd",),
}


Settings = OffPolicySettings | OnPolicySettings | RLSettings
OF_METHOD: dict[str, type[Settings]] = {"onpolicy": OnPolicySettings, "rl": RLSettings}


def settings_class(method: str) -> type[Settings]:
    return OF_METHOD.get(method, OffPolicySettings)


def train_fields(method: str = "offpolicy") -> dict[str, TrainField]:
    """The fields that the ``train`` section may hold with a method, as the configuration checks them."""
    kind = settings_class(method)
    own = {"onpolicy": onpolicy_settings, "rl": rl_settings}.get(method)
    without = NOT_IN_A_RECIPE | (own.NOT_IN_A_RECIPE if own else set())
    without -= {"loss_type"} if method == "rl" else set()
    choices = own.CHOICES if own else CHOICES
    hints = typing.get_type_hints(kind)
    found = {}
    for spec in fields(kind):
        if spec.init and spec.name not in without and not spec.name.startswith("hub_"):
            found[spec.name] = _field(kind, spec.name, hints[spec.name], choices)
    return found


def _field(settings: type[Settings], name: str, hint: Any, given: Mapping[str, tuple[str, ...]]) -> TrainField:
    kinds: list[type] = []
    choices: list[str] = []
    nullable = False
    for member in _members(hint):
        if member is type(None):
            nullable = True
        elif isinstance(member, type) and issubclass(member, Enum):
            kinds.append(str)
            choices += [str(m.value) for m in member]
        elif typing.get_origin(member) is typing.Literal:
            kinds.append(str)
            choices += [str(a) for a in typing.get_args(member)]
        else:
            kinds.append(typing.get_origin(member) or member)
    default = settings.__dataclass_fields__[name].default
    allowed = given.get(name) or tuple(dict.fromkeys(choices)) or None
    if allowed and name not in given and set(kinds) != {str}:
        allowed = None if not choices else allowed
    return TrainField(name, tuple(dict.fromkeys(kinds)), nullable or default is None, allowed)


def _members(hint: Any) -> list[Any]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [m for member in typing.get_args(hint) for m in _members(member)]
    if origin is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    return [hint]


def settings_of(recipe: Recipe) -> Any:
    """The trainer's settings of a recipe.  ValueError where the machine or the combination refuses them."""
    options = dict(recipe.train.options)
    _check_precision(options)
    _check_reports(recipe.run.report_to)
    options.setdefault("disable_tqdm", False)  # or it follows the log level, and quiet libraries mean no bar
    best = options.get("metric_for_best_model")
    if best:
        # The log's name of a metric is eval/<domain>/kl; transformers looks for eval_<domain>/kl.
        options["metric_for_best_model"] = "eval_" + best.removeprefix("eval/").removeprefix("eval_")
        options.setdefault("greater_is_better", best.endswith("agreement"))
    if options.get("early_stopping_patience") and not best:
        raise ValueError("train.early_stopping_patience: needs train.metric_for_best_model, such as eval/mean/kl")
    if options.get("early_stopping_patience") and options.get("eval_strategy", "no") == "no":
        raise ValueError("train.early_stopping_patience: counts evaluations: set train.eval_strategy=steps or epoch")
    run = recipe.run
    hub = {}
    if run.hub is not None:
        hub = {"hub_model_id": run.hub.model_id, "hub_private_repo": run.hub.private,
               "push_to_hub": run.hub.push == "checkpoint", "hub_strategy": "checkpoint"}  # fmt: skip
    try:
        return settings_class(recipe.train.method)(
            output_dir=run.output_dir, run_name=run.name, seed=run.seed, data_seed=run.seed,
            report_to=run.report_to, **hub, **options,
        )  # fmt: skip
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"train: {' '.join(str(error).split())}") from error


def _check_reports(report_to: str | list[str]) -> None:
    """Say here that a tracker is not installed; transformers would only say so after the models are loaded."""
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name in ("wandb", "trackio", "mlflow", "swanlab", "tensorboard") and find_spec(name) is None:
            raise ValueError(f"run.report_to: {name} is not installed: pip install {name}, or set run.report_to=none")


def _check_precision(options: dict[str, Any]) -> None:
    cpu = options.get("use_cpu") or not torch.cuda.is_available()
    if options.get("fp16") and cpu:
        raise ValueError("train.fp16: float16 training needs a GPU: use bf16, or leave it out")
    if options.get("bf16") and not cpu and not torch.cuda.is_bf16_supported():
        raise ValueError("train.bf16: this GPU has no bfloat16: use fp16, or leave it out")
    # TRL turns bf16 on by itself where nothing is said; a recipe says what it means.
    options.setdefault("bf16", False)
