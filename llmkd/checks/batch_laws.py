"""Laws of the objective: who is counted, who is kept and what is divided by, however rows are put into batches.

Rows are made with the states of student and teacher for their counted tokens; the same rows are then laid out side by
side, padded, packed or one by one.  What is expected is added up token by token, from the rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmkd.checks import oracle
from llmkd.checks.engine_laws import WIDTH, Numbers
from llmkd.checks.law import F64, Finding, Law, Setting, near, same
from llmkd.checks.oracle import settings_of
from llmkd.checks.reference import Answer, Call, dense
from llmkd.objectives.divergences import VALUES
from llmkd.objectives.objective import Objective, Term
from llmkd.objectives.request import Request, WeightedTerm
from llmkd.terms import TERMS
from llmkd.types import Head, States

GROUP = "batches"
VOCABULARY = 11
TEACHER = "teacher"
SIZES = (1, 2, 5)
"""Rows, few first."""
MASKS: tuple[dict[str, Any], ...] = (
    {"domains": (1,)}, {"positions": (1, 3)}, {"positions": (2, None)}, {"shared": True},
    {"domains": (0, 2), "positions": (0, 2), "shared": True},
)  # fmt: skip
"""What a term may look at; ``shared``: the teacher's own rendering lacks some tokens."""


def laws(setting: Setting) -> list[Law]:
    return [
        law for kind in TERMS if kind in oracle.FORMULAS and kind in VALUES for law in _of_term(setting, kind)
    ]  # fmt: skip


def _of_term(setting: Setting, kind: str) -> list[Law]:
    trial = Trial(setting, kind)
    plain = [{"rows": n, "normalize": "all"} for n in SIZES]
    masked = [{"rows": n, "normalize": "kept", "mask": mask} for n in SIZES for mask in MASKS]
    last = [{"rows": n, "normalize": how, "mask": MASKS[-1]} for n in SIZES for how in ("all", "kept")]
    several = [case for case in plain + last if case["rows"] > 1]
    grids: list[tuple[str, list[dict[str, Any]], Any]] = [
        ("is summed over the counted tokens and divided by their number", plain, trial.is_by_hand),
        ("a mask keeps what it names and nothing else", masked + last, trial.is_by_hand),
        ("batch split changes nothing", several, trial.split),
        ("padding changes nothing", plain + last, trial.padded),
        ("packing changes nothing", several, trial.packed),
        ("a batch without counted tokens has loss 0", plain[:1], trial.empty),
        ("what is logged is the value, unweighted", last, trial.logged),
        ("beside another term is divided by its own count", last, trial.beside),
    ]
    return [
        Law(name, GROUP, kind, [{**c, "seed": setting.seed} for c in sorted(cases, key=lambda c: c["rows"])], holds)
        for name, cases, holds in grids
    ]


