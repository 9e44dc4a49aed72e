"""A micro-batch's share of the step's loss, by the Objective: what training on data and on own samples have in common.

A trainer is given: its ``objective``, ``teachers`` by name, ``accelerator`` and ``state``, and its tallies ``measured``
and ``of_step``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from llmkd.backbone import head_module, head_of, hidden_states, through
from llmkd.types import Batch, Tally


def objective_loss(trainer: Any, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
    """This micro-batch's share of the step's loss, times the ranks over which gradients will be averaged.

    model: the student as it is wrapped; counts ``[K + 1]``: of the whole optimizer step, over all ranks.
    """
    objective, accelerator = trainer.objective, trainer.accelerator
    signals = {name: trainer.teachers[name].score(batch) for name in objective.teacher_names}
    student = accelerator.unwrap_model(model)
    measured: Tally = {}
    exact: list[Tensor] = []

    def at_head(hidden: Tensor) -> Tensor:
        loss, tally = objective(hidden, head_of(student), signals, batch, counts, step=trainer.state.global_step)
        measured.update(tally)
        exact.append(loss.detach())
        return loss

    def forward() -> Tensor:
        with accelerator.autocast():
            hidden = hidden_states(student, batch)
            return through(head_module(student), head_module(student), at_head, hidden)

    loss: Tensor = through(model, student, forward)
    trainer.measured.add(measured)
    if objective.adaptive:
        trainer.of_step.add({f"{name}/value": measured[f"{name}/value"] for name in objective.adaptive})
    if loss.dtype != exact[0].dtype:  # FSDP2 rounds what leaves a module: the value is put back
        loss = exact[0] + (loss - loss.detach()).to(exact[0].dtype)
    return loss * accelerator.num_processes


def tell_schedules(trainer: Any) -> None:
    """Let the adaptive schedules learn from the step that is done; all ranks must call this."""
    if trainer.objective.adaptive:
        means = {n.removesuffix("/value"): v for n, v in trainer.of_step.take(trainer.accelerator).items()}
        trainer.objective.observe(means, trainer.state.global_step + 1)


def unlogged(trainer: Any) -> dict[str, Any]:
    """What the steps since the last log line measured, for a checkpoint; all ranks must call this."""
    return {
        "since": trainer._globalstep_last_logged,
        "loss": float(trainer.accelerator.reduce(trainer._tr_loss.clone(), reduction="mean")),
        "measured": trainer.measured.total(trainer.accelerator),
    }
