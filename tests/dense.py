"""A dense float64 reference of the engine: the formulas of the documentation, one after the other, by autograd.

Everything is written in probabilities and with every logit in memory; a sparse teacher is taken row by row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmkd.objectives.engine import Request, Values, WeightedTerm, fused_loss
from llmkd.objectives.weighting import Statistics
from llmkd.types import Head, Logits, Signals, Sparse, States

V = 123
HS, HT = 16, 24
F64 = torch.float64

# -- formulas, of probabilities ---------------------------------------------------------------------------------------


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * torch.where(a > 0, a / b, 1.0).log()).sum(-1)


def entropy(p: Tensor) -> Tensor:
    return -torch.where(p > 0, p * p.log(), 0.0).sum(-1)


def jsd(p: Tensor, q: Tensor, beta: float = 0.5) -> Tensor:
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def skew_forward_kl(p: Tensor, q: Tensor, alpha: float = 0.1) -> Tensor:
    return kl(p, alpha * p + (1 - alpha) * q)


def skew_reverse_kl(p: Tensor, q: Tensor, alpha: float = 0.1, detach_mixture: bool = False) -> Tensor:
    return kl(q, (1 - alpha) * p + alpha * (q.detach() if detach_mixture else q))


def alpha_beta(p: Tensor, q: Tensor, alpha: float, beta: float) -> Tensor:
    """The five cases of Cichocki et al. 2011, equation 21, as they stand there."""
    if alpha == 0 and beta == 0:
        return 0.5 * (p.log() - q.log()).square().sum(-1)
    if alpha == -beta:
        ratio = q**alpha / p**alpha
        return (ratio.log() + 1 / ratio - 1).sum(-1) / alpha**2
    if beta == 0:
        ratio = torch.where(p > 0, p**alpha / q**alpha, 1.0)
        return (p**alpha * ratio.log() - p**alpha + q**alpha).sum(-1) / alpha**2
    if alpha == 0:
        return (q**beta * (q**beta / p**beta).log() - q**beta + p**beta).sum(-1) / beta**2
    both = alpha + beta
    mixed = p**alpha * q**beta - alpha / both * p**both - beta / both * q**both
    return -mixed.sum(-1) / (alpha * beta)


def head_mass(p: list[float], gap: list[float], mu: float) -> float:
    """Share of the gap on the teacher's likeliest tokens: as many as stay within the mass mu, the first in any case."""
    order = sorted(range(len(p)), key=lambda v: -p[v])
    head, mass = 0.0, 0.0
    for place, v in enumerate(order):
        mass += p[v]
        if place > 0 and mass > mu:
            break
        head += gap[v]
    return head / sum(gap) if sum(gap) else 0.5


def adaptive_kl(p: Tensor, q: Tensor, mu: float = 0.5) -> Tensor:
    size = p.shape[-1]
    rows = zip(p.reshape(-1, size).tolist(), (p - q.detach()).abs().reshape(-1, size).tolist(), strict=True)
    share = torch.tensor([head_mass(*row, mu) for row in rows], dtype=p.dtype).reshape(p.shape[:-1])
    return share * kl(p, q) + (1 - share) * kl(q, p)


def balanced_kl(p: Tensor, q: Tensor, low: float = 1.0, high: float = 2.0) -> Tensor:
    surer = entropy(q.detach()) < entropy(p)
    return torch.where(surer, high, low) * kl(p, q) + torch.where(surer, low, high) * kl(q, p)


def taid(p: Tensor, q: Tensor, t: float) -> Tensor:
    r = q.detach() ** (1 - t) * p**t
    return kl(r / r.sum(-1, keepdim=True), q)


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": jsd,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": lambda p, q: 0.5 * (p - q).abs().sum(-1),
    "hellinger": lambda p, q: 0.5 * (p.sqrt() - q.sqrt()).square().sum(-1),
    "alpha_beta": alpha_beta,
    "adaptive_kl": adaptive_kl,
    "balanced_kl": balanced_kl,
    "taid": taid,
    "mixture": lambda p, q, of: sum(weight * FORMULAS[name](p, q) for name, weight in of.items()),
    "triangular": lambda p, q: 0.5 * ((p - q).square() / (p + q)).sum(-1),
}


def nkd(p: Tensor, q: Tensor, target: Tensor, gamma: float = 1.5) -> Tensor:
    rows = torch.arange(len(target))
    others = torch.ones_like(p).index_put((rows, target), torch.zeros((), dtype=p.dtype))
    rest_p, rest_q = p * others, q * others
    rest_p, rest_q = rest_p / rest_p.sum(-1, keepdim=True), rest_q / rest_q.sum(-1, keepdim=True)
    log = (rest_q + (1 - others)).log()
    return -p[rows, target] * q[rows, target].log() - gamma * (rest_p * log).sum(-1)


