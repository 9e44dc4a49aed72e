"""Bad input that only shows in the numbers: collected as flags on the device, read once for a whole engine call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class TokenFault(ValueError):
    """A token that cannot be trained on; ``row`` is its index among the N tokens of the call."""

    def __init__(self, row: int, what: str) -> None:
        self.row = row
        self.what = what
        super().__init__(f"token {row}: {what}")


class Faults:
    """Flags ``[N]`` and what to say of the first token that one of them marks."""

    def __init__(self) -> None:
        self.flags: list[tuple[Tensor, Callable[[int], str]]] = []

    def add(self, flag: Tensor, say: Callable[[int], str] | str) -> None:
        self.flags.append((flag, say if callable(say) else lambda _: say))

    def report(self) -> None:
        """Raise TokenFault if any flag is set.  The one place where the host waits for the device."""
        if not self.flags:
            return
        for (flag, say), found in zip(self.flags, torch.stack([f.any() for f, _ in self.flags]).tolist(), strict=True):
            if found:
                row = int(flag.to(torch.int8).argmax())
                raise TokenFault(row, say(row))
