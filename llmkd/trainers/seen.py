"""What a forward of the student that is made anyway has to show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from llmkd.backbone import causal_lm


class Seen:
    """What the policy's own forward showed: log-probabilities ``[B, C]`` and hidden states ``[B, P + C, H]``, both with
    their gradients."""

    def __init__(self) -> None:
        self.logq: Tensor | None = None
        self.hidden: Tensor | None = None

    @contextmanager
    def watching(self, student: nn.Module) -> Iterator[None]:
        lm = causal_lm(student)

        def note(module: nn.Module, given: Any, out: Any) -> None:
            self.hidden = out.last_hidden_state

        handle = getattr(lm, lm.base_model_prefix).register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()