def focal(logq: Tensor, target: Tensor) -> Tensor:
    hit = logq[torch.arange(len(target)), target]
    return -((1 - hit.exp()) ** 2) * hit


AGAINST_DATA: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": lambda logq, target: -logq[torch.arange(len(target)), target],
    "focal": focal,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "alpha_beta": {"alpha": 0.3, "beta": 0.7},
    "taid": {"t": 0.4},
    "mixture": {"of": {"forward_kl": 0.25, "jsd": 0.5, "hellinger": 0.25}},
}
"""Knobs for the terms that have to be given some."""

GRID: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in ("forward_kl", "reverse_kl", "total_variation", "hellinger", "cross_entropy")),
    *(("jsd", {"beta": beta}) for beta in (0.1, 0.5, 0.9)),
    *(("skew_forward_kl", {"alpha": alpha}) for alpha in (0.0, 0.1, 0.7)),
    *(("skew_reverse_kl", {"alpha": alpha}) for alpha in (0.0, 0.1, 0.7)),
    ("skew_reverse_kl", {"alpha": 0.3, "detach_mixture": True}),
    *(("alpha_beta", {"alpha": alpha, "beta": beta}) for alpha, beta in (
        (0.3, 0.7), (1, 0), (0, 1), (1, 1), (0, 0), (0.5, -0.5), (-0.4, 1.2), (1.5, 0.25), (0, -0.5), (-0.75, 0),
    )),
    *(("adaptive_kl", {"mu": mu}) for mu in (0.0, 0.5, 0.9)),
    *(("balanced_kl", knobs) for knobs in ({}, {"low": 0.5, "high": 3.0})),
    *(("taid", {"t": t}) for t in (0.2, 0.7, 1.0)),
    ("mixture", DEFAULTS["mixture"]),
    ("mixture", {"of": {"adaptive_kl": 0.5, "skew_reverse_kl": 0.25, "total_variation": 0.25}}),
    *(("nkd", {"gamma": gamma}) for gamma in (0.0, 1.5)),
    ("squared_logit", {}),
]  # fmt: skip
"""Every term with settings of its knobs."""


