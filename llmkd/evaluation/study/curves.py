"""How the arms went, step by step.

``curves.json``::

    {"form": 1,
     "arms": {"forward_kl": {                              # in the order of the table
         "0": {"loss": [[20, 3.91], [40, 3.1]],            # [step, value] by seed; value null: not finite
               "kd/forward_kl": [[20, 2.2]],               # every term's lines, under their names in metrics.jsonl
               "held_out.code.kl": [[150, 0.41]]}}}}       # evaluations during training, and the one at the end
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkd.evaluation.study.outcomes import Outcome, all_finite, metrics

FORM = 1
_NOT_CURVES = ("step", "seconds", "tokens", "epoch", "peak_memory")


def contents(outcomes: Mapping[str, Mapping[int, Outcome]], folder: Path) -> dict[str, Any]:
    return {
        "form": FORM,
        "arms": {name: {str(seed): _curves(folder / run.folder, run) for seed, run in runs.items()}
                 for name, runs in outcomes.items()},
    }  # fmt: skip


def _curves(run: Path, outcome: Outcome) -> dict[str, list[list[float | None]]]:
    found: dict[str, list[list[float | None]]] = {}
    for line in metrics(run):
        for key, value in line.items():
            if key in _NOT_CURVES or not isinstance(value, int | float):
                continue
            # The trainer logs a loss of 0 where it is NaN, and other numbers of the line are not finite then.
            known = math.isfinite(value) and (key != "loss" or all_finite(line))
            number = float(value) if known else None
            found.setdefault(_name(key), []).append([line["step"], number])
    for path, value in outcome.values.items():
        if path.startswith("held_out.") and outcome.steps is not None:
            points = found.setdefault(path, [])
            if not points or points[-1][0] != outcome.steps:
                points.append([outcome.steps, value.number])
    return found


def _name(key: str) -> str:
    """``eval/code/kl`` -> ``held_out.code.kl``, the measure's path in the table."""
    words = key.split("/")
    return f"held_out.{words[1]}.{words[2]}" if words[0] == "eval" and len(words) == 3 else key
