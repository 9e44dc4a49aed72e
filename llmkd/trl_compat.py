"""Every private or moving part of TRL that is used, here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from trl.models.utils import prepare_deepspeed, prepare_fsdp, unwrap_model_for_generation


def wrap_frozen(model: nn.Module, accelerator: Any) -> nn.Module:
    """Place a frozen model as the student is placed: sharded under ZeRO-3 and FSDP, else whole on the device."""
    if accelerator.state.deepspeed_plugin is not None and accelerator.state.deepspeed_plugin.zero_stage == 3:
        return prepare_deepspeed(model, accelerator)
    if getattr(accelerator.state, "fsdp_plugin", None) is not None and accelerator.num_processes > 1:
        return prepare_fsdp(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True)


@contextmanager
def whole_for_generation(model: nn.Module, accelerator: Any) -> Iterator[nn.Module]:
    """The student with its parameters gathered, ready for ``generate``."""
    with unwrap_model_for_generation(model, accelerator) as unwrapped:
        yield unwrapped
