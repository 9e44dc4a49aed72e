"""A teacher in this process: a frozen model, in eval mode, scored on the student's batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmkd.backbone import head_of, hidden_states, through
from llmkd.types import Batch, Head, Signals, States


def freeze(model: nn.Module) -> nn.Module:
    """No gradients and no dropout: a teacher answers the same question the same way."""
    model.requires_grad_(False)
    return model.eval()


@dataclass
class LocalTeacher:
    """A model that is scored where it stands.

    own_rendering: the batch carries ``input_ids@name`` and the like, rows rendered by the teacher's template;
    wrapped: what ZeRO-3 or FSDP2 made of the model (the model itself otherwise); whole_head: a copy of the head where
    the model's is sharded, since the loss needs it beside the student's.
    """

    name: str
    model: nn.Module
    own_rendering: bool = False
    wrapped: nn.Module | None = None
    whole_head: Head | None = None

    def __post_init__(self) -> None:
        freeze(self.model)

    @torch.no_grad()
    def score(self, batch: Batch) -> Signals:
        """Hidden states ``[N, Ht]`` for the batch's counted tokens, and the head."""
        assert not self.model.training, f"teacher {self.name} is in train mode"
        view = f"@{self.name}" if self.own_rendering else ""
        hidden = through(self.wrapped or self.model, self.model, self._forward, batch, view)
        head = self.whole_head or head_of(self.model)
        if not self.own_rendering:
            return States(hidden, head)
        kept = batch[f"shared@{self.name}"][batch["counted"]]
        return States(_spread(hidden, kept), head, kept)

    def itself(self) -> AbstractContextManager[None]:
        """``model`` is always this teacher."""
        return nullcontext()

    def _forward(self, batch: Batch, view: str) -> Tensor:
        return hidden_states(self.model, batch, view)


def _spread(hidden: Tensor, kept: Tensor) -> Tensor:
    """Hidden states of the shared tokens put in their places among the N counted ones; zeros elsewhere."""
    out = hidden.new_zeros(kept.shape[0], hidden.shape[1])
    out[kept] = hidden
    return out


@dataclass
class WithoutAdapters:
    """The student as it was before its adapters, ``model`` with them switched off: a teacher that takes no memory."""

    name: str
    model: nn.Module
    own_rendering: bool = False
    wrapped: nn.Module | None = None

    @torch.no_grad()
    def score(self, batch: Batch) -> Signals:
        """Hidden states ``[N, H]`` for the batch's counted tokens, and the head, which has no adapter."""
        with self.itself():
            return States(hidden_states(self.model, batch), head_of(self.model))

    @contextmanager
    def itself(self) -> Iterator[None]:
        """``model`` is the teacher inside, and the student again outside."""
        was_training = self.model.training
        self.model.eval()
        try:
            with self.model.disable_adapter():  # type: ignore[operator]
                yield
        finally:
            self.model.train(was_training)
