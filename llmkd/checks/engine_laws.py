"""Laws of the engine: in the user's dtype, on the user's device, it gives what the dense formula gives in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmkd.checks import oracle
from llmkd.checks.law import Case, Finding, Law, Setting, normals, same
from llmkd.checks.oracle import settings_of
from llmkd.checks.reference import Answer, Call, compared, dense, of_engine
from llmkd.objectives.divergences import VALUES
from llmkd.objectives.request import Request, WeightedTerm
from llmkd.objectives.weighting import MEASURED, measured
from llmkd.terms import TERMS
from llmkd.types import Head, Logits, States

GROUP = "engine"
WIDTH = 6, 10
"""Of the hidden states of student and teacher."""
SIZES = ((1, 3), (3, 5), (7, 37))
"""Tokens and vocabularies, small first."""
BLOCKS = (150, 1031)
"""Tokens and a vocabulary that need several row blocks on a CPU."""
Named = tuple[str, Mapping[str, Any]]


def laws(setting: Setting) -> list[Law]:
    known = [kind for kind in TERMS if kind in oracle.FORMULAS and kind in VALUES]
    every = [(kind, settings_of(kind)[0]) for kind in known]
    together = [{"terms": every, "tokens": n, "vocabulary": v, "chunk": c} for n, v in SIZES for c in (None, 2)]
    trial = Trial(setting, "all terms")
    found = [law for kind in known for law in _of_term(setting, kind)]
    found.append(Law("together are the sum of each", GROUP, "all terms", _seeded(together, setting), trial.is_dense))
    several = [{"terms": every, "tokens": n, "vocabulary": v, "teachers": 3} for n, v in SIZES]
    found.append(Law("look each at its own teacher", GROUP, "all terms", _seeded(several, setting), trial.is_dense))
    return found


def _of_term(setting: Setting, kind: str) -> list[Law]:
    trial = Trial(setting, kind)
    beside = TERMS[kind].needs_teacher  # type: ignore[index]
    settings: list[Sequence[Named]] = [[(kind, knobs)] for knobs in settings_of(kind)]
    first = settings[:1]
    grids: list[tuple[str, Sequence[Sequence[Named]], list[dict[str, Any]], Any]] = [
        ("fused equals dense", settings, _plain(), trial.is_dense),
        ("row blocks change nothing", first, [{"tokens": BLOCKS[0], "vocabulary": BLOCKS[1]}], trial.is_dense),
        ("bias, softcap and scale of a head are part of it", first, _heads(), trial.is_dense),
        ("temperature adds no factor", settings, _temperatures(), trial.is_dense),
        ("rows beyond the shared vocabulary do not exist", first, _padded(), trial.is_dense),
        ("beside other terms adds its own share", [[*first[0], ("forward_kl", {}), ("cross_entropy", {})]],
         _sizes(), trial.share),
        ("a weight of 0 adds nothing", first, _sizes(zeros="some"), trial.zero_weights),
        ("all tokens masked give 0", first, [{"tokens": n, "vocabulary": 5, "zeros": "all"} for n in (0, 1, 7)],
         trial.is_nothing),
        ("a measured weight multiplies and carries no gradient", first, _sizes(weighting=_measures(beside)),
         trial.is_dense),
    ]  # fmt: skip
    if beside:
        grids.append(("standardised logits", settings, _sizes(standardize=True, tau=(2.0, 2.0), bias=True, softcap=4.0),
                      trial.is_dense))  # fmt: skip
        grids.append(("tokens impossible for the teacher", settings, _sizes(signal="holes"), trial.where_finite))
    if TERMS[kind].divergence:  # type: ignore[index]
        equal = _sizes(tau=((1.0, 1.0), (2.0, 2.0)), signal="student", bias=True, softcap=4.0)
        grids.append(("a student that is its teacher has no loss and no gradient", settings, equal, trial.at_rest))
    return [
        Law(
            name,
            GROUP,
            kind,
            _seeded([{"terms": t, **case} for case in _by_size(cases) for t in terms], setting),
            holds,
        )
        for name, terms, cases, holds in grids
    ]


def _seeded(cases: Sequence[dict[str, Any]], setting: Setting) -> list[Case]:
    return [{**case, "seed": setting.seed} for case in cases]


def _by_size(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(cases, key=lambda case: case["tokens"] * case["vocabulary"])


def _sizes(**grid: Any) -> list[dict[str, Any]]:
    """Cases of all sizes; tau and weighting may be lists of what to try (tau: pairs)."""
    rest: list[dict[str, Any]] = [{}]
    for name, values in grid.items():
        several = isinstance(values, list) or (name == "tau" and isinstance(values[0], tuple))
        rest = [{**case, name: value} for case in rest for value in (values if several else [values])]
    return [{"tokens": n, "vocabulary": v, **case} for n, v in SIZES for case in rest]


def _plain() -> list[dict[str, Any]]:
    """Chunks of all tokens, of one, of several with and without a rest; and a teacher who gives logits."""
    chunks = [
        {"tokens": n, "vocabulary": v, "chunk": chunk}
        for n, v in SIZES for chunk in (None, 1, 3) if not chunk or chunk < n
    ]  # fmt: skip
    return [*chunks, {"tokens": 3, "vocabulary": 5, "signal": "logits"}]


def _heads() -> list[dict[str, Any]]:
    kinds: list[dict[str, Any]] = [{"bias": True}, {"softcap": 2.0}, {"scale": 0.25}]
    kinds.append({"bias": True, "softcap": 3.0, "scale": 0.5})
    return [{"tokens": n, "vocabulary": v, **kind} for n, v in SIZES for kind in kinds]


def _temperatures() -> list[dict[str, Any]]:
    pairs = ((2.0, 2.0), (0.5, 3.0), (1.0, 2.0), (2.0, 1.0))
    cases: list[dict[str, Any]] = [{"tokens": n, "vocabulary": v, "tau": tau} for n, v in SIZES for tau in pairs]
    return [*cases, {"tokens": 7, "vocabulary": 37, "tau": "of each token"}]


def _padded() -> list[dict[str, Any]]:
    extras = ((2, 0), (0, 3), (2, 3))
    return [{"tokens": n, "vocabulary": v, "extra_rows": extra, "bias": True} for n, v in SIZES for extra in extras]


def _measures(beside: bool) -> list[str]:
    return [name for name in MEASURED if beside or name == "student_entropy"]


class Trial:
    """The laws of one term.  Case keywords: those of ``build``."""

    def __init__(self, setting: Setting, kind: str) -> None:
        self.setting, self.kind = setting, kind

    def is_dense(self, **case: Any) -> list[Finding]:
        call = build(self.setting, **case)
        return self._compared(of_engine(call), dense(call))

    def share(self, **case: Any) -> list[Finding]:
        """All together are the first term, as it should be, and the others, as the engine has them without it."""
        call = build(self.setting, **case)
        own, *others = call.request.terms
        alone, rest = (replace(call, request=replace(call.request, terms=terms)) for terms in ([own], others))
        found, expected, beside = of_engine(call), dense(alone), of_engine(rest)
        expected.loss += beside.loss.to(expected.loss)
        for name, gradient in beside.gradients.items():
            expected.gradients[name] += gradient.to(expected.loss)
        return self._compared(replace(found, values=found.values[:1]), expected)

    def where_finite(self, **case: Any) -> list[Finding]:
        """Where the dense value is finite it is that; where it is not the engine refuses, and names the term."""
        call = build(self.setting, **case)
        expected = dense(call)
        if bool(expected.values.isfinite().all()):
            return self._compared(of_engine(call), expected)
        try:
            of_engine(call)
        except ValueError as error:
            return [
                same(torch.tensor(float(f"{self.kind} is infinite" in str(error))), torch.tensor(1.0), 0.0, str(error))
            ]
        return [Finding(math.inf, 0.0, "an infinite value", "a number", "ValueError that names the term")]

    def zero_weights(self, **case: Any) -> list[Finding]:
        """It is as if the tokens had not been there; and it stays so where their states are no numbers."""
        call = build(self.setting, **case)
        found, expected = of_engine(call), dense(call)
        out = call.request.terms[0].weight == 0
        spoilt = replace(call, hidden=call.hidden.masked_fill(out.unsqueeze(-1), math.nan))
        again = of_engine(spoilt)
        again.gradients["hidden"] = torch.where(out.unsqueeze(-1), 0.0, again.gradients["hidden"])
        return self._compared(found, expected) + self._compared(again, expected)

    def is_nothing(self, **case: Any) -> list[Finding]:
        found = of_engine(build(self.setting, **case))
        return [
            same(found.loss, torch.zeros_like(found.loss), 0.0, "loss"),
            *(same(g, torch.zeros_like(g), 0.0, f"gradient to {name}") for name, g in found.gradients.items()),
        ]

    def at_rest(self, **case: Any) -> list[Finding]:
        """Entry by entry: what rounding leaves does not add up to a norm that could be compared."""
        found = of_engine(build(self.setting, **case))
        tolerance = self.setting.value_tolerance()
        return [
            same(found.values, torch.zeros_like(found.values), tolerance, "value"),
            *(same(g, torch.zeros_like(g), tolerance, f"gradient to {name}") for name, g in found.gradients.items()),
        ]

    def _compared(self, found: Answer, expected: Answer) -> list[Finding]:
        return compared(found, expected, self.setting.value_tolerance(), self.setting.gradient_tolerance())


# -- cases as tensors --------------------------------------------------------------------------------------------------


def build(
    setting: Setting,
    terms: Sequence[Named],
    tokens: int,
    vocabulary: int,
    seed: int,
    chunk: int | None = None,
    bias: bool = False,
    softcap: float | None = None,
    scale: float = 1.0,
    tau: tuple[float, float] | str = (1.0, 1.0),
    standardize: bool = False,
    extra_rows: tuple[int, int] = (0, 0),
    signal: str = "states",
    zeros: str = "none",
    weighting: str | None = None,
    teachers: int = 1,
) -> Call:
    """A random call.  signal: what the teacher gives, ``states``, ``logits``, ``holes`` (logits with a token that is
    impossible) or ``student`` (the student's own states); zeros: which weights are 0; teachers: the terms take turns
    between so many."""
    numbers = Numbers(setting, seed)
    head = numbers.head(vocabulary + extra_rows[0], WIDTH[0], bias, softcap, scale)
    hidden = numbers(tokens, WIDTH[0])
    taught = [numbers.teacher(tokens, vocabulary + extra_rows[1], signal, hidden, head) for _ in range(teachers)]
    weight = numbers.weights(tokens, zeros)
    weighed = [
        WeightedTerm(kind, weight(), at % teachers if TERMS[kind].needs_teacher else None, knobs,  # type: ignore[index]
                     measured(weighting, floor=0.25, power=2.0) if weighting else None)
        for at, (kind, knobs) in enumerate(terms)
    ]  # fmt: skip
    tau_student, tau_teacher = numbers.temperatures(tokens, tau)
    targets = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
    request = Request(
        targets.to(setting.device), taught, weighed, vocabulary, tau_student, tau_teacher, standardize, chunk=chunk
    )
    return Call(hidden, head, request)


class Numbers:
    """Random tensors of a setting, one after the other: rounded to its dtype, on its device."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting, self.seed = setting, 1000 * seed

    def __call__(self, *shape: int, spread: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        self.seed += 1
        return normals(*shape, seed=self.seed, spread=spread).to(self.setting.device, dtype or self.setting.dtype)

    def head(self, rows: int, width: int, bias: bool = False, softcap: float | None = None, scale: float = 1.0) -> Head:
        """Logits with a spread near 2."""
        weight = self(rows, width, spread=2 / math.sqrt(width))
        return Head(weight, self(rows) if bias else None, softcap, scale)

    def teacher(self, tokens: int, rows: int, signal: str, hidden: Tensor, head: Head) -> States | Logits:
        if signal == "student":
            return States(hidden.clone(), replace(head, weight=head.weight.clone()))
        if signal == "states":
            return States(self(tokens, WIDTH[1]), self.head(rows, WIDTH[1]))
        # A ladder in random order: no two are alike in any dtype, so that it is clear which tokens are the likeliest.
        rank = self(tokens, rows, dtype=torch.float64).argsort(-1).argsort(-1)
        made = 6 * (rank + 0.5) / rows - 3 + self(tokens, 1)
        if signal == "holes":
            made[:, 0] = -math.inf
        return Logits(made.to(self.setting.dtype))

    def weights(self, tokens: int, zeros: str) -> Any:
        """A maker of weights between 0 and 1; ``some``: the first token's, and every third one's after it, is 0."""
        out = torch.arange(tokens, device=self.setting.device) % 3 == 0
        mask = {"none": torch.zeros_like(out), "some": out, "all": torch.ones_like(out)}[zeros]
        return lambda: self(tokens, dtype=self.setting.statistics).sigmoid().masked_fill(mask, 0.0)

    def temperatures(self, tokens: int, tau: tuple[float, float] | str) -> tuple[float | Tensor, float | Tensor]:
        if not isinstance(tau, str):
            return tau
        drawn = [0.5 + 3 * self(tokens, dtype=self.setting.statistics).sigmoid() for _ in range(2)]
        return drawn[0], drawn[1]