class Trial:
    """The laws of one term.  Case keywords: rows; normalize; mask: one of ``MASKS``; seed."""

    def __init__(self, setting: Setting, kind: str) -> None:
        self.setting, self.kind = setting, kind

    def is_by_hand(self, **case: Any) -> list[Finding]:
        step, terms = self._drawn(**case)
        return self._compared(run(terms, step, side_by_side(step)), by_hand(terms, step))

    def beside(self, **case: Any) -> list[Finding]:
        step, terms = self._drawn(**case)
        terms.append(Term("other", "cross_entropy", weight=0.3, positions=(1, None), normalize="kept"))
        return self._compared(run(terms, step, side_by_side(step)), by_hand(terms, step))

    def split(self, **case: Any) -> list[Finding]:
        """One by one, and the first beside all others: with the counts of the whole."""
        step, terms = self._drawn(**case)
        whole, rows = run(terms, step, side_by_side(step)), len(step.counted)
        found = []
        for sizes in ([1] * rows, [1, rows - 1]):
            parts = [side_by_side(step, part) for part in torch.arange(rows).split(sizes)]
            counts = torch.stack([step.objective(terms).counts(part.batch) for part in parts]).sum(0)
            runs = [run(terms, step, part, counts) for part in parts]
            found += self._compared(_summed(runs), whole)
        return found

    def padded(self, **case: Any) -> list[Finding]:
        """To the right, by more than the longest row; and by a row that holds nothing else."""
        step, terms = self._drawn(**case)
        tight = run(terms, step, side_by_side(step))
        return self._compared(run(terms, step, side_by_side(step, extra=(5, 2))), tight)

    def packed(self, **case: Any) -> list[Finding]:
        """All in one row, apart by their positions, with padding as a segment of its own."""
        step, terms = self._drawn(**case)
        return self._compared(run(terms, step, in_one_row(step, 3)), run(terms, step, side_by_side(step)))

    def empty(self, **case: Any) -> list[Finding]:
        step, terms = self._drawn(**case)
        layout = side_by_side(step)
        nothing = {**layout.batch, "counted": torch.zeros_like(layout.batch["counted"])}
        none = Layout(nothing, layout.order[:0])
        found = run(terms, step, none)
        zeros = [("loss", found.loss), *((f"gradient to {name}", g) for name, g in found.gradients.items())]
        return [same(x, torch.zeros_like(x), 0.0, name) for name, x in zeros]

    def logged(self, **case: Any) -> list[Finding]:
        """By domain: the sum of the values that the mask keeps, and how many they are."""
        step, terms = self._drawn(**case)
        found = run(terms, step, side_by_side(step)).values
        values, kept = by_hand(terms, step).values[0], torch.tensor(keeps(terms[0], step))
        domain = torch.tensor([step.domains[r] for r, _ in step.tokens()])
        expected = torch.stack([
            torch.stack([torch.where(kept & (domain == d), x, 0.0).sum() for x in (values, torch.ones_like(values))])
            for d in range(3)
        ])  # fmt: skip
        return [same(found, expected, self.setting.value_tolerance() * 10, "sum and number of domain")]

    def _drawn(
        self, rows: int, normalize: str, seed: int, mask: Mapping[str, Any] | None = None
    ) -> tuple[Step, list[Term]]:
        where = dict(mask or {})
        step = Step.drawn(self.setting, rows, seed, where.pop("shared", False))
        beside = TEACHER if TERMS[self.kind].needs_teacher else None  # type: ignore[index]
        knobs = settings_of(self.kind)[0]
        return step, [Term("term", self.kind, 0.7, normalize=normalize, teacher=beside, knobs=knobs, **where)]

    def _compared(self, found: Answer, expected: Answer) -> list[Finding]:
        """The weight of a token, mask / count, is a float32: in float64 too, sums are good to 1e-7."""
        tolerance = max(self.setting.value_tolerance(), 1e-6)
        gradients = [
            near(found.gradients[name], g, max(self.setting.gradient_tolerance(), 1e-6), f"gradient to {name}")
            for name, g in expected.gradients.items()
        ]
        return [same(found.loss, expected.loss, tolerance, "loss"), *gradients]


# -- rows, and the ways to lay them out -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """The rows of an optimizer step.  counted: tokens that are counted of each row, behind ``prompts`` that are not;
    student, teacher, targets, shared: over all counted tokens, row by row."""

    setting: Setting
    prompts: list[int]
    counted: list[int]
    domains: list[int]
    student: Tensor
    teacher: Tensor
    heads: tuple[Head, Head]
    targets: Tensor
    shared: Tensor | None

    @classmethod
    def drawn(cls, setting: Setting, rows: int, seed: int, shared: bool) -> Step:
        generator = torch.Generator().manual_seed(seed)
        numbers = Numbers(setting, seed)
        prompts = torch.randint(1, 4, (rows,), generator=generator).tolist()
        counted = torch.randint(1, 6, (rows,), generator=generator).tolist()
        total = sum(counted)
        answered = torch.rand(total, generator=generator) > 0.3
        return cls(
            setting, prompts, counted, [row % 3 for row in range(rows)],
            numbers(total, WIDTH[0]), numbers(total, WIDTH[1]),
            (numbers.head(VOCABULARY, WIDTH[0]), numbers.head(VOCABULARY, WIDTH[1])),
            torch.randint(VOCABULARY, (total,), generator=generator), answered if shared else None,
        )  # fmt: skip

    def tokens(self) -> list[tuple[int, int]]:
        """Row, and index among the counted tokens of the row."""
        return [(row, i) for row, count in enumerate(self.counted) for i in range(count)]

    def objective(self, terms: Sequence[Term]) -> Objective:
        return Objective(terms, ["a", "b", "c"], VOCABULARY)


@dataclass(frozen=True)
class Layout:
    """A batch, and which of the step's counted tokens stand in it, in their order."""

    batch: dict[str, Tensor]
    order: Tensor


