"""Laws of the estimators in ``objectives.policy``, on toys so small that every sample can be enumerated.

A toy is a student and a teacher over V tokens, alone or two in a row: then the second token depends on the first.  An
expectation over the student's own samples is a sum over all of them, with nothing left to chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmkd.checks import oracle
from llmkd.checks.law import Case, Finding, Law, Setting, at_most, is_so, normals, same
from llmkd.objectives import policy

GROUP = "estimators"
ESTIMATORS: dict[str, str] = {
    "k1": "reverse KL's value",
    "k2": "reverse KL's gradient",
    "k3": "reverse KL's value, forward KL's gradient",
}
"""What each has in expectation over the student's own samples."""


def laws(setting: Setting) -> list[Law]:
    cases = [{"vocabulary": v, "length": n, "seed": setting.seed} for n in (1, 2) for v in (2, 3, 5)]
    near = [{"vocabulary": v, "seed": setting.seed} for v in (2, 3, 5)]
    toys = Toys(setting)

    def law(name: str, entry: str, holds: Callable[..., Any], cases: list[Case] = cases) -> Law:
        return Law(name, GROUP, entry, cases, lambda **case: holds(entry, **case))

    return [
        law("equals its formula", "k1", toys.equals_formula),
        law("equals its formula", "k2", toys.equals_formula),
        law("equals its formula", "k3", toys.equals_formula),
        law("expected value is reverse KL", "k1", toys.unbiased),
        law("expected value is reverse KL", "k3", toys.unbiased),
        law("expected value is not reverse KL, as declared", "k2", toys.biased, [{"vocabulary": v} for v in (2, 3, 5)]),
        law("never negative", "k2", toys.never_negative),
        law("never negative", "k3", toys.never_negative),
        law("varies less than k1", "k3", toys.varies_less, near),
        law("as a loss has no gradient in expectation", "k1", toys.gradient_of_nothing),
        law("as a loss has the gradient of reverse KL", "k2", toys.gradient_of_reverse),
        law("as a loss has the gradient of forward KL", "k3", toys.gradient_of_forward),
    ]


class Toys:
    """Case keywords: vocabulary; length: tokens in a row; seed."""

    def __init__(self, setting: Setting) -> None:
        self.device = setting.device

    def equals_formula(self, name: str, **case: Any) -> Finding:
        logp, logq = self._tokens(**case)
        p, q = logp.exp(), logq.exp()
        expected = {"k1": (q / p).log(), "k2": (q / p).log().square() / 2, "k3": p / q - 1 - (p / q).log()}[name]
        return same(_estimate(name, logp, logq), expected, 1e-10, "value")

    def unbiased(self, name: str, **case: Any) -> Finding:
        found, expected = self._expected(name, **case)
        return same(found, expected, 1e-10, "expected value")

    def biased(self, name: str, vocabulary: int) -> Finding:
        """A teacher to whom all tokens are alike, and a student who prefers some."""
        logq = torch.linspace(0, 2, vocabulary, dtype=torch.float64, device=self.device).log_softmax(-1)
        logp = torch.zeros_like(logq).log_softmax(-1)
        found, expected = (
            float((logq.exp() * _estimate(name, logp, logq)).sum()),
            float(oracle.kl(logq.exp(), logp.exp())),
        )
        return is_so(abs(found - expected) > 1e-3, f"{found:.6g}", f"other than {expected:.6g}", "expected value")

    def never_negative(self, name: str, **case: Any) -> Finding:
        return at_most(-_estimate(name, *self._tokens(**case)), 0.0, 1e-12, "minus the value")

    def varies_less(self, name: str, vocabulary: int, seed: int) -> Finding:
        """Where student and teacher are near, which is where an estimate is hard."""
        logq = normals(vocabulary, seed=seed).log_softmax(-1).to(self.device)
        logp = (logq + 0.05 * normals(vocabulary, seed=seed + 1).to(self.device)).log_softmax(-1)
        found, limit = (_variance(_estimate(n, logp, logq), logq.exp()) for n in (name, "k1"))
        return at_most(found, limit, 0.0, "variance")

    def gradient_of_nothing(self, name: str, **case: Any) -> Finding:
        return self._gradient(name, lambda p, q: 0 * q.sum(-1), **case)

    def gradient_of_reverse(self, name: str, **case: Any) -> Finding:
        return self._gradient(name, lambda p, q: oracle.kl(q, p), **case)

    def gradient_of_forward(self, name: str, **case: Any) -> Finding:
        return self._gradient(name, oracle.kl, **case)

    def _gradient(self, name: str, divergence: Callable[[Tensor, Tensor], Tensor], **case: Any) -> Finding:
        """To the student's logits: of the mean over all samples, and of the sum over tokens of the divergence given
        what stands before, which itself is held fixed."""
        teacher, student = (Tree(z) for z in self._logits(**case))
        student.logits.requires_grad_()
        samples = student.samples()
        chance = student.log_of(samples).sum(-1).exp().detach()
        loss = (chance * _estimate(name, teacher.log_of(samples), student.log_of(samples)).sum(-1)).sum()
        (found,) = torch.autograd.grad(loss, student.logits)
        exact = (student.reached().detach() * divergence(teacher.log.exp(), student.log.exp())).sum()
        (expected,) = torch.autograd.grad(exact, student.logits)
        return same(found, expected, 1e-10, "gradient to the student's logits")

    def _expected(self, name: str, **case: Any) -> tuple[Tensor, Tensor]:
        teacher, student = (Tree(z) for z in self._logits(**case))
        samples = student.samples()
        chance = student.log_of(samples).sum(-1).exp()
        found = (chance * _estimate(name, teacher.log_of(samples), student.log_of(samples)).sum(-1)).sum()
        return found, (student.reached() * oracle.kl(student.log.exp(), teacher.log.exp())).sum()

    def _tokens(self, **case: Any) -> tuple[Tensor, Tensor]:
        teacher, student = (Tree(z) for z in self._logits(**case))
        return teacher.log.reshape(-1), student.log.reshape(-1)

    def _logits(self, vocabulary: int, length: int, seed: int) -> list[Tensor]:
        nodes = 1 if length == 1 else 1 + vocabulary
        return [normals(nodes, vocabulary, seed=seed + at).to(self.device) for at in range(2)]


def _estimate(name: str, logp: Tensor, logq: Tensor) -> Tensor:
    """The code under test."""
    return getattr(policy, name)(logp, logq)


def _variance(values: Tensor, chance: Tensor) -> Tensor:
    return (chance * values.square()).sum() - (chance * values).sum().square()


class Tree:
    """A model of one or two tokens.  logits ``[1, V]``, or ``[1 + V, V]``: of the first token, then of the second after
    each first one."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @property
    def log(self) -> Tensor:
        return self.logits.log_softmax(-1)

    def samples(self) -> Tensor:
        """All of them, ``[V, 1]`` or ``[V^2, 2]``."""
        tokens = torch.arange(self.logits.shape[1], device=self.logits.device)
        return tokens.unsqueeze(-1) if len(self.logits) == 1 else torch.cartesian_prod(tokens, tokens)

    def log_of(self, samples: Tensor) -> Tensor:
        """Log-probability of each token of each sample."""
        nodes = torch.zeros_like(samples)
        nodes[:, 1:] = 1 + samples[:, :-1]
        return self.log[nodes, samples]

    def reached(self) -> Tensor:
        """The probability of standing before each node."""
        first = self.log[:1].exp()
        return (
            torch.ones_like(first[0, :1])
            if len(self.logits) == 1
            else torch.cat([torch.ones_like(first[0, :1]), first[0]])
        )
