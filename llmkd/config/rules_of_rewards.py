"""Rules of the rewards: between the keys of one, and between them. What a method asks of them is the method's."""

import re
from collections.abc import Iterator, Sequence

from llmkd.config.reward_kinds import REWARD_KINDS, knob_problems
from llmkd.config.rewards_section import Reward
from llmkd.config.values import shown

Problem = tuple[str, str]  # (dotted path, sentence)

# A label becomes part of metric names (`rewards/<label>/mean`).
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|.+\.py:[A-Za-z_]\w*")


def reward_problems(rewards: Sequence[Reward]) -> Iterator[Problem]:
    """Every broken rule of a recipe's rewards, whose single fields are all valid."""
    if rewards and not any(reward.weight for reward in rewards):
        yield "rewards", "every weight is 0, so nothing is rewarded: give one a weight other than 0"
    labels: set[str] = set()
    for index, reward in enumerate(rewards):
        yield from _reward(f"rewards.{index}", reward)
        if reward.label in labels:
            yield f"rewards.{index}.name", f"{shown(reward.label)} is the name of another reward: give each its own"
        labels.add(reward.label)
    marked = [reward.label for reward in rewards if reward.correct]
    if len(marked) > 1:
        yield "rewards", f"{', '.join(marked)} all have correct: true: leave it to the one that says what is right"


def _reward(path: str, reward: Reward) -> Iterator[Problem]:
    if (reward.kind is None) == (reward.path is None):
        yield path, f"{'neither' if reward.kind is None else 'both'} of kind and path is given: give one of them"
        return
    if not _NAME.fullmatch(reward.label):
        yield f"{path}.name", f"{shown(reward.label)} is not a name: use letters, digits, _ and - only"
    if reward.path is not None and not _PATH.fullmatch(reward.path):
        yield f"{path}.path", f"{shown(reward.path)} is no function: write package.module.function or file.py:function"
    if reward.kind is None:
        return
    for knob, sentence in knob_problems(reward.kind, reward.knobs):
        yield f"{path}.{knob}" if knob else path, sentence
    if REWARD_KINDS[reward.kind].needs_reference and reward.column is None:
        yield f"{path}.column", f"null, but {reward.kind} reads a reference: name the column that holds it"
    if reward.correct and not REWARD_KINDS[reward.kind].needs_reference:
        yield f"{path}.correct", f"true, but {reward.kind} reads no reference, so it cannot tell: mark another"
