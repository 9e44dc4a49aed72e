"""What can stand in an objective: the one committed table of terms, as data.

The recipe checks its knobs against this table, the engine pairs each name with its formula
(``llmkd.objectives.divergences``), and ``llmkd verify`` proves what is declared here.  No torch: commands that only
read a recipe start without it.

A *reading* says what a teacher's signal is to a term:

    dense    the whole distribution: hidden states and head, or logits
    topk     log-probabilities of k tokens, and nothing of the rest
    ghost    the same, and the rest as one bucket on both sides
    counts   how often each of n random draws from the teacher fell on a token

and the class of a term under a reading what its value and gradient are worth there: ``exact``; ``bounded`` (never
above the dense value); ``estimated`` (with a bias that is stated); ``refused``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

TermName = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation", "hellinger",
    "alpha_beta", "adaptive_kl", "balanced_kl", "taid", "mixture", "cross_entropy", "nkd", "squared_logit",
]  # fmt: skip
SequenceTermName = Literal["future_reverse_kl"]
SEQUENCE_TERMS: tuple[str, ...] = get_args(SequenceTermName)
"""Terms of whole completions that a student wrote, no function of one token: not in the table, nor known to the engine.

``future_reverse_kl`` is ``-w_t A_t log q_t``, with the return A of the tokens that follow t under ``log p - log q`` and
the importance weight w; ``llmkd.objectives.sequence`` says why.
"""
Reading = Literal["dense", "topk", "ghost", "counts"]
READINGS: tuple[Reading, ...] = get_args(Reading)
Class = Literal["exact", "bounded", "estimated", "refused"]


@dataclass(frozen=True)
class Knob:
    """A number that a term takes.  default None: it must be given.  An open end is not itself allowed."""

    default: float | None
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and above and below


@dataclass(frozen=True)
class Declared:
    """One row: what a term is, whatever computes it.

    formula      per token, as the README prints it
    range        of its value, in words
    inputs       what it looks at beside the student: ``teacher``, ``target`` (the token of the data) or both
    divergence   True if it is 0 where student equals teacher at equal temperatures, and never negative
    knobs        numbers, by name; flags: switches, off unless given
    sparse       its class under each sparse reading and why; what is not named is refused
    """

    formula: str
    range: str
    paper: str
    inputs: tuple[Literal["teacher", "target"], ...] = ("teacher",)
    divergence: bool = True
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    sparse: Mapping[Reading, tuple[Class, str]] = field(default_factory=dict)

    @property
    def needs_teacher(self) -> bool:
        return "teacher" in self.inputs


_TAIL = ("bounded", "coarse-graining lowers an f-divergence: never above the dense value")
_MISSES = "leaves out what the tail adds, of either sign, and pulls the student to p / (mass kept) on the support"
_SKEW = Knob(0.1, 0, 1, high_open=True)

TERMS: dict[TermName, Declared] = {
    "forward_kl": Declared(
        "sum_v p_v (log p_v - log q_v)", "[0, inf)",
        "Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531)",
        sparse={
            "topk": ("estimated", _MISSES),
            "ghost": _TAIL,
            "counts": ("estimated", "the gradient is unbiased; the value is above by the entropy that n draws lose, "
                                    "about (tokens drawn - 1) / (2 n)"),
        },
    ),
    "reverse_kl": Declared(
        "sum_v q_v (log q_v - log p_v)", "[0, inf)", "Gu et al., MiniLLM, 2023 (arXiv 2306.08543)",
        sparse={"ghost": _TAIL},
    ),
    "jsd": Declared(
        "beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q", "[0, H(beta)], at most ln 2",
        "Agarwal et al., On-Policy Distillation of Language Models, 2023 (arXiv 2306.13649)",
        knobs={"beta": Knob(0.5, 0, 1, low_open=True, high_open=True)}, sparse={"ghost": _TAIL},
    ),
    "skew_forward_kl": Declared(
        "KL(p || alpha p + (1 - alpha) q)", "[0, -log alpha]", "Ko et al., DistiLLM, 2024 (arXiv 2402.03898)",
        knobs={"alpha": _SKEW}, sparse={"topk": ("estimated", _MISSES), "ghost": _TAIL},
    ),
    "skew_reverse_kl": Declared(
        "KL(q || (1 - alpha) p + alpha q)", "[0, -log alpha]", "Ko et al., DistiLLM, 2024 (arXiv 2402.03898)",
        knobs={"alpha": _SKEW}, flags=("detach_mixture",), sparse={"ghost": _TAIL},
    ),
    "total_variation": Declared(
        "1/2 sum_v |p_v - q_v|", "[0, 1]", "Wen et al., f-Divergence Minimization for Sequence-Level Knowledge "
        "Distillation, 2023 (arXiv 2307.15190)",
        sparse={"topk": ("bounded", "the tail's part is never negative"), "ghost": _TAIL},
    ),
    "hellinger": Declared(
        "1/2 sum_v (sqrt p_v - sqrt q_v)^2", "[0, 1]", "Hellinger, 1909; the squared distance",
        sparse={"topk": ("bounded", "the tail's part is never negative"), "ghost": _TAIL},
    ),
    "alpha_beta": Declared(
        "-1/(alpha beta) sum_v (p_v^alpha q_v^beta - alpha/(alpha+beta) p_v^(alpha+beta) "
        "- beta/(alpha+beta) q_v^(alpha+beta)), continued where a divisor is 0",
        "[0, inf)", "Wang et al., ABKD, 2025 (arXiv 2505.04560)",
        knobs={"alpha": Knob(None, -2, 2), "beta": Knob(None, -2, 2)},
        sparse={"ghost": ("bounded", "with alpha + beta = 1, an f-divergence; refused otherwise")},
    ),
    "adaptive_kl": Declared(
        "(a forward_kl + b reverse_kl) / (a + b), a = sum_head |p - q|, b = sum_tail |p - q|, held fixed; head: the "
        "teacher's likeliest tokens within the mass mu, the first always", "[0, inf)",
        "Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation, 2024 (arXiv 2404.02657)",
        knobs={"mu": Knob(0.5, 0, 1)},
        sparse={"ghost": ("estimated", "both divergences are bounded from above by the dense ones, but head and tail "
                                       "are weighed on the coarse distribution")},
    ),
    "balanced_kl": Declared(
        "f forward_kl + r reverse_kl; f = high, r = low where H(q) < H(p), else f = low, r = high; held fixed",
        "[0, inf)", "adapted from Amara et al., BD-KD, 2022 (arXiv 2212.12965): its exact rule was not read",
        knobs={"low": Knob(1.0, 0), "high": Knob(2.0, 0)},
        sparse={"ghost": ("estimated", "both divergences are bounded from above by the dense ones, but the entropies "
                                       "are those of the coarse distribution")},
    ),
    "taid": Declared(
        "KL(r || q), r = softmax((1 - t) log q + t log p), held fixed", "[0, inf)",
        "Shing et al., TAID, 2025 (arXiv 2501.16937)", knobs={"t": Knob(None, 0, 1)},
    ),
    "mixture": Declared(
        "sum_i a_i D_i(p, q) of divergences D_i, with their default knobs, and weights a_i that sum to 1", "[0, inf)",
        "a convex mixture of divergences is one",
        sparse={"ghost": ("bounded", "where every part is; else as its parts")},
    ),
    "cross_entropy": Declared(
        "-log q_target", "[0, inf)", "Kim and Rush, Sequence-Level Knowledge Distillation, 2016 (arXiv 1606.07947)",
        inputs=("target",), divergence=False,
    ),
    "nkd": Declared(
        "-p_target log q_target - gamma sum_(v != target) P_v log Q_v; P, Q: p and q without the target, "
        "normalised again", "[0, inf)", "Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A "
        "Unified Approach with Normalized Loss, 2023 (arXiv 2303.13005)",
        inputs=("teacher", "target"), divergence=False, knobs={"gamma": Knob(1.5, 0)},
    ),
    "squared_logit": Declared(
        "1/V sum_v (y_v - x_v)^2 of the teacher's logits y and the student's x, each over its temperature", "[0, inf)",
        "Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2014 (arXiv 1312.6184)", divergence=False,
    ),
}  # fmt: skip


def class_of(term: str, reading: Reading, knobs: Mapping[str, Any] | None = None) -> tuple[Class, str]:
    """What a term is worth under a reading, and why.  Terms that look at no teacher are exact under all."""
    row = TERMS[term]  # type: ignore[index]
    if reading == "dense" or not row.needs_teacher:
        return "exact", ""
    found: tuple[Class, str] = row.sparse.get(reading, ("refused", _why_refused(term, reading)))
    if term == "alpha_beta" and knobs and found[0] == "bounded" and not math.isclose(knobs["alpha"] + knobs["beta"], 1):
        return "refused", "no f-divergence unless alpha + beta = 1: coarse-graining may raise it"
    if term == "mixture" and knobs and reading == "ghost":
        order: tuple[Class, ...] = ("bounded", "estimated", "refused")
        return max((class_of(part, reading) for part in knobs["of"]), key=lambda c: order.index(c[0]))
    return found


def _why_refused(term: str, reading: Reading) -> str:
    if reading == "counts":
        return "random draws give an unbiased gradient for forward_kl alone"
    if term in ("taid", "nkd", "squared_logit"):
        return "needs the teacher's probability of every token"
    return "would be least where the student moves its mass off the support: store the tail too (reading: ghost)"


def settled(term: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a term with its defaults filled in.

    Raises ValueError for a knob that the term does not have, one that is missing, or a value outside its range.
    """
    if term not in TERMS:
        raise ValueError(f"there is no term {term}: one of {', '.join(TERMS)}")
    given = {name: value for name, value in knobs.items() if value is not None}
    for name, sentence in knob_problems(term, given):
        raise ValueError(f"{term}.{name}: {sentence}")
    row = TERMS[term]  # type: ignore[index]
    return {name: knob.default for name, knob in row.knobs.items()} | dict.fromkeys(row.flags, False) | given


