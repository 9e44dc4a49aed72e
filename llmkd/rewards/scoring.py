"""Many completions through several rewards, with a wrong value named and masked, or the end of the run."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkd.rewards.table import Loaded

logger = logging.getLogger(__name__)

SHOWN = 200
"""Characters of a completion that a failure shows."""
LOGGED = 3
"""Failures of one call that are logged in words; all are counted and kept."""


class RewardError(ValueError):
    """A reward that says ``on_error: stop`` raised, or gave no finite number."""


@dataclass(frozen=True)
class Failure:
    """A sample without a value: by which reward, its index in the call, the completion's start, what was wrong."""

    reward: str
    index: int
    completion: str
    error: str

    def __str__(self) -> str:
        return f"reward {self.reward}: sample {self.index}: {self.error}; the completion begins {self.completion!r}"


@dataclass(frozen=True)
class Scores:
    """values: [rewards][samples], None where masked; failures: why, one for each None. ``scores[0]`` is a row."""

    values: list[list[float | None]]
    failures: list[Failure]

    def __getitem__(self, reward: int) -> list[float | None]:
        return self.values[reward]

    def __len__(self) -> int:
        return len(self.values)

    def masked(self) -> dict[str, int]:
        """How many samples each reward that failed has masked, by its name."""
        names = [failure.reward for failure in self.failures]
        return {name: names.count(name) for name in dict.fromkeys(names)}


def score(
    rewards: Sequence[Loaded], prompts: Sequence[Any], completions: Sequence[str],
    references: Sequence[Sequence[Any]], *, tokens: Sequence[int] | None = None,
) -> Scores:  # fmt: skip
    """The value of every sample under every reward, in float64, unweighted.

    prompts, completions, tokens: one a sample; references: for each reward one a sample (``references_of``).  A reward
    that raises, or whose value is no number, NaN or infinite, gives None for the sample, and the failure is kept and
    logged, the first three of a call in words.

    Raises: ValueError where the lengths differ or a reward needs ``tokens`` and there are none; RewardError, which
    names the sample, where such a reward has ``on_error="stop"``.
    """
    counts = {len(prompts), len(completions), *map(len, references), *([] if tokens is None else [len(tokens)])}
    if len(counts) > 1 or len(references) != len(rewards):
        raise ValueError(
            f"score: {len(prompts)} prompts, {len(completions)} completions, {[len(row) for row in references]} "
            f"references for {len(rewards)} rewards: give one a sample, and a row of references a reward"
        )
    for reward in rewards:
        if reward.tokens == "needed" and tokens is None:
            raise ValueError(f"reward {reward.name}: it needs the number of tokens of each completion: give tokens")
    lengths: Sequence[int | None] = [None] * len(prompts) if tokens is None else tokens
    failures: list[Failure] = []
    values = []
    for reward, row in zip(rewards, references, strict=True):
        samples = zip(prompts, completions, row, lengths, strict=True)
        values.append([_value(reward, index, sample, failures) for index, sample in enumerate(samples)])
    for failure in failures[:LOGGED]:
        logger.warning("%s: masked", failure)
    if len(failures) > LOGGED:
        logger.warning("rewards: %d samples masked in this call, %d of them not shown", len(failures),
                       len(failures) - LOGGED)  # fmt: skip
    return Scores(values, failures)


def references_of(rewards: Sequence[Loaded], rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """For each reward the references of all rows, from its column; None for a reward without one.

    Raises: ValueError where a row lacks the column.
    """
    return [[_reference(reward, index, row) for index, row in enumerate(rows)] for reward in rewards]


def _reference(reward: Loaded, index: int, row: Mapping[str, Any]) -> Any:
    if reward.column is None:
        return None
    if reward.column not in row:
        raise ValueError(
            f"reward {reward.name}: row {index} has no column {reward.column!r}, it has {', '.join(row) or 'none'}: "
            "name the column of the reference with column"
        )
    return row[reward.column]


def _value(reward: Loaded, index: int, sample: tuple[Any, str, Any, int | None], failures: list[Failure]) -> Any:
    prompt, completion, reference, tokens = sample
    cause = None
    try:
        value = reward(prompt, completion, reference, tokens=tokens)
        error = _problem(value)
    except Exception as raised:  # a user's function may raise whatever it likes
        cause, error = raised, f"raised {type(raised).__name__}: {raised}"
    if error is None:
        return float(value)
    failure = Failure(reward.name, index, completion[:SHOWN], error)
    if reward.on_error == "stop":
        raise RewardError(f"{failure}; the run stops, since the reward says on_error: stop") from cause
    failures.append(failure)
    return None


def _problem(value: Any) -> str | None:
    """What is wrong with a reward's value, None where nothing is. A truth value is 0 or 1; a tensor is no number."""
    if not isinstance(value, numbers.Real) and type(value).__name__ not in ("bool", "bool_"):
        return f"gave {value!r:.80} ({type(value).__name__}), which is no number"
    return None if math.isfinite(float(value)) else f"gave {float(value)}, which is not finite"
