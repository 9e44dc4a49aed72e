"""What the teachers say of rollouts, asked once for each generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmkd.trainers.policy_terms import WHOLE, TeacherTerm, at
from llmkd.trainers.rollouts import as_batch, own_ends, part_of

Rollouts = dict[str, Any]
"""What TRL makes of a generation: prompts, completions, masks, advantages; and our columns beside them."""


def is_heard(trainer: Any, term: TeacherTerm) -> bool:
    """Whether a term has a weight at one of the steps that are trained on the rollout that begins now, which may be in
    the middle of a step."""
    each = trainer.current_gradient_accumulation_steps or trainer.args.gradient_accumulation_steps
    first, done = trainer.state.global_step, trainer._step % each
    updates = -(-(done + trainer._steps_per_rollout) // each)
    return any(at(term.weight, step) != 0 for step in range(first, first + updates))


def ask(trainer: Any, name: str, out: Rollouts) -> None:
    """What a teacher says of the rollouts, a micro-batch at a time: of the sampled tokens ``logp@NAME [B, C]``, or of
    the likeliest ``ids@NAME [B, C, k]`` and ``top@NAME``; and where it is heard, ``heard@NAME [B, C]``."""
    mask = counted_in(out).bool()
    out[f"heard@{name}"] = mask & ~own_ends(out["completion_ids"], trainer.eos_token_ids, trainer.ends[name])
    terms = [term for term in trainer.terms if term.teacher == name]
    top = max((term.k for term in terms if term.estimator == "topk"), default=0)
    sampled = any(term.estimator not in WHOLE for term in terms)
    if not (top or sampled):
        return
    shape, vocabulary, formulas = out["completion_ids"].shape, trainer.vocabulary, trainer.formulas
    logp = torch.zeros(shape, dtype=torch.float32, device=mask.device)
    ids = torch.zeros(*shape, min(top, vocabulary), dtype=torch.int64, device=mask.device)
    best = torch.full(ids.shape, -torch.inf, dtype=torch.float32, device=mask.device)
    size = trainer.args.per_device_train_batch_size
    for start in range(0, shape[0], size):
        rows = slice(start, start + size)
        part, counted = part_of(out, rows), mask[rows]
        signals = trainer.teachers[name].score(as_batch(part, counted))
        if top:
            ids[rows][counted], best[rows][counted] = formulas.likeliest(signals, top, vocabulary)
        if sampled:
            targets = part["completion_ids"][counted]
            logp[rows][counted] = formulas.sampled(signals, targets, vocabulary, trainer.tau_teacher)
    if top:
        out[f"ids@{name}"], out[f"top@{name}"] = ids, best
    if sampled:
        out[f"logp@{name}"] = logp


def counted_in(rollouts: Rollouts) -> Tensor:
    """``[B, C]``, 1 at the tokens that the student wrote and that count."""
    mask: Tensor = rollouts["completion_mask"]
    return mask * rollouts["tool_mask"] if "tool_mask" in rollouts else mask
