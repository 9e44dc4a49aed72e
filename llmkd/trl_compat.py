"""Every private or moving part of TRL that is used, here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import DistributedType, fsdp2_prepare_model
from torch import nn
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation


def wrap_frozen(model: nn.Module, accelerator: Any) -> nn.Module:
    """Place a frozen model as the student is placed: sharded under ZeRO-3 and FSDP2, else whole on the device."""
    if accelerator.state.deepspeed_plugin is not None and accelerator.state.deepspeed_plugin.zero_stage == 3:
        return prepare_deepspeed(model, accelerator)
    if accelerator.distributed_type == DistributedType.FSDP:
        # By layers, as the student; TRL's way makes one piece of the model, which is then gathered whole.
        return fsdp2_prepare_model(accelerator, model).eval()
    return accelerator.prepare_model(model, evaluation_mode=True)


@contextmanager
def whole_for_generation(model: nn.Module, accelerator: Any) -> Iterator[nn.Module]:
    """A placed model with its parameters gathered, ready for ``generate``; all processes must call this."""
    with unwrap_model_for_generation(model, accelerator) as unwrapped:
        yield unwrapped
