"""On-policy distillation: the student writes, a teacher says at every token what it would have written.

A thin subclass of ``trl.DistillationTrainer``, from which it has the generation (``generate`` or vLLM) and its figures.
What it changes: prompts come in an order that is a pure function of the seed; the loss is the Objective, with any
divergence and any teacher, computed inside the wrapper's forward and divided by the counted tokens of the whole
optimizer step; a share of the steps may be on the data's completions, counted as off-policy distillation counts them,
or on what the student wrote before (``own_share``), or each on both kinds (``pairs``).  Completions may be drawn with a
teacher's help, and tokens weighed by what followed them (MiniLLM).

TRL is given no teacher: it would refuse heads of different sizes, and leave a teacher whole under FSDP2.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Sampler
from trl import DistillationTrainer

from llmkd.trainers.callbacks import Unlogged, seconds_of
from llmkd.trainers.checkpoints import read_mark, save_checkpoint
from llmkd.trainers.held_out import HeldOut, evaluate
from llmkd.trainers.mixed_sampling import mixed_with
from llmkd.trainers.objective_loss import objective_loss, tell_schedules, unlogged
from llmkd.trainers.optimizers import muon_adamw_where_asked
from llmkd.trainers.own_share import OwnShare, Source
from llmkd.trainers.replay import Replay
from llmkd.trainers.rollouts import EndsSeen, as_batch, completions_in, own_ends, token_row
from llmkd.trainers.sequence_columns import Sequences, given_columns, tally, written_columns
from llmkd.trainers.tallies import Tallies
from llmkd.trl_compat import whole_for_generation
from llmkd.types import Batch, Loss, Teacher

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]


class OnPolicyTrainer(DistillationTrainer):
    """objective: the sum of terms; teachers: by name; ends: by which tokens each teacher ends a turn; collate: rows of
    tokens as a batch, for the steps that are not on-policy; order: given the number of rows that the whole run draws,
    the sampler, each index as often as a step has micro-batches; held_out, yardstick: as off-policy; sequences: what is
    asked of whole completions.  The rest goes to TRL."""

    _tag_names: ClassVar[list[str]] = ["trl", "llmkd"]
    _name = "llmkd"

    def __init__(
        self,
        *,
        objective: Loss,
        teachers: Mapping[str, Teacher],
        ends: Mapping[str, Sequence[int]],
        collate: Callable[[Sequence[Row]], dict[str, Tensor]] | None,
        order: Callable[[int], Sampler],
        held_out: Sequence[HeldOut] = (),
        yardstick: Loss | None = None,
        sequences: Sequences | None = None,
        **trl: Any,
    ) -> None:
        args = trl["args"]
        args.remove_unused_columns = False
        super().__init__(eval_dataset={h.domain: h.rows for h in held_out} or None, **trl)
        self.objective, self.teachers, self.ends = objective, teachers, ends
        self.collate, self.order, self.sequences = collate, order, sequences
        self.held_out, self.yardstick = list(held_out), yardstick or objective
        self.measured = Tallies(objective.domains)
        self.of_step = Tallies(objective.domains)  # what the adaptive schedules are told
        self.tokens_seen = torch.zeros((), dtype=torch.int64, device=args.device)
        self.completions_seen = 0  # those that the student wrote
        buffer = Replay(args.replay_capacity) if args.replay_capacity else None
        self.own_share = OwnShare(args.lmbda, args.lmbda_schedule == "adaptive", buffer)
        self._counts: Tensor | None = None  # of the step that is being trained
        self.ends_seen = EndsSeen()

    # -- data ---------------------------------------------------------------------------------------------------------

    @property
    def rows_per_step(self) -> int:
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        """One pass that holds every draw of the run: resuming skips what was drawn, whatever the epoch."""
        return self.order(self.args.max_steps * self.rows_per_step)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """None where the training is over before the step, resumed from the checkpoint of an early stop."""
        if self.control.should_training_stop:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def prompt_ids(self, rows: Sequence[Row]) -> list[list[int]]:
        """The tokens of prompts, as the student is asked to go on from them."""
        return self._tokenize_prompts([row["prompt"] for row in rows])[0]

    def written_to(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Rows of tokens, for ``collate``: what the student writes to these prompts now, and for every second one the
        data's completion where there is one; ``llmkd verify`` looks at them."""
        asked = self.prompt_ids(rows)
        written = self._generate_single_turn(asked, None, {})
        return [
            {**row, "own": [0]} if at % 2 and any(row.get("counted", ())) else token_row(prompt, said, row["domain_id"])
            for at, (row, prompt, said) in enumerate(zip(rows, asked, written, strict=True))
        ]

    def whole(self) -> AbstractContextManager[nn.Module]:
        """The student with its parameters gathered, ready for ``generate``."""
        return whole_for_generation(self.model_wrapped, self.accelerator)

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **more: Any) -> Any:
        """Where it counts how tokens were drawn, without dropout; and from the mixture, if there is one."""
        if self.sequences is None:
            return super()._generate_single_turn(prompt_ids, *rest, **more)
        was_training = self.model.training
        self.model.eval()
        with self._mixture(self.sequences):
            found = super()._generate_single_turn(prompt_ids, *rest, **more)
        self.model.train(was_training)
        return found

    def _mixture(self, asked: Sequences) -> AbstractContextManager[None]:
        if asked.writer is None:
            return nullcontext()
        writer: Any = self.teachers[asked.writer]
        return mixed_with(writer, self.model, asked.vocabulary, asked.formulas.mixture, self.accelerator)

    def sequence_columns(self, batch: Batch) -> dict[str, Tensor]:
        """What the objective's terms ask of completions that the student wrote; ``llmkd verify`` looks at it."""
        return {} if self.sequences is None else written_columns(self, self.sequences, batch)[0]

    # -- a step's rows ------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """The rows of this rank for a whole optimizer step, as a Batch of the student's completions or of the data's;
        TRL shuffles it and takes it apart into micro-batches.  A teacher may speak (``shared``) but where the student
        ends a turn with a token that is no end to the teacher."""
        kind, batch = self._completions(inputs)
        for name in {*self.objective.teacher_names, *(self.sequences.teachers if self.sequences else ())}:
            foreign = own_ends(batch["input_ids"], self.eos_token_ids, self.ends[name])
            batch[f"shared@{name}"] = batch["counted"] & ~foreign
        if self.sequences is not None:
            batch |= self._columns(batch, kind == "fresh")
        counts = self.objective.counts(batch)
        self._counts = self.accelerator.reduce(counts, reduction="sum")
        self.tokens_seen += self._counts[0]
        return batch

    def _completions(self, inputs: list[dict[str, Any]]) -> tuple[Source, dict[str, Tensor]]:
        """Those that this step is on; ``own`` is true of the rows that the student wrote, now or before."""
        args, step, share = self.args, self.state.global_step, self.own_share
        kind: Source = "pairs" if args.pairs else share.of_step(args.seed, step, args.max_steps)
        self._metrics["train"]["on_policy"].append({"fresh": 1.0, "pairs": 0.5}.get(kind, 0.0))
        if share.adaptive:
            self._metrics["train"]["lmbda"].append(share.share)
        if share.replay is not None:
            self._metrics["train"]["replay"].append(float(kind == "replay"))
        given = [{**row, "own": [0]} for row in inputs]
        if kind == "data":
            return kind, self._given(given)
        if kind == "replay":
            return kind, self._given(self._replayed(len(inputs)))
        batch = self._written(inputs)
        if kind == "pairs":
            return kind, self._given([*given, *(token_row(*said) for said in completions_in(batch))])
        if share.replay is not None:
            share.replay.add(gather_object(completions_in(batch)))
        return kind, batch

    def _replayed(self, count: int) -> list[dict[str, Any]]:
        """This rank's slice of the step's rows out of the buffer, which is the same on all ranks."""
        assert self.own_share.replay is not None
        drawn = self.own_share.replay.draw(self.args.seed, self.state.global_step, self.rows_per_step)
        first = self.accelerator.process_index * count
        return [token_row(*said) for said in drawn[first : first + count]]

    def _columns(self, batch: Batch, drawn: bool) -> dict[str, Tensor]:
        assert self.sequences is not None
        if not drawn:
            return given_columns(self.sequences, batch)
        columns, logged = written_columns(self, self.sequences, batch)
        self.measured.add(tally(logged, batch, len(self.objective.domains)))
        return columns

    def _written(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """What the student writes: its end counts, what is behind it does not."""
        out = super()._generate_and_score_completions(inputs)
        self.ends_seen.look(self)
        self.completions_seen += len(inputs) * self.accelerator.num_processes
        out["domain_ids"] = torch.tensor([row["domain_id"] for row in inputs], device=self.accelerator.device)
        batch = dict(as_batch(out, out["completion_mask"]))
        return batch | {"own": torch.ones_like(batch["counted"])}

    def _given(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        assert self.collate is not None, "a step on rows of tokens, and nothing to make a batch of them"
        return {k: v.to(self.accelerator.device) for k, v in self.collate(rows).items()}

    # -- loss ---------------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """This micro-batch's share of the step's loss, times the ranks over which gradients will be averaged."""
        assert not return_outputs, "there are no logits to return"
        assert self._counts is not None, "the counts of the step are needed"
        return objective_loss(self, model, inputs, self._counts)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | None = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            tell_schedules(self)
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        return muon_adamw_where_asked(self, model) or super().create_optimizer(model)

    # -- evaluation, log, checkpoints --------------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        metrics = evaluate(self)
        if self.own_share.adaptive:
            self.own_share.learn(metrics["eval_mean/ce"])
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the objective measured since the last line of training."""
        if "loss" in logs:
            logs.update(self.measured.take(self.accelerator))
            logs.update(self.objective.scheduled(self.state.global_step))
            logs["tokens"] = int(self.tokens_seen)
        self._metrics["eval"].clear()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        mark = {
            "tokens_seen": int(self.tokens_seen), "completions_seen": self.completions_seen,
            "seconds": seconds_of(self), "unlogged": unlogged(self), "objective": self.objective.state(),
            "metrics": dict(self._metrics["train"]), "some_ended": self.ends_seen.some,
            "own_share": self.own_share.state(),
        }  # fmt: skip
        save_checkpoint(self, lambda: super(DistillationTrainer, self)._save_checkpoint(model, trial), mark)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            mark = read_mark(Path(checkpoint))
            self.tokens_seen.fill_(mark["tokens_seen"])
            self.completions_seen = mark["completions_seen"]
            self.objective.restore(mark["objective"])
            for name, values in mark["metrics"].items():
                self._metrics["train"][name].extend(values)
            self.ends_seen.some = mark["some_ended"]
            self.own_share.restore(mark["own_share"])
            self.add_callback(Unlogged(self, mark["unlogged"]))
