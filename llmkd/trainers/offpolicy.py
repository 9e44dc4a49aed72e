"""Off-policy distillation on the data set's own completions; with cross-entropy alone it is plain fine-tuning.

A thin subclass of ``trl.SFTTrainer``.  What it changes: the data come prepared, in an order that is a pure function of
the seed; the loss is the Objective, computed inside the wrapper's forward and divided by the counted tokens of the
whole optimizer step; evaluation goes by domain; checkpoints are complete or they do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from trl import SFTTrainer

from llmkd.trainers.callbacks import Unlogged, seconds_of
from llmkd.trainers.checkpoints import read_mark, save_checkpoint
from llmkd.trainers.held_out import HeldOut, evaluate
from llmkd.trainers.objective_loss import objective_loss, tell_schedules, unlogged
from llmkd.trainers.optimizers import muon_adamw_where_asked
from llmkd.trainers.tallies import Tallies
from llmkd.trl_compat import whole_for_generation
from llmkd.types import Batch, Loss, Teacher


class OffPolicyTrainer(SFTTrainer):
    """objective: the sum of terms; teachers: by name; order: given the number of rows that the whole run draws, the
    sampler (None for a stream); held_out: the data sets of evaluation; yardstick: the objective they are measured by.
    The rest goes to TRL."""

    _tag_names: ClassVar[list[str]] = ["trl", "llmkd"]
    _name = "llmkd"
    # The loss is divided by the count of the whole accumulation window: nothing is left to divide.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        objective: Loss,
        teachers: Mapping[str, Teacher],
        order: Callable[[int], Sampler] | None,
        held_out: Sequence[HeldOut] = (),
        yardstick: Loss | None = None,
        **trl: Any,
    ) -> None:
        args = trl["args"]
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.remove_unused_columns = False
        # Rows arrive rendered, masked and packed.
        args.packing = args.padding_free = args.assistant_only_loss = False
        held = {h.domain: h.rows for h in held_out} or None
        super().__init__(eval_dataset=held, **trl)
        self.objective = objective
        self.teachers = teachers
        self.order = order
        self.held_out = list(held_out)
        self.yardstick = yardstick or objective
        self.measured = Tallies(objective.domains)
        self.of_step = Tallies(objective.domains)  # what the adaptive schedules are told
        self.tokens_seen = torch.zeros((), dtype=torch.int64, device=args.device)

    # -- data ---------------------------------------------------------------------------------------------------------

    @property
    def rows_per_step(self) -> int:
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """One pass that holds every draw of the run: resuming skips what was drawn, whatever the epoch."""
        return None if self.order is None else self.order(self.args.max_steps * self.rows_per_step)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Tensor]:
        """The micro-batches of one optimizer step, and the counts over all of them and all ranks ``[K + 1]``; none
        where the training is over before the step, resumed from the checkpoint of an early stop."""
        batches = []
        for _ in range(0 if self.control.should_training_stop else num_batches):
            batch = next(epoch_iterator, None)
            if batch is None:
                break
            batches.append(batch)
        counts = torch.zeros(len(self.objective.terms) + 1, dtype=torch.int64, device=device)
        for batch in batches:
            counts += self.objective.counts({k: v.to(device) for k, v in batch.items()})
        return batches, self.accelerator.reduce(counts, reduction="sum")

    def whole(self) -> AbstractContextManager[nn.Module]:
        """The student with its parameters gathered, ready for ``generate``."""
        return whole_for_generation(self.model_wrapped, self.accelerator)

    # -- loss ---------------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """This micro-batch's share of the step's loss, times the ranks over which gradients will be averaged."""
        assert not return_outputs, "there are no logits to return"
        assert num_items_in_batch is not None, "the counts of the step are needed"
        return objective_loss(self, model, inputs, num_items_in_batch)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        return muon_adamw_where_asked(self, model) or super().create_optimizer(model)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | None = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.tokens_seen += num_items_in_batch[0]
            tell_schedules(self)
        return loss

    # -- evaluation, log, checkpoints --------------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        return evaluate(self)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the objective measured since the last line of training."""
        if "loss" in logs:
            logs.update(self.measured.take(self.accelerator))
            logs.update(self.objective.scheduled(self.state.global_step))
            logs["tokens"] = int(self.tokens_seen)
        self._metrics["train"].clear()
        self._metrics["eval"].clear()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Where DeepSpeed leaves the model whole, TRL hands over a copy in which a tied head would be written twice."""
        plugin = self.accelerator.state.deepspeed_plugin
        super()._save(output_dir, None if plugin is not None and plugin.zero_stage < 3 else state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        mark = {"tokens_seen": int(self.tokens_seen), "seconds": seconds_of(self), "unlogged": unlogged(self),
                "objective": self.objective.state()}  # fmt: skip
        save_checkpoint(self, lambda: super(SFTTrainer, self)._save_checkpoint(model, trial), mark)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            mark = read_mark(Path(checkpoint))
            self.tokens_seen.fill_(mark["tokens_seen"])
            self.objective.restore(mark["objective"])
            self.add_callback(Unlogged(self, mark["unlogged"]))
