"""Laws of one recipe: its terms, on what its own models say of its own rows, in its own precision.

Everything is built as for a training, in a folder of its own that is gone afterwards; nothing is trained.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import datasets
import torch
import transformers
from torch import Tensor

from llmkd import config
from llmkd.backbone import causal_lm, head_of, hidden_states
from llmkd.build import Job, build
from llmkd.checks.law import Case, Finding, Law, Setting, at_most, near, same
from llmkd.checks.reference import Call, compared, dense, of_engine
from llmkd.objectives import objective as objectives
from llmkd.objectives.engine import fused_loss
from llmkd.objectives.request import Request, select
from llmkd.terms import TERMS
from llmkd.trainers.settings import train_fields
from llmkd.types import Batch, Head, Signals, States

GROUP = "recipe"
BATCHES, ROWS = 2, 4
"""Batches that are looked at, and at most so many rows of each."""
DENSE_LOGITS = 2**23
"""Logits of the student that exist at once in float64."""
DENSE_HEAD = 2**27
"""Weights of a head whose gradient is compared too."""


@contextmanager
def opened(path: str, overrides: Sequence[str], device: str | None) -> Iterator[Job]:
    """The live objects of a recipe, on its own device or the one that is named.

    Raises ValueError as ``config.load`` and ``build`` do.
    """
    recipe = config.load(path, overrides, train_fields=train_fields)
    if recipe.train.method == "rl":
        raise ValueError(
            f"{path}: train.method: rl: its terms are those of samples, not of rows to be laid before both models: "
            "llmkd verify without a recipe proves the estimators and divergences that it uses"
        )
    _quiet()
    with tempfile.TemporaryDirectory(prefix="llmkd-verify-") as folder:
        run = recipe.run.model_copy(
            update={"output_dir": folder, "report_to": "none", "hub": None, "resume": "never", "world_size": None}
        )
        options = dict(recipe.train.options)
        if device is not None:
            options["use_cpu"] = device == "cpu"
        train = recipe.train.model_copy(update={"options": options})
        yield build(recipe.model_copy(update={"run": run, "train": train}), draws=BATCHES * ROWS)


def _quiet() -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, where it is installed, warns while it guesses


def kinds(job: Job) -> list[str]:
    """The terms of the table that a recipe uses."""
    return list(dict.fromkeys(term.kind for term in job.trainer.objective.terms))


class Subject:
    """A recipe's models and rows, and the laws that are held against them.

    dtype: of hidden states and heads as the engine gets them; None: what the recipe trains in.
    """

    def __init__(self, job: Job, dtype: torch.dtype | None) -> None:
        self.job, self.trainer, self.objective = job, job.trainer, job.trainer.objective
        self.student = self.trainer.accelerator.unwrap_model(self.trainer.model).eval()
        size = min(ROWS, self.trainer.args.train_batch_size)
        drawn = self._first_rows(BATCHES * size)
        self.rows = [drawn[at : at + size] for at in range(0, len(drawn), size)]
        self.step = self.trainer.args.max_steps // 2  # where schedules are on their way
        self.measured = [self._measure(self.collated(rows)) for rows in self.rows]
        self.dtype = dtype or self._compute_dtype()
        self.setting = Setting(self.trainer.args.device.type, self.dtype, job.recipe.run.seed)

    # -- what the models say -------------------------------------------------------------------------------------------

    def _first_rows(self, count: int) -> list[Mapping[str, Any]]:
        """As the training draws them; of prompts, with what the student writes to them."""
        sampler = self.trainer._get_train_sampler()
        data = self.trainer.train_dataset
        if sampler is None:
            return list(islice(iter(data), count))
        rows = [data[i] for i in islice(iter(sampler), count)]
        return self.trainer.written_to(rows) if hasattr(self.trainer, "written_to") else rows

    def collated(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        collate = getattr(self.trainer, "collate", self.trainer.data_collator)
        batch = {name: x.to(self.trainer.args.device) for name, x in collate(list(rows)).items()}
        more = getattr(self.trainer, "sequence_columns", None)
        return batch if more is None else batch | more(batch)

    @torch.no_grad()
    def hidden(self, batch: Batch) -> Tensor:
        with self.trainer.accelerator.autocast():
            return hidden_states(self.student, batch)

    def signals(self, batch: Batch) -> dict[str, Signals]:
        return {name: self.trainer.teachers[name].score(batch) for name in self.objective.teacher_names}

    def _measure(self, batch: Batch) -> Call:
        """What the objective asks of the engine for a batch."""
        asked: list[Call] = []

        def record(hidden: Tensor, head: Head, request: Request) -> Any:
            asked.append(Call(hidden, head, request))
            return fused_loss(hidden, head, request)

        with torch.no_grad(), _in_place_of_the_engine(record):
            self.loss(batch, self.objective.counts(batch))
        return asked[0]

    @torch.no_grad()
    def loss(self, batch: Batch, counts: Tensor) -> Tensor:
        signals = self.signals(batch)
        loss, _ = self.objective(self.hidden(batch), head_of(self.student), signals, batch, counts, step=self.step)
        return loss.detach()

    def _compute_dtype(self) -> torch.dtype:
        """Of the matrix products: autocast's on a GPU, else that of the hidden states."""
        device = self.trainer.args.device.type
        with self.trainer.accelerator.autocast():
            autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        own = self.measured[0].hidden.dtype
        return autocast if autocast is not None and device != "cpu" else own

    # -- laws ----------------------------------------------------------------------------------------------------------

    def laws(self) -> list[Law]:
        found = []
        for at, term in enumerate(self.objective.terms):
            cases = [{**case, "term": term.name} for case in self._cases()]
            found.append(self._law("fused equals dense on the recipe's rows", term.kind, cases, self._is_dense(at)))
            if TERMS[term.kind].divergence:  # type: ignore[index]
                name = "a student that is its teacher has no loss and no gradient, on the recipe's rows"
                found.append(self._law(name, term.kind, cases, self._at_rest(at)))
        found.append(self._law("all terms together equal dense on the recipe's rows", "objective", self._cases(),
                               self._is_dense(None)))  # fmt: skip
        batches = [{"batch": at} for at in range(len(self.rows))]
        found.append(self._law("padding changes nothing on the recipe's rows", "objective", batches, self.padding))
        if len(self.rows[0]) > 1:
            found.append(
                self._law("batch split changes nothing on the recipe's rows", "objective", batches, self.split)
            )
        if "position_ids" in self.collated(self.rows[0]):
            for name, ask in self._views().items():
                holds = self._packing(ask)
                found.append(self._law("packed rows are the rows one by one", name, batches, holds))
        return found

    def _law(self, name: str, entry: str, cases: list[Case], holds: Callable[..., Any]) -> Law:
        return Law(name, GROUP, entry, cases, holds)

    def _cases(self) -> list[Case]:
        """Few tokens first, and as many as float64 has room for."""
        most = max(1, DENSE_LOGITS // self.objective.vocabulary)
        sizes = sorted({1, min(8, most), min(256, most)})
        return [{"batch": at, "tokens": n} for n in sizes for at in range(len(self.measured))]

    def _is_dense(self, at: int | None) -> Callable[..., list[Finding]]:
        def holds(batch: int, tokens: int, term: str = "") -> list[Finding]:
            call = self._part(batch, tokens, at)
            return compared(of_engine(call), dense(call), *self._tolerances())

        return holds

    def _at_rest(self, at: int) -> Callable[..., list[Finding]]:
        """The student's own states for the teacher's, at the student's temperature on both sides.  What rounding leaves
        of a gradient is measured by the one that cross-entropy has there."""

        def holds(batch: int, tokens: int, term: str = "") -> list[Finding]:
            call = self._part(batch, tokens, at)
            taught = [States(call.hidden.clone(), call.head)] * len(call.request.teachers)
            request = replace(call.request, teachers=taught, tau_teacher=call.request.tau_student)
            found = of_engine(replace(call, request=request))
            beside = [replace(t, kind="cross_entropy", teacher=None, knobs={}, weighting=None) for t in request.terms]
            scale = of_engine(replace(call, request=replace(request, terms=beside)))
            values, gradients = self._tolerances()
            return [
                same(found.values, torch.zeros_like(found.values), values, "value of term, token"),
                *(at_most(g.norm(), gradients * float(scale.gradients[name].norm()), 0.0, f"norm of gradient to {name}")
                  for name, g in found.gradients.items()),
            ]  # fmt: skip

        return holds

    def _part(self, batch: int, tokens: int, at: int | None) -> Call:
        """One term of a batch's call, or all, on some of its tokens; weights are brought near 1."""
        call = self.measured[batch]
        terms = list(call.request.terms) if at is None else [call.request.terms[at]]
        looked_at = torch.stack([term.weight != 0 for term in terms]).any(0).nonzero().squeeze(-1)
        if not len(looked_at):
            looked_at = torch.arange(len(call.hidden), device=call.hidden.device)
        picked = looked_at[
            torch.linspace(0, len(looked_at) - 1, min(tokens, len(looked_at))).long().to(looked_at.device)
        ]
        request = replace(select(replace(call.request, terms=terms), picked), all_kept=False)
        terms = [replace(t, weight=t.weight / t.weight.abs().max().clamp(min=1e-30)) for t in request.terms]
        taught = [self._in_dtype(signals) for signals in request.teachers]
        head = self._head_in_dtype(call.head)
        frozen = ("weight", "bias") if head.weight.numel() > DENSE_HEAD else ()
        request = replace(request, terms=terms, teachers=taught)
        return Call(call.hidden[picked].to(self.dtype), head, request, frozen)

    def _in_dtype(self, signals: Signals) -> Signals:
        if not isinstance(signals, States) or self.dtype not in (torch.float32, torch.float64):
            return signals  # a teacher keeps its own precision
        return replace(signals, hidden=signals.hidden.to(self.dtype), head=self._head_in_dtype(signals.head))

    def _head_in_dtype(self, head: Head) -> Head:
        bias = None if head.bias is None else head.bias.detach().to(self.dtype)
        return replace(head, weight=head.weight.detach().to(self.dtype), bias=bias)

    def _tolerances(self) -> tuple[float, float]:
        return self.setting.value_tolerance(), self.setting.gradient_tolerance()

    # -- the same rows in other batches: hidden states differ by rounding ----------------------------------------------

    def padding(self, batch: int) -> list[Finding]:
        plain = self.collated(self.rows[batch])
        wide = {name: _padded(name, x, 7) for name, x in plain.items()}
        counts = self.objective.counts(plain)
        return [
            same(self.objective.counts(wide), counts, 0.0, "counted tokens"),
            same(self.loss(wide, counts), self.loss(plain, counts), self._slack(), "loss"),
        ]

    def split(self, batch: int) -> list[Finding]:
        """Rows one by one, with the counts of the batch."""
        whole, parts = self.collated(self.rows[batch]), [self.collated([row]) for row in self.rows[batch]]
        counts = self.objective.counts(whole)
        found = torch.stack([self.loss(part, counts) for part in parts]).sum()
        return [
            same(torch.stack([self.objective.counts(part) for part in parts]).sum(0), counts, 0.0, "counted tokens"),
            same(found, self.loss(whole, counts), self._slack(), "loss"),
        ]

    def _views(self) -> dict[str, Callable[[Batch], Tensor]]:
        """The models that read the student's rendering, by name."""
        found: dict[str, Callable[[Batch], Tensor]] = {"student": self.hidden}
        for name, teacher in self.trainer.teachers.items():
            if not teacher.own_rendering:
                found[f"teachers.{name}"] = lambda batch, teacher=teacher: teacher.score(batch).hidden
        return found

    def _packing(self, ask: Callable[[Batch], Tensor]) -> Callable[..., Finding]:
        def holds(batch: int) -> Finding:
            packed = self.collated(self.rows[batch][:1])
            starts = (packed["position_ids"][0] == 0).nonzero().squeeze(-1).tolist()
            ends = [*starts[1:], packed["position_ids"].shape[1]]
            alone = [
                ask({"input_ids": packed["input_ids"][:, start:end], "counted": packed["counted"][:, start:end]})
                for start, end in zip(starts, ends, strict=True)
                if packed["counted"][:, start:end].any()
            ]
            return near(ask(packed), torch.cat(alone), self._slack(), "hidden states of a row")

        return holds

    def _slack(self) -> float:
        """Of what comes out of whole models, in their own precision."""
        low = (torch.bfloat16, torch.float16)
        with self.trainer.accelerator.autocast():
            mixed = torch.is_autocast_enabled(self.trainer.args.device.type)
        weights = [p.dtype for m in (self.student, *(t.model for t in self.trainer.teachers.values()))
                   for p in causal_lm(m).parameters()]  # fmt: skip
        return 5e-2 if mixed or any(dtype in low for dtype in weights) else 1e-3


@contextmanager
def _in_place_of_the_engine(function: Callable[..., Any]) -> Iterator[None]:
    """The objective calls ``function`` where it calls the engine: so what it asks can be seen."""
    objectives.fused_loss = function
    try:
        yield
    finally:
        objectives.fused_loss = fused_loss


def _padded(name: str, x: Tensor, extra: int) -> Tensor:
    """A column of a batch with so many places more to the right; the padding of packed rows is a segment of its own."""
    if x.dim() != 2:
        return x
    more = x.new_zeros(x.shape[0], extra)
    if name.startswith("position_ids"):
        more += torch.arange(extra, device=x.device)
    return torch.cat([x, more], 1)