def knob_problems(term: str, knobs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the knobs that a term was given, as (knob, sentence).  A knob that follows a schedule is
    given as anything that is no number, and is not looked into."""
    row = TERMS[term]  # type: ignore[index]
    allowed = [*row.knobs, *row.flags, *(["of"] if term == "mixture" else [])]
    for name in knobs:
        if name not in allowed:
            takes = f"it takes {', '.join(allowed)}" if allowed else "leave it out"
            yield name, f"is not a knob of {term}: {takes}"
    for name, knob in row.knobs.items():
        value = knobs.get(name, knob.default)
        if value is None:
            yield name, f"is missing: {term} needs a number in {interval(knob)}"
        elif isinstance(value, int | float) and not knob.holds(value):
            yield name, f"{value:g} is outside {interval(knob)}: give a number inside it"
    if term == "mixture":
        yield from _part_problems(knobs.get("of"))


def _part_problems(of: Mapping[str, float] | None) -> Iterator[tuple[str, str]]:
    """The parts of a mixture: divergences that need no knob, with weights above 0 that sum to 1."""
    known = [
        name for name, row in TERMS.items()
        if row.divergence and name != "mixture" and all(knob.default is not None for knob in row.knobs.values())
    ]  # fmt: skip
    if not of:
        yield "of", "is missing: give divergences and their weights, such as {forward_kl: 0.5, jsd: 0.5}"
        return
    for name, weight in of.items():
        if name not in known:
            yield f"of.{name}", f"is not one of {', '.join(known)}: give one of them"
        elif not weight > 0:
            yield f"of.{name}", f"{weight:g} is not above 0: give a share above 0"
    if not math.isclose(sum(of.values()), 1, abs_tol=1e-6):
        yield "of", f"the weights sum to {sum(of.values()):g}: they must sum to 1"


def markdown() -> str:
    """The table as Markdown: what each term is, and what it is worth under each reading of a teacher's signal."""
    lines = ["| term | value per token | range | knobs | dense | topk | ghost | counts |", "|---" * 8 + "|"]
    for name, row in TERMS.items():
        knobs = [
            f"`{knob}` in {interval(k)}" + ("" if k.default is None else f", {k.default:g}")
            for knob, k in row.knobs.items()
        ]
        classes = [class_of(name, reading)[0] for reading in READINGS]
        cells = [f"`{name}`", f"`{row.formula}`", row.range, "; ".join([*knobs, *(f"`{f}`" for f in row.flags)]) or "-"]
        lines.append("| " + " | ".join([*(c.replace("|", "\\|") for c in cells), *classes]) + " |")
    return "\n".join(lines) + "\n"


def interval(knob: Knob) -> str:
    """``[0, 1)``; a number without bounds is in ``(-inf, inf)``."""
    left = "(" if knob.low_open or knob.low == -math.inf else "["
    right = ")" if knob.high_open or knob.high == math.inf else "]"
    return f"{left}{knob.low:g}, {knob.high:g}{right}"
