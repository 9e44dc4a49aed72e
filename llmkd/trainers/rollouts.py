"""What the student wrote, as a batch that a teacher can be asked about, and which of it a term looks at.

TRL pads prompts on the left and completions on the right.  Our models are asked about rows that begin at 0
(``backbone.hidden_states``), so the padding of the prompt is moved behind the completion.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llmkd.types import Batch

logger = logging.getLogger(__name__)


def as_batch(rollouts: Mapping[str, Tensor], counted: Tensor) -> Batch:
    """``input_ids [B, P + C]``, begun at 0, and ``counted``: where ``counted [B, C]`` is, in the same order."""
    ids, at = torch.cat([rollouts["prompt_ids"], rollouts["completion_ids"]], dim=1), moved(rollouts)
    whole = torch.cat([torch.zeros_like(rollouts["prompt_mask"], dtype=torch.bool), counted.bool()], dim=1)
    return {
        "input_ids": ids.gather(1, at), "counted": whole.gather(1, at),
        "domain_ids": torch.zeros_like(ids) + rollouts["domain_ids"].unsqueeze(1) if "domain_ids" in rollouts
        else torch.zeros_like(ids),
    }  # fmt: skip


Said = tuple[list[int], list[int], int]
"""The tokens of a prompt, those of its completion, and the domain's id."""


def completions_in(batch: Batch) -> list[Said]:
    """The rows of a batch that ``as_batch`` made, without padding; each has a counted token at least."""
    found = []
    columns = (batch[name].tolist() for name in ("input_ids", "counted", "domain_ids"))
    for ids, counted, domains in zip(*columns, strict=True):
        start = counted.index(True)
        found.append((ids[:start], ids[start : start + sum(counted)], domains[start]))
    return found


def token_row(prompt: Sequence[int], said: Sequence[int], domain: int) -> dict[str, Any]:
    """What the student wrote as a row for a collator."""
    return {
        "input_ids": [*prompt, *said], "counted": [0] * len(prompt) + [1] * len(said),
        "seq_lengths": [len(prompt) + len(said)], "domains": [domain], "n_bytes": 0, "own": [1],
    }  # fmt: skip


def moved(rollouts: Mapping[str, Tensor]) -> Tensor:
    """Where each token ``[B, P + C]`` of a row that begins at 0 stands in TRL's row."""
    length = rollouts["prompt_ids"].shape[1] + rollouts["completion_ids"].shape[1]
    padding = (rollouts["prompt_mask"] == 0).sum(1, keepdim=True)
    return (torch.arange(length, device=padding.device) + padding) % length


def part_of(rollouts: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """Some of the rows; what is one number for all of them stays."""
    return {k: v[rows] if v.dim() else v for k, v in rollouts.items() if isinstance(v, Tensor)}


def own_ends(completion_ids: Tensor, student_ends: Collection[int], teacher_ends: Collection[int]) -> Tensor:
    """True ``[B, C]`` where the student ended its turn with a token by which the teacher does not end one: there the
    teacher has nothing to say."""
    foreign = [token for token in student_ends if token not in set(teacher_ends)]
    if not foreign:
        return torch.zeros_like(completion_ids, dtype=torch.bool)
    return torch.isin(completion_ids, torch.tensor(foreign, device=completion_ids.device))


def kept_samples(mask: str | None, correct: Tensor, group: int) -> Tensor:
    """Which of the samples ``correct [S]`` (1 right, 0 wrong, NaN not graded), in groups of ``group``, a term looks at.

    ``correct``: those that are right.  ``incorrect``: those that are wrong.  ``group_all_wrong``: those of groups in
    which all are, so a subset of it.
    """
    if mask is None:
        return torch.ones_like(correct, dtype=torch.bool)
    if mask == "correct":
        return correct == 1
    if mask == "incorrect":
        return incorrect(correct)
    assert mask == "group_all_wrong", mask
    return group_all_wrong(correct, group)


def incorrect(correct: Tensor) -> Tensor:
    """True ``[S]`` where a completion is wrong (0); not where it is right (1) or was not graded (NaN)."""
    return correct == 0


def group_all_wrong(correct: Tensor, group: int) -> Tensor:
    """True ``[S]`` where all completions of a group are wrong; ValueError where they are no whole number of groups."""
    if group < 1 or correct.numel() % group:
        raise ValueError(f"group: {correct.numel()} samples are no whole number of groups of {group}")
    return incorrect(correct).view(-1, group).all(1).repeat_interleave(group)


def pass_rates(correct: Tensor, group: int) -> Tensor:
    """For each of the samples ``correct [S]`` the share of its group that is right; NaN where none was graded."""
    return correct.view(-1, group).nanmean(1).repeat_interleave(group)


def weighed(rewards: Tensor, weights: Tensor) -> Tensor:
    """The sum ``[S]`` of the rewards ``[S, R]`` that a sample has, by their weights; NaN where it has none."""
    values = (rewards * weights.to(rewards)).nansum(1)
    return values.masked_fill(rewards.isnan().all(1), torch.nan)


def without_contrast(values: Tensor, group: int) -> Tensor:
    """True ``[S / group]`` where the samples of a group that have a value all have the same: it teaches nothing."""
    rows, nothing = values.view(-1, group), torch.inf
    highest, lowest = rows.nan_to_num(nan=-nothing).amax(1), rows.nan_to_num(nan=nothing).amin(1)
    return ~(highest > lowest) | torch.isclose(highest, lowest)


class EndsSeen:
    """A warning for each time that completions begin not to end: a student that does not stop is worth nothing."""

    def __init__(self) -> None:
        self.some = True

    def look(self, trainer: Any) -> None:
        """To be called after TRL has drawn completions and measured them."""
        ended = trainer._metrics["train"]["completions/clipped_ratio"][-1] < 1
        if self.some and not ended:
            logger.warning(
                "step %d: not one completion of the step ended by itself within train.max_completion_length=%d "
                "tokens: nothing teaches the student where to end. Raise it, or check the chat template and the "
                "student's end-of-turn token (%s)",
                trainer.state.global_step + 1, trainer.max_completion_length, trainer.eos_token_ids,
            )  # fmt: skip
        self.some = ended
