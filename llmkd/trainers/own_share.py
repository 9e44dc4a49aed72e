"""Which steps are on what the student wrote, now or before, and which on the data's completions.

Paper: Ko et al., DistiLLM, 2024 (arXiv 2402.03898), here from its released code: the share of the student's own rises
where the held-out cross-entropy does, and a buffer serves more and more of it towards the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from llmkd.trainers.replay import Replay

Source = Literal["fresh", "replay", "data", "pairs"]
SHARE_STEP = 0.1
LOSS_MARGIN = 0.1


def draw_of(seed: int, step: int) -> float:
    """What a step draws from U(0, 1): the same on all ranks."""
    return float(np.random.default_rng([seed, step, 0, 1]).random())


def on_policy(seed: int, step: int, share: float) -> bool:
    """Whether a step is on the student's own completions: so is a share of them, the same steps on all ranks."""
    return draw_of(seed, step) < share


def source(draw: float, share: float, done: float, full: bool) -> Source:
    """What a step trains on, by one ``draw`` from U(0, 1): completions written now, written before, or the data set's.

    ``done`` is the fraction of training done; ``full``: there is a buffer and it is full.  Fresh with chance ``share
    (1 - done)``, and in the rest of the share as long as the buffer is not full; else from the buffer; outside the
    share from the data.
    """
    if draw < share * (1 - done) or (draw < share and not full):
        return "fresh"
    return "replay" if draw < share else "data"


def raised_share(share: float, loss_before: float, loss: float) -> tuple[float, float]:
    """After an evaluation: ``(share, loss_before)`` for the next one.

    Where the held-out loss is at least 0.1 above the one before, the share of the student's own rises by 0.1, to at
    most 1, and this loss is the one to compare with; else both stay.  DistiLLM starts at 0 and with the loss before
    training.
    """
    if loss >= loss_before + LOSS_MARGIN:
        return min(1.0, share + SHARE_STEP), loss
    return share, loss_before


@dataclass
class OwnShare:
    """The share of steps on the student's own completions, as it stands.

    adaptive: it learns from the held-out loss, of which ``loss_before`` is the one to compare with; replay: None where
    no completion is looked at twice.
    """

    share: float
    adaptive: bool = False
    replay: Replay | None = None
    loss_before: float | None = None

    def of_step(self, seed: int, step: int, steps: int) -> Source:
        full = self.replay is not None and self.replay.full
        return source(draw_of(seed, step), self.share, step / steps, full)

    def learn(self, loss: float) -> None:
        """``loss``: of an evaluation, the same on all ranks; the first one is before training."""
        if not self.adaptive:
            return
        if self.loss_before is None:
            self.loss_before = loss
            return
        self.share, self.loss_before = raised_share(self.share, self.loss_before, loss)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        kept = self.replay.state() if self.replay else []
        return {"share": self.share, "loss_before": self.loss_before, "replay": kept}

    def restore(self, state: dict[str, Any]) -> None:
        if self.adaptive:
            self.share, self.loss_before = state["share"], state["loss_before"]
        if self.replay is not None:
            self.replay.restore(state["replay"])
