"""The rewards of a recipe as the functions that TRL calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from llmkd.config import Reward
from llmkd.rewards.scoring import references_of, score
from llmkd.rewards.table import Loaded, load

TrlReward = Callable[..., list[float | None]]


def reward_functions(sections: Sequence[Reward]) -> tuple[list[TrlReward], list[float] | None]:
    """One function a reward, under its name, and their weights; without rewards one that says 0 of everything, since
    TRL wants some."""
    if not sections:
        return [_nothing()], None
    loaded = [load(section) for section in sections]
    return [_function(reward) for reward in loaded], [reward.weight for reward in loaded]


def _nothing() -> TrlReward:
    def none(completions: list[Any], **_: Any) -> list[float | None]:
        return [0.0] * len(completions)

    return none


def _function(reward: Loaded) -> TrlReward:
    """None for a sample that the reward failed on."""

    def graded(prompts: list[Any], completions: list[Any], reference: list[str], **given: Any) -> list[float | None]:
        lengths = [len(ids) for ids in given["completion_ids"]]
        rows = [json.loads(said) for said in reference]
        texts = [text_of(completion) for completion in completions]
        found = score([reward], prompts, texts, references_of([reward], rows), tokens=lengths)
        return found[0]

    graded.__name__ = reward.name
    return graded


def text_of(completion: Any) -> str:
    """What the assistant said: TRL gives a text, or a list of messages where the prompt is one."""
    if isinstance(completion, str):
        return completion
    return "".join(message.get("content") or "" for message in completion)
