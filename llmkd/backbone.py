"""What both sides of a distillation need of a transformers model: hidden states, the head, and a way in.

The loss is computed from hidden states and the head, never from ``model(...).logits``, so that the ``[N, V]`` tensor
does not exist.  Three things make that safe: ``through`` runs it inside the wrapper's forward, where DDP, ZeRO-3 and
FSDP2 gather and reduce; ``head_of`` reads what a family does after the product; ``check_family`` proves on the model
at hand that the result is the model's own logits, and that packed rows do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llmkd.types import Batch, Head


def through(wrapper: nn.Module, inner: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function(*args)`` in place of ``inner.forward``, by calling ``wrapper(*args)``.

    The hooks of the wrapper and of ``inner`` fire around it, which is when sharded parameters are whole and when
    gradients are reduced.
    """
    own = inner.__dict__.get("forward")

    def restore() -> None:
        if own is None:
            inner.__dict__.pop("forward", None)
        else:
            inner.forward = own  # type: ignore[method-assign]

    def once(*inner_args: Any, **_: Any) -> Any:
        restore()
        return function(*inner_args)

    inner.forward = once  # type: ignore[method-assign]
    try:
        return wrapper(*args)
    finally:
        restore()


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers model itself, without a PEFT wrapper (its adapters stay in place)."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def head_module(model: nn.Module) -> nn.Module:
    """The output projection, or ValueError where there is none or where an adapter sits on it."""
    lm = causal_lm(model)
    head = lm.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(lm).__name__} has no output projection: give a causal language model")
    if hasattr(head, "modules_to_save"):
        head = head.modules_to_save[head.active_adapters[0]]
    if hasattr(head, "lora_A"):
        raise ValueError(
            "student.lora.target_modules: an adapter on the output projection is not supported, the loss reads its "
            "weight directly: leave it out of target_modules, or name it under modules_to_save"
        )
    return head


def head_of(model: nn.Module) -> Head:
    """The Head of a model, to be called where its weight is whole (inside ``through``)."""
    module = head_module(model)
    config = causal_lm(model).config.get_text_config()
    scale = 1.0
    if getattr(config, "logit_scale", None):
        scale = float(config.logit_scale)
    elif getattr(config, "logits_scaling", None):
        scale = 1.0 / float(config.logits_scaling)
    return Head(
        weight=module.weight,
        bias=getattr(module, "bias", None),
        softcap=getattr(config, "final_logit_softcapping", None),
        scale=scale,
    )


def head_rows(model: nn.Module) -> int:
    """Rows V of the output projection; right under ZeRO-3 too, where the weight itself is away."""
    weight = head_module(model).weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def hidden_states(model: nn.Module, batch: Batch, view: str = "") -> Tensor:
    """Last hidden states ``[N, H]`` that predict the counted tokens of a batch, in row-major order.

    ``view`` is the suffix of the columns of a teacher's own rendering (``@name``).  Rows are right-padded, so causal
    attention needs no mask; packed rows are kept apart by their position ids, which works only without a mask and
    without a cache.
    """
    lm = causal_lm(model)
    extra = {}
    if f"position_ids{view}" in batch:
        extra["position_ids"] = batch[f"position_ids{view}"]
    backbone = getattr(lm, lm.base_model_prefix)
    out = backbone(input_ids=batch[f"input_ids{view}"], use_cache=False, **extra).last_hidden_state
    return out[:, :-1][batch[f"counted{view}"][:, 1:]]


@torch.no_grad()
def check_family(model: nn.Module, *, packed: bool, where: str, wrapper: nn.Module | None = None) -> None:
    """Raise ValueError if this model's logits are not head(hidden states), or if packed rows leak into each other.

    Compares two rows of five tokens: alone through the model's own forward, and side by side through ours.
    ``wrapper``: what the model is called through where its parameters are sharded; all processes must call this then.
    """
    lm = causal_lm(model)
    device = next(lm.parameters()).device
    rows = torch.arange(1, 11, device=device).remainder(max(2, head_rows(model) - 1)).reshape(2, 5)
    was_training = lm.training
    lm.eval()
    own = (wrapper or lm)(input_ids=rows, use_cache=False).logits.float()
    batch = {"input_ids": rows, "counted": torch.ones_like(rows, dtype=torch.bool)}
    ours = _logits(model, batch, wrapper).reshape(2, 4, -1)
    family = f"{where}: {type(lm).__name__}"
    if not own.isfinite().all():
        raise ValueError(f"{family} computes NaN or infinite logits: are its weights damaged, or its dtype too small?")
    # Relative: a fresh model, or one that scales its logits down (Cohere), has none near 1.
    tolerance = 1e-3 * float(own.abs().max())
    if next(lm.parameters()).dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(device.type):
        tolerance *= 50
    if not torch.allclose(own[:, :-1], ours, atol=tolerance):
        raise ValueError(
            f"{family} does something between its hidden states and its logits that is not known here (largest "
            f"difference {float((own[:, :-1] - ours).abs().max()):.2g}): this family cannot be distilled yet"
        )
    if packed:
        _check_packing(model, rows, ours, tolerance, family, wrapper)
    lm.train(was_training)


def _logits(model: nn.Module, batch: Batch, wrapper: nn.Module | None) -> Tensor:
    """``[N, V]`` from hidden states and head, computed where the wrapper gathers them."""
    head = head_module(model)

    def forward() -> Tensor:
        return through(head, head, lambda hidden: head_of(model).logits(hidden), hidden_states(model, batch))

    return through(wrapper or model, model, forward)


def _check_packing(
    model: nn.Module, rows: Tensor, alone: Tensor, tolerance: float, family: str, wrapper: nn.Module | None
) -> None:
    side = rows.reshape(1, 10)
    batch = {
        "input_ids": side,
        "counted": torch.ones_like(side, dtype=torch.bool),
        "position_ids": torch.arange(5, device=rows.device).repeat(2).unsqueeze(0),
    }
    together = _logits(model, batch, wrapper)
    for i in range(2):
        if not torch.allclose(together[5 * i : 5 * i + 4], alone[i], atol=tolerance):
            raise ValueError(
                f"{family} lets packed rows see each other with this attention implementation: set train.packing=false"
            )