def labels(grid: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Names for the cases of a grid: ``jsd-beta=0.1``."""
    shown = [{k: "+".join(v) if isinstance(v, dict) else v for k, v in knobs.items()} for _, knobs in grid]
    return ["-".join([kind, *(f"{k}={v}" for k, v in one.items())]) for (kind, _), one in zip(grid, shown, strict=True)]


# -- cases ------------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A student, its teachers and terms, in float64."""

    hidden: Tensor
    head: Head
    targets: Tensor
    teachers: list[Signals]
    terms: list[WeightedTerm]
    vocabulary: int = V
    tau_student: float | Tensor = 1.0
    tau_teacher: float | Tensor = 1.0
    standardize: bool = False
    keep: Tensor | None = None
    chunk: int | None = None
    frozen: tuple[str, ...] = ()

    def leaves(self) -> dict[str, Tensor]:
        found = {"hidden": self.hidden, "weight": self.head.weight, "bias": self.head.bias}
        return {name: leaf for name, leaf in found.items() if leaf is not None and name not in self.frozen}

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Case":
        """The same numbers in another precision, on another device."""

        def move(x: Any) -> Any:
            if isinstance(x, Tensor):
                return x.detach().to(device, dtype if x.is_floating_point() else None)
            if isinstance(x, Head | States | Logits | Sparse):
                return replace(x, **{name: move(value) for name, value in vars(x).items()})
            return x

        terms = [replace(t, weight=t.weight.to(device, torch.float32)) for t in self.terms]
        moved = {name: move(value) for name, value in vars(self).items()}
        moved["teachers"] = [move(teacher) for teacher in self.teachers]
        moved["terms"] = self.terms if dtype == F64 else terms
        return Case(**moved)

    def only(self, kept: Tensor) -> "Case":
        """The tokens of ``kept`` alone, as if there had been no others."""

        def pick(x: Any) -> Any:
            return x.detach()[kept].clone() if isinstance(x, Tensor) else x

        def pick_signals(s: Signals) -> Signals:
            return replace(s, **{name: pick(x) for name, x in vars(s).items()})

        fields = {name: pick(getattr(self, name)) for name in ("hidden", "targets", "tau_student", "tau_teacher")}
        head = replace(self.head, weight=self.head.weight.detach().clone())
        terms = [replace(t, weight=pick(t.weight)) for t in self.terms]
        teachers = [pick_signals(s) for s in self.teachers]
        return replace(self, **fields, head=head, terms=terms, teachers=teachers, keep=None)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def signals(tokens: int, seed: int, rows: int = V, width: int = HT, **head) -> States:
    weight = 2 * randn(rows, width, seed=seed) / math.sqrt(width)
    return States(randn(tokens, width, seed=seed + 1), Head(weight, **head))


def logits_of(teacher: States) -> Logits:
    return Logits(dense_logits(teacher.hidden, teacher.head, teacher.head.weight.shape[0]))


def likeliest(logp: Tensor, k: int, reading: str, tail: bool = False) -> Sparse:
    """The k likeliest tokens, and as ``tail`` the exact log-probability of the others."""
    top, places = logp.topk(k, dim=-1)
    others = logp.scatter(-1, places, -math.inf).logsumexp(-1) if tail else None
    return Sparse(places, top, reading, others)


def draws(logp: Tensor, count: int, seed: int) -> Sparse:
    """The shares of ``count`` random draws, rows filled up with log-probability -inf and id 0."""
    drawn = torch.multinomial(logp.exp(), count, replacement=True, generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros_like(logp).scatter_add_(-1, drawn, torch.ones(drawn.shape, dtype=logp.dtype))
    most = int((counts > 0).sum(-1).max())
    top, places = counts.topk(most, dim=-1)
    return Sparse(torch.where(top > 0, places, 0), (top / count).log(), "counts")


def terms_of(kinds: list[str | tuple[str, dict[str, Any]]], tokens: int) -> list[WeightedTerm]:
    """Terms that weigh between 0 and 1 at every token, all beside teacher 0."""
    found = []
    for k, kind in enumerate(kinds):
        name, knobs = (kind, DEFAULTS.get(kind, {})) if isinstance(kind, str) else kind
        weight = randn(tokens, seed=20 + k).sigmoid()
        found.append(WeightedTerm(name, weight, None if name in AGAINST_DATA else 0, knobs))
    return found


def case(tokens: int = 7, kinds=("forward_kl", "reverse_kl", "cross_entropy"), rows: int = V, **settings) -> Case:
    """A random case with one teacher."""
    bias = randn(rows, seed=3) if settings.pop("bias", False) else None
    head = Head(
        2 * randn(rows, HS, seed=1) / math.sqrt(HS), bias, settings.pop("softcap", None), settings.pop("scale", 1.0)
    )
    teachers = settings.pop("teachers", None) or [signals(tokens, seed=5)]
    generator = torch.Generator().manual_seed(4)
    targets = torch.randint(0, settings.get("vocabulary", V), (tokens,), generator=generator)
    return Case(randn(tokens, HS, seed=2), head, targets, teachers, terms_of(list(kinds), tokens), **settings)


# -- the reference, and the engine beside it --------------------------------------------------------------------------


def dense_logits(hidden: Tensor, head: Head, vocabulary: int) -> Tensor:
    z = hidden @ head.weight.T if head.bias is None else hidden @ head.weight.T + head.bias
    z = z * head.scale
    return (z if head.softcap is None else head.softcap * (z / head.softcap).tanh())[:, :vocabulary]


def teacher_logits(teacher: States | Logits, vocabulary: int) -> Tensor:
    if isinstance(teacher, Logits):
        return teacher.logits[:, :vocabulary]
    return dense_logits(teacher.hidden, teacher.head, vocabulary)


def viewed(z: Tensor, tau: float | Tensor, standardize: bool) -> Tensor:
    if standardize:
        z = (z - z.mean(-1, keepdim=True)) / z.var(-1, unbiased=False, keepdim=True).sqrt()
    return z / (tau[:, None] if isinstance(tau, Tensor) else tau)


def known(teacher: Sparse, n: int, q: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of the tokens that a sparse teacher names for token n, and with ``ghost`` of all others as one."""
    real = teacher.logp[n] > -math.inf
    ids, p = teacher.ids[n][real], teacher.logp[n][real].exp()
    ours = q[ids]
    if teacher.reading != "ghost":
        return p, ours
    others = [v for v in range(len(q)) if v not in set(ids.tolist())]
    tail = 1 - p.sum() if teacher.tail is None else teacher.tail[n].exp()
    return torch.cat([p, tail[None]]), torch.cat([ours, q[others].sum()[None]])


def dense_value(term: WeightedTerm, z: Tensor, c: Case) -> Tensor:
    """The unweighted values of one term, given the student's logits."""
    if term.teacher is None:
        return AGAINST_DATA[term.kind](z.log_softmax(-1), c.targets, **term.knobs)
    teacher, x = c.teachers[term.teacher], viewed(z, c.tau_student, c.standardize)
    if isinstance(teacher, Sparse):
        q = x.softmax(-1)
        return torch.stack([FORMULAS[term.kind](*known(teacher, n, q[n]), **term.knobs) for n in range(len(q))])
    y = viewed(teacher_logits(teacher, c.vocabulary), c.tau_teacher, c.standardize)
    if term.kind == "squared_logit":
        return (y - x).square().sum(-1) / c.vocabulary
    if term.kind == "nkd":
        return nkd(y.softmax(-1), x.softmax(-1), c.targets, **term.knobs)
    return FORMULAS[term.kind](y.softmax(-1), x.softmax(-1), **term.knobs)


def measured(teacher: Signals, q: Tensor, vocabulary: int) -> dict[str, Tensor]:
    """What the engine reports of one teacher, and the probability of its likeliest token."""
    if isinstance(teacher, Sparse):
        coarse = [known(teacher, n, q[n]) for n in range(len(q))]
        width = (teacher.logp > -math.inf).sum(-1).tolist()
        top = teacher.logp.argmax(-1, keepdim=True)
        return {
            "teacher_entropy": torch.stack([entropy(p) for p, _ in coarse]),
            "agreement": (teacher.ids.gather(-1, top)[:, 0] == q.argmax(-1)).double(),
            "mass": torch.stack([ours[:k].sum() for (_, ours), k in zip(coarse, width, strict=True)]),
            "normalizer": torch.zeros(len(q), dtype=F64),
            "top": teacher.logp.amax(-1).exp(),
        }
    y = teacher_logits(teacher, vocabulary)
    return {
        "teacher_entropy": entropy(y.softmax(-1)),
        "agreement": (y.argmax(-1) == q.argmax(-1)).double(),
        "mass": torch.ones(len(q), dtype=F64),
        "normalizer": y.logsumexp(-1),
        "top": y.softmax(-1).amax(-1),
    }


def reference(c: Case) -> tuple[Tensor, dict[str, Tensor], Values]:
    """Loss, gradients and values of the dense formula in float64, by autograd; values of a token that no term looks at
    are 0."""
    c = c.to(F64)
    leaves = {name: leaf.requires_grad_() for name, leaf in c.leaves().items()}
    z = dense_logits(c.hidden, c.head, c.vocabulary)
    weights = [term.weight.to("cpu", F64) for term in c.terms]
    keep = torch.stack(weights).ne(0).any(0) if c.keep is None else c.keep
    student = entropy(z.detach().softmax(-1))
    found = [measured(teacher, z.detach().softmax(-1), c.vocabulary) for teacher in c.teachers]
    values, loss = [], torch.zeros((), dtype=F64)
    for term, weight in zip(c.terms, weights, strict=True):
        value = dense_value(term, z, c)
        if term.weighting is not None:
            beside = found[term.teacher] if term.teacher is not None else {}
            seen = Statistics(student, c.vocabulary, beside.get("teacher_entropy"), beside.get("top"))
            weight = weight * term.weighting(seen)
        on = weight != 0
        loss = loss + (weight[on] * value[on]).sum()
        values.append(torch.where(keep, value.detach(), 0.0))
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    def each(name: str) -> Tensor:
        rows = [torch.where(keep, f[name], 0.0) for f in found]
        return torch.stack(rows) if rows else torch.empty(0, len(keep), dtype=F64)

    beside_teachers = {name: each(name) for name in ("teacher_entropy", "agreement", "mass", "normalizer")}
    return loss.detach(), gradients, Values(torch.stack(values), torch.where(keep, student, 0.0), **beside_teachers)


def run(c: Case, factor: float = 1.0) -> tuple[Tensor, dict[str, Tensor], Values]:
    """The same by the engine."""
    leaves = {name: leaf.requires_grad_() for name, leaf in c.leaves().items()}
    loss, values = fused_loss(c.hidden, c.head, request(c))
    (factor * loss).backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items()}, values


def request(c: Case) -> Request:
    names = ("targets", "teachers", "terms", "vocabulary", "tau_student", "tau_teacher", "standardize", "keep", "chunk")
    return Request(**{name: getattr(c, name) for name in names})


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected).norm() / expected.norm())


def assert_is_the_reference(c: Case, tolerance: float = 1e-11) -> None:
    expected_loss, expected, expected_values = reference(c)
    loss, found, values = run(c)
    assert float(loss) == pytest.approx(float(expected_loss), rel=tolerance)
    assert list(found) == list(expected)
    for name, gradient in found.items():
        assert relative(gradient, expected[name]) < tolerance, name
    for name, value in vars(values).items():
        wanted = getattr(expected_values, name)
        torch.testing.assert_close(value.cpu().double(), wanted, rtol=tolerance, atol=10 * tolerance, msg=name)
