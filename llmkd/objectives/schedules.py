"""Numbers that change with the optimizer step: functions of the steps done so far, and TAID's adaptive one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Schedule = Callable[[int], float]


def linear(step: int, start: float, stop: float, steps: int) -> float:
    """From ``start`` in a straight line to ``stop``, reached after ``steps`` steps and kept."""
    return start + (stop - start) * min(1.0, step / steps)


def cosine(step: int, start: float, stop: float, steps: int) -> float:
    """The same along half a cosine: slow at both ends."""
    return stop + (start - stop) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def switch_at(step: int, start: float, stop: float, steps: int) -> float:
    """``start`` for the first ``steps`` steps, then ``stop``."""
    return start if step < steps else stop


def piecewise(step: int, points: Sequence[Sequence[float]]) -> float:
    """Straight lines between points ``(step, value)`` of rising step; the first and the last value are kept outside."""
    if step <= points[0][0]:
        return points[0][1]
    for (left, before), (right, after) in itertools.pairwise(points):
        if step <= right:
            return before + (after - before) * (step - left) / (right - left)
    return points[-1][1]


CURVES: dict[str, Callable[[int, float, float, int], float]] = {
    "linear": linear,
    "cosine": cosine,
    "switch_at": switch_at,
}


@dataclass
class Adaptive:
    """TAID's t: it rises faster while the loss falls, and never slower than a straight line.

    After each step with the mean value J of the term::

        delta = (J_before - J) / J_before;  m = beta m + (1 - beta) delta
        t = min(stop, max(line, t + alpha sigmoid(m) (1 - t)))

    where ``line`` goes from start to stop in ``steps`` steps.  The first step only stores J.
    Shing et al., TAID, 2025.  What differs: (1) J is the divergence, as in the paper; the released code takes the
    cross-entropy, in which the entropy of the moving target drifts.
    """

    start: float
    stop: float
    steps: int
    alpha: float = 5e-4
    beta: float = 0.99
    t: float = field(init=False)
    momentum: float = field(default=0.0, init=False)
    before: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.t = self.start

    def __call__(self, step: int) -> float:
        return self.t

    def observe(self, value: float, step: int) -> None:
        """``value``: the term's mean over the tokens of the step, over all processes; ``step``: steps done with it."""
        if self.before is not None:
            delta = (self.before - value) / (self.before + 1e-15)
            self.momentum = self.beta * self.momentum + (1 - self.beta) * delta
            rise = self.alpha * (1 - self.t) / (1 + math.exp(-self.momentum))
            self.t = min(self.stop, max(linear(step, self.start, self.stop, self.steps), self.t + rise))
        self.before = value

    def state(self) -> dict[str, Any]:
        return {"t": self.t, "momentum": self.momentum, "before": self.before}

    def restore(self, state: dict[str, Any]) -> None:
        self.t, self.momentum, self.before = state["t"], state["momentum"], state["before"]
