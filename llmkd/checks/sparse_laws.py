"""Laws of terms beside a teacher of whom a few tokens are known: each is worth what the table declares of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmkd.checks import oracle
from llmkd.checks.engine_laws import SIZES
from llmkd.checks.engine_laws import build as whole_call
from llmkd.checks.law import F64, Case, Finding, Law, Setting, at_most, is_so, near, normals
from llmkd.checks.oracle import settings_of
from llmkd.checks.reference import Answer, Call, compared, dense, logits, of_engine, teacher_logits
from llmkd.objectives.divergences import VALUES
from llmkd.objectives.request import Request, WeightedTerm
from llmkd.terms import READINGS, TERMS, Reading, class_of
from llmkd.types import Head, Sparse

GROUP = "sparse"
DRAWS, ROUNDS = 16, 3000
"""Tokens drawn from a teacher, as a cache of random draws stores them; and how often all are drawn anew."""
SIGMAS = 5.0
"""Half a confidence interval, in standard deviations of a mean: one in two million falls out of it by chance."""


def laws(setting: Setting) -> list[Law]:
    return [
        law
        for kind, row in TERMS.items()
        if kind in oracle.FORMULAS and kind in VALUES and row.needs_teacher
        for reading in READINGS[1:]
        for law in _of_term(setting, kind, reading)
    ]


def _of_term(setting: Setting, kind: str, reading: Reading) -> list[Law]:
    trial = Trial(setting, kind, reading)
    by_class: dict[str, list[Case]] = {}
    for case in trial.cases():
        by_class.setdefault(class_of(kind, reading, case["knobs"])[0], []).append(case)
    held = [case for found, cases in by_class.items() if found != "refused" for case in cases]
    held.sort(key=lambda case: case["tokens"])
    some = trial.in_part(held)
    laws: list[tuple[str, Sequence[Case], Any]] = [
        ("is refused, as declared", by_class.get("refused", []), trial.is_refused),
        ("with full support equals dense", held, trial.full_support),
        ("equals its formula on what is known", some, trial.is_coarse),
        ("places without a token add nothing", some, trial.empty_places),
        ("never above the dense value, as declared", trial.in_part(by_class.get("bounded", [])), trial.is_below),
    ]
    if reading == "counts" and held:
        draws = [{"vocabulary": v, "seed": setting.seed} for v in (2, 5)]
        laws.append(("expected gradient of random draws equals dense", draws, trial.expected_gradient))
        laws.append(("value of random draws is above by the entropy they lose", draws, trial.expected_value))
    if kind == "forward_kl" and reading == "topk":
        laws.append(("pulls the student to p / (mass kept), as declared", some, trial.pull))
    return [Law(f"{reading}: {name}", GROUP, kind, cases, holds) for name, cases, holds in laws if cases]


class Trial:
    """The laws of one term under one reading.  Case keywords: tokens, vocabulary, knobs, seed; k: tokens known; tau: of
    the student."""

    def __init__(self, setting: Setting, kind: str, reading: Reading) -> None:
        self.setting, self.kind, self.reading = setting, kind, reading

    def cases(self) -> list[Case]:
        return [
            {"tokens": n, "vocabulary": v, "knobs": knobs, "seed": self.setting.seed}
            for n, v in SIZES for knobs in settings_of(self.kind)
        ]  # fmt: skip

    def in_part(self, cases: Sequence[Case]) -> list[Case]:
        """With one token known, and with half of them."""
        return [{**case, "k": k} for case in cases for k in sorted({1, case["vocabulary"] // 2})]

    def is_refused(self, **case: Any) -> Finding:
        call, _ = self._calls(**case, k=1)
        try:
            of_engine(call)
        except ValueError as error:
            said = f"{self.kind} is refused on a teacher's {self.reading}"
            return is_so(said in str(error), str(error), said, "what the engine says")
        return is_so(False, "a loss", "ValueError", "what the engine makes of it")

    def full_support(self, **case: Any) -> list[Finding]:
        """All tokens known; under ``ghost`` also all but one, which is then the rest."""
        found = []
        for missing in (0, 1) if self.reading == "ghost" else (0,):
            call, whole = self._calls(**case, k=case["vocabulary"] - missing)
            found += self._compared(of_engine(call), dense(whole))
        return found

    def is_coarse(self, **case: Any) -> list[Finding]:
        """At a temperature of the student too; and under ``ghost`` with the rest as what is missing to 1, where that is
        much: a small one is lost in the rounding of the sum."""
        found = []
        for tau in (1.0, 2.0):
            call, _ = self._calls(**case, tau=tau)
            variants = [call, _with_sparse(call, tail=None)] if self.reading == "ghost" and case["k"] == 1 else [call]
            for variant in variants:
                found += self._compared(of_engine(variant), dense(variant))
        return found

    def empty_places(self, **case: Any) -> list[Finding]:
        call, _ = self._calls(**case)
        signal = _sparse(call)
        places = signal.ids.shape[0], 2
        ids = torch.cat([signal.ids, signal.ids.new_zeros(places)], -1)
        logp = torch.cat([signal.logp, signal.logp.new_full(places, -math.inf)], -1)
        return self._compared(of_engine(_with_sparse(call, ids=ids, logp=logp)), dense(call))

    def is_below(self, **case: Any) -> Finding:
        call, whole = self._calls(**case)
        slack = self.setting.value_tolerance()
        return at_most(of_engine(call).values, dense(whole).values, slack, "value of term, token")

    def pull(self, **case: Any) -> Finding:
        """The gradient to the logits is ``a q - t``: 0 where q is t / a, with a the mass that t keeps."""
        call, _ = self._calls(**case)
        signal = _sparse(call)
        t = torch.zeros(case["tokens"], case["vocabulary"], dtype=F64)
        t.scatter_(-1, signal.ids.cpu(), signal.logp.to("cpu", F64).exp())
        call = on_logits(call)
        q = call.hidden.to("cpu", F64).softmax(-1)
        found, expected = of_engine(call).gradients["hidden"], t.sum(-1, keepdim=True) * q - t
        return near(found, expected, self.setting.gradient_tolerance(), "gradient to the logits")

    # -- random draws --------------------------------------------------------------------------------------------------

    def expected_gradient(self, vocabulary: int, seed: int) -> Finding:
        """Each entry of the mean over many draws lies within the confidence interval around ``q - p``.  The deviation
        is known: n draws fall ``n p`` times on a token, with variance ``n p (1 - p)``."""
        p, call = self._drawn(vocabulary, seed)
        q = call.hidden[0].to("cpu", F64).softmax(-1)
        mean = of_engine(call).gradients["hidden"].to("cpu", F64).mean(0)
        deviation = (p * (1 - p) / (DRAWS * ROUNDS)).sqrt()
        what = f"distance of the mean gradient from dense, in deviations of {ROUNDS} means of {DRAWS} draws"
        return at_most((mean - (q - p)).abs() / deviation, SIGMAS, 0.0, what)

    def expected_value(self, vocabulary: int, seed: int) -> list[Finding]:
        """``E[value] - dense = H(p) - E[H(counts / n)]``, which is about ``(V - 1) / (2 n)``."""
        p, call = self._drawn(vocabulary, seed)
        q = call.hidden[0].to("cpu", F64).softmax(-1)
        excess = of_engine(call).values[0].to("cpu", F64) - oracle.kl(p, q)
        lost = oracle.entropy(p) - oracle.entropy(_sparse(call).logp.to("cpu", F64).exp())
        deviation = float((excess - lost).std()) / math.sqrt(ROUNDS)
        stated = (vocabulary - 1) / (2 * DRAWS)
        return [
            at_most(
                ((excess - lost).mean()).abs() / deviation, SIGMAS, 0.0, "excess less the entropy lost, in deviations"
            ),
            at_most(
                (excess.mean() - stated).abs(), 0.4 * stated + SIGMAS * deviation, 0.0, "excess less (V - 1) / (2 n)"
            ),
        ]

    def _drawn(self, vocabulary: int, seed: int) -> tuple[Tensor, Call]:
        """A teacher, and a call whose tokens are all the same but for the draws from it."""
        setting = self.setting
        logp = normals(vocabulary, seed=seed + 7, spread=0.5).log_softmax(-1)
        signal = _moved(draws(logp.expand(ROUNDS, -1), DRAWS, seed), setting)
        z = normals(vocabulary, seed=seed + 8).to(setting.device, setting.dtype)
        term = WeightedTerm(self.kind, torch.ones(ROUNDS, device=setting.device), 0)
        targets = torch.zeros(ROUNDS, dtype=torch.int64, device=setting.device)
        head = Head(torch.eye(vocabulary, dtype=setting.dtype, device=setting.device))
        request = Request(targets, [signal], [term], vocabulary)
        return logp.exp(), Call(z.expand(ROUNDS, -1).contiguous(), head, request, frozen=("weight",))

    # -- cases as tensors ----------------------------------------------------------------------------------------------

    def _calls(
        self, tokens: int, vocabulary: int, knobs: Mapping[str, Any], seed: int, k: int, tau: float = 1.0
    ) -> tuple[Call, Call]:
        """A call with the k likeliest tokens of a teacher, and the same with all of it."""
        named = [(self.kind, knobs)]
        whole = whole_call(self.setting, named, tokens, vocabulary, seed, tau=(tau, 1.0), signal="logits")
        logp = teacher_logits(whole.request.teachers[0], vocabulary).to("cpu", F64).log_softmax(-1)
        signal = _moved(likeliest(logp, k, self.reading), self.setting)
        return replace(whole, request=replace(whole.request, teachers=[signal])), whole

    def _compared(self, found: Answer, expected: Answer) -> list[Finding]:
        return compared(found, expected, self.setting.value_tolerance(), self.setting.gradient_tolerance())


def likeliest(logp: Tensor, k: int, reading: Reading) -> Sparse:
    """The k likeliest tokens; with ``ghost`` the rest in one bucket, with ``counts`` as shares, which sum to 1."""
    top, ids = logp.topk(k, dim=-1)
    if reading == "counts":
        top = top.log_softmax(-1)
    rest = logp.scatter(-1, ids, -math.inf).logsumexp(-1)
    return Sparse(ids, top, reading, rest if reading == "ghost" else None)


def draws(logp: Tensor, count: int, seed: int) -> Sparse:
    """``count`` random draws with replacement from each row, as shares of the tokens that were drawn."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logp.exp(), count, replacement=True, generator=generator)
    shares = torch.zeros_like(logp).scatter_add(-1, drawn, torch.full_like(drawn, 1, dtype=logp.dtype)) / count
    return Sparse(torch.arange(logp.shape[-1]).expand(logp.shape).contiguous(), shares.log(), "counts")


def on_logits(call: Call) -> Call:
    """The same student with its logits for hidden states and weights of 1: so the gradient is the one to the logits."""
    wide = [x.to("cpu", F64) for x in (call.hidden, call.head.weight)]
    z = logits(wide[0], Head(wide[1]), call.request.vocabulary).to(call.hidden)
    head = Head(torch.eye(z.shape[1]).to(z))
    terms = [replace(term, weight=torch.ones_like(term.weight)) for term in call.request.terms]
    return Call(z, head, replace(call.request, terms=terms), frozen=("weight",))


def _sparse(call: Call) -> Sparse:
    signal = call.request.teachers[0]
    assert isinstance(signal, Sparse)
    return signal


def _with_sparse(call: Call, **fields: Any) -> Call:
    return replace(call, request=replace(call.request, teachers=[replace(_sparse(call), **fields)]))


def _moved(signal: Sparse, setting: Setting) -> Sparse:
    """As it is stored: log-probabilities in the precision of the statistics, on the device."""
    tail = None if signal.tail is None else signal.tail.to(setting.device, setting.statistics)
    return replace(signal, ids=signal.ids.to(setting.device), tail=tail,
                   logp=signal.logp.to(setting.device, setting.statistics))  # fmt: skip
