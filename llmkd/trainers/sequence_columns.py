"""What a term asks of a whole completion before its tokens can be trained on, as columns of the batch.

``column:importance [B, T]``    w, the student's probability of a token over that with which it was drawn
``column:future:NAME [B, T]``   w A of the term NAME, with the return A of the tokens that follow

They are made right after completions were written, without a gradient, from a forward pass of the student and of the
teacher.  On completions of the data w is 1 and A is 0: nobody's choice is to be praised there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmkd.backbone import head_module, head_of, hidden_states, through
from llmkd.types import Batch, Signals, States, Tally

IMPORTANCE = "importance"
Pointwise = Callable[[Tensor, Tensor], Tensor]


def future_column(term: str) -> str:
    return f"future:{term}"


@dataclass(frozen=True)
class SequenceFormulas:
    """The mathematics, as functions of tensors: ``llmkd.objectives`` has them.

    sampled: ``(signals, targets, vocabulary) -> logp [N]``; mixture and importance: ``(logp, logq)`` of tokens to the
    log of what they are drawn from, and to w; reward: ``log p - log q``; returns: by name, ``(reward, mask) -> A``.
    """

    sampled: Callable[[Signals, Tensor, int], Tensor]
    mixture: Pointwise
    importance: Pointwise
    reward: Pointwise
    returns: dict[str, Pointwise]


@dataclass(frozen=True)
class FutureTerm:
    """name: of the term; teacher: by whom its tokens are rewarded; returns: which; weighed: whether w scales it."""

    name: str
    teacher: str
    returns: str = "normalised"
    weighed: bool = False


@dataclass(frozen=True)
class Sequences:
    """writer: the teacher that has a share in what is drawn, if one has; weighed: whether a term reads w by itself."""

    formulas: SequenceFormulas
    vocabulary: int
    futures: Sequence[FutureTerm] = ()
    writer: str | None = None
    weighed: bool = False

    @property
    def teachers(self) -> list[str]:
        """Who has to be asked."""
        wanted = self.weighed or any(term.weighed for term in self.futures)
        writer = [self.writer] if wanted and self.writer is not None else []
        return sorted({*writer, *(term.teacher for term in self.futures)})


def given_columns(asked: Sequences, batch: Batch) -> dict[str, Tensor]:
    """The columns of completions that nobody drew."""
    like = torch.zeros_like(batch["input_ids"], dtype=torch.float32)
    found = {f"column:{future_column(term.name)}": like.clone() for term in asked.futures}
    return found | ({f"column:{IMPORTANCE}": like + 1} if asked.weighed else {})


def written_columns(trainer: Any, asked: Sequences, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The columns of what the student has just written, and what there is to be logged of them, by name ``[B, T]``.

    All processes must call this, with as many rows: sharded models are gathered for it.
    """
    columns = given_columns(asked, batch)
    if not asked.teachers:
        return columns, {}
    logq, logp = _scored(trainer, asked, batch)
    weight = torch.ones_like(logq)
    logged: dict[str, Tensor] = {}
    if asked.writer in logp:
        weight = torch.where(batch["counted"], asked.formulas.importance(logp[asked.writer], logq), 1.0)
        logged["importance_weight"] = weight
    if asked.weighed:
        columns[f"column:{IMPORTANCE}"] = weight
    for term in asked.futures:
        heard = batch.get(f"shared@{term.teacher}", batch["counted"])
        reward = asked.formulas.reward(logp[term.teacher], logq)
        returned = asked.formulas.returns[term.returns](reward, heard)
        logged[f"{term.name}/return"] = returned
        columns[f"column:{future_column(term.name)}"] = weight * returned if term.weighed else returned
    return columns, logged


def tally(logged: dict[str, Tensor], batch: Batch, domains: int) -> Tally:
    """Sums and counts ``[D, 2]`` over the counted tokens."""
    counted = batch["counted"]
    domain = batch["domain_ids"][counted]
    exact = torch.float32 if counted.device.type == "mps" else torch.float64
    found = {}
    for name, values in logged.items():
        both = torch.stack([values[counted], torch.ones_like(values[counted])], dim=1).to(exact)
        found[name] = torch.zeros(domains, 2, dtype=exact, device=counted.device).index_add_(0, domain, both)
    return found


@torch.no_grad()
def _scored(trainer: Any, asked: Sequences, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities ``[B, T]`` of the counted tokens, 0 elsewhere, by the student and by each teacher."""
    student = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    was_training = student.training
    student.eval()
    size = trainer.args.per_device_train_batch_size
    own, others = [], []
    for start in range(0, len(batch["input_ids"]), size):
        part = {name: batch[name][start : start + size] for name in ("input_ids", "counted")}
        own.append(_spread(_of_student(trainer, student, asked, part), part))
        others.append([_spread(_of_teacher(trainer.teachers[name], asked, part), part) for name in asked.teachers])
    student.train(was_training)
    logp = [torch.cat(parts) for parts in zip(*others, strict=True)]
    return torch.cat(own), dict(zip(asked.teachers, logp, strict=True))


def _of_student(trainer: Any, student: Any, asked: Sequences, batch: Batch) -> Tensor:
    """Inside its wrapper's forward, where sharded parameters are whole."""
    targets = batch["input_ids"][batch["counted"]]

    def at_head(hidden: Tensor) -> Tensor:
        return asked.formulas.sampled(States(hidden, head_of(student)), targets, asked.vocabulary)

    def forward() -> Tensor:
        with trainer.accelerator.autocast():
            hidden = hidden_states(student, batch)
            return through(head_module(student), head_module(student), at_head, hidden)

    found: Tensor = through(trainer.model_wrapped, student, forward)
    return found.float()


def _of_teacher(teacher: Any, asked: Sequences, batch: Batch) -> Tensor:
    return asked.formulas.sampled(teacher.score(batch), batch["input_ids"][batch["counted"]], asked.vocabulary)


def _spread(values: Tensor, batch: Batch) -> Tensor:
    out = torch.zeros_like(batch["input_ids"], dtype=values.dtype)
    out[batch["counted"]] = values
    return out