def side_by_side(step: Step, rows: Tensor | None = None, extra: tuple[int, int] = (0, 0)) -> Layout:
    """Some rows, one a line, as wide as the longest and so many columns more, and so many empty lines more."""
    picked = list(range(len(step.counted))) if rows is None else rows.tolist()
    lines = [_line(step, row) for row in picked]
    width = max(len(line["input_ids"]) for line in lines) + extra[0]
    batch = {
        name: torch.tensor([line[name] + [0] * (width - len(line[name])) for line in lines] + [[0] * width] * extra[1])
        for name in lines[0]
    }
    return _layout(step, batch, picked)


def in_one_row(step: Step, extra: int) -> Layout:
    picked = list(range(len(step.counted)))[::-1]  # another order too
    lines = [_line(step, row) for row in picked]
    batch = {
        name: torch.tensor([[x for line in lines for x in line[name]] + [0] * extra]) for name in lines[0]
    }  # fmt: skip
    positions = [place for line in lines for place in range(len(line["input_ids"]))]
    batch["position_ids"] = torch.tensor([[*positions, *range(extra)]])
    return _layout(step, batch, picked)


def _line(step: Step, row: int) -> dict[str, list[int]]:
    start, prompt, count = sum(step.counted[:row]), step.prompts[row], step.counted[row]
    here = slice(start, start + count)
    line = {
        "input_ids": [0] * prompt + step.targets[here].tolist(),
        "counted": [0] * prompt + [1] * count,
        "domain_ids": [step.domains[row]] * (prompt + count),
    }
    if step.shared is not None:
        line[f"shared@{TEACHER}"] = [0] * prompt + step.shared[here].int().tolist()
    return line


def _layout(step: Step, batch: dict[str, Tensor], rows: list[int]) -> Layout:
    masks = ("counted", f"shared@{TEACHER}")
    batch = {name: (x.bool() if name in masks else x).to(step.setting.device) for name, x in batch.items()}
    starts = [sum(step.counted[:row]) for row in rows]
    order = [
        place for row, start in zip(rows, starts, strict=True) for place in range(start, start + step.counted[row])
    ]
    return Layout(batch, torch.tensor(order, dtype=torch.int64, device=step.setting.device))


# -- the loss, by the code under test and by hand ---------------------------------------------------------------------


def run(terms: Sequence[Term], step: Step, layout: Layout, counts: Tensor | None = None) -> Answer:
    """Loss; gradients to the states of all counted tokens of the step and to the head; and as ``values`` the first
    term's line of the log."""
    objective = step.objective(terms)
    hidden, weight = (x.clone().requires_grad_() for x in (step.student, step.heads[0].weight))
    teacher = States(step.teacher[layout.order], step.heads[1])
    counts = objective.counts(layout.batch) if counts is None else counts
    signals = {name: teacher for name in objective.teacher_names}
    loss, tally = objective(hidden[layout.order], Head(weight), signals, layout.batch, counts)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    return Answer(
        loss.detach(), tally[f"{terms[0].name}/value"], dict(zip(("hidden", "weight"), gradients, strict=True))
    )


def keeps(term: Term, step: Step) -> list[bool]:
    """For each counted token, whether the term looks at it."""
    found = []
    for at, (row, index) in enumerate(step.tokens()):
        in_domain = term.domains is None or step.domains[row] in term.domains
        start, stop = term.positions or (0, None)
        in_range = start <= index and (stop is None or index < stop)
        answered = step.shared is None or term.teacher is None or bool(step.shared[at])
        found.append(in_domain and in_range and answered)
    return found


def by_hand(terms: Sequence[Term], step: Step) -> Answer:
    weighted = []
    for term in terms:
        kept = keeps(term, step)
        count = len(kept) if term.normalize == "all" else sum(kept)
        assert not callable(term.weight)
        weight = [term.weight / count if keep else 0.0 for keep in kept]
        weighted.append(
            WeightedTerm(term.kind, torch.tensor(weight, dtype=F64), 0 if term.teacher else None, term.knobs)
        )
    request = Request(step.targets, [States(step.teacher, step.heads[1])], weighted, VOCABULARY, all_kept=True)
    return dense(Call(step.student, step.heads[0], request))


def _summed(runs: Sequence[Answer]) -> Answer:
    gradients = {name: torch.stack([r.gradients[name].to(F64) for r in runs]).sum(0) for name in runs[0].gradients}
    return Answer(torch.stack([r.loss for r in runs]).sum(), torch.stack([r.values for r in runs]).sum(0), gradients)
