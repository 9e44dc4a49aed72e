"""Terms beside a teacher of whom only some tokens are known.

The formulas are those of ``divergences``, on the tokens that are known: k columns, and with the reading ``ghost`` one
more that holds all the rest, for teacher and student alike.  Their gradient, by autograd on those few columns, is
carried to all V logits: the rest bucket is a logsumexp, whose gradient goes to its tokens in proportion to q.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmkd.objectives.distribution import Distribution
from llmkd.objectives.divergences import VALUES, expect
from llmkd.types import Sparse


@dataclass(frozen=True)
class SparseRows:
    """Some rows of a sparse signal.  ids, logp ``[n, k]``: a place without a token has logp -inf and repeats the id of
    the likeliest one; tail ``[n]``, or None where nothing is known of the rest."""

    ids: Tensor
    logp: Tensor
    tail: Tensor | None

    @classmethod
    def of(cls, signal: Sparse, vocabulary: int, dtype: torch.dtype) -> SparseRows:
        logp = signal.logp.to(dtype)
        best = logp.argmax(-1, keepdim=True)
        ids = signal.ids.to(torch.int64).clamp(0, vocabulary - 1)  # others have been flagged
        ids = torch.where(logp == -math.inf, ids.gather(-1, best), ids)
        tail = None
        if signal.reading == "ghost":
            tail = missing(logp, vocabulary) if signal.tail is None else signal.tail.to(dtype)
        return cls(ids, logp, tail)

    def __getitem__(self, rows: slice) -> SparseRows:
        return SparseRows(self.ids[rows], self.logp[rows], None if self.tail is None else self.tail[rows])

    @property
    def known(self) -> Tensor:
        return self.logp != -math.inf

    @property
    def top(self) -> Tensor:
        return self.ids.gather(-1, self.logp.argmax(-1, keepdim=True)).squeeze(-1)

    @property
    def top_probability(self) -> Tensor:
        return self.logp.amax(-1).exp()

    def coarse(self) -> Tensor:
        """Log-probabilities ``[n, k]``, or ``[n, k + 1]`` with the rest."""
        return self.logp if self.tail is None else torch.cat([self.logp, self.tail.unsqueeze(-1)], -1)

    def entropy(self) -> Tensor:
        """Of what is known; with the rest as one token, never above the teacher's own."""
        coarse = self.coarse()
        return -expect(coarse.exp(), coarse)

    def mass(self, prob: Tensor) -> Tensor:
        """What ``prob [n, V]`` gives to the known tokens."""
        return torch.where(self.known, prob.gather(-1, self.ids), 0.0).sum(-1)


def missing(logp: Tensor, vocabulary: int) -> Tensor:
    """``log(1 - sum exp logp)``, where what rounding hides counts as the last digit; -inf where no token is missing."""
    rest = (1 - logp.exp().sum(-1)).clamp(min=torch.finfo(logp.dtype).eps).log()
    return torch.where((logp != -math.inf).sum(-1) == vocabulary, -math.inf, rest)


def value_and_gradient(
    kind: str, knobs: Mapping[str, Any], teacher: SparseRows, student: Distribution
) -> tuple[Tensor, Tensor]:
    """Value ``[n]`` of a term and its gradient ``[n, V]`` to the student's logits."""
    known, q_known = teacher.known, student.prob.gather(-1, teacher.ids)
    leaf = torch.where(known, student.log_of(teacher.ids), -math.inf)
    rest = None
    if teacher.tail is not None:
        rest = student.prob.scatter(-1, teacher.ids, 0.0).sum(-1, keepdim=True)
        leaf = torch.cat([leaf, rest.log()], -1)
    with torch.enable_grad():
        leaf = leaf.detach().requires_grad_()
        value = VALUES[kind](teacher.coarse(), leaf, **knobs)
        (g,) = torch.autograd.grad(value.sum(), leaf)
    g = torch.where(leaf.detach() == -math.inf, 0.0, g)
    total = g.sum(-1, keepdim=True)
    dz = student.prob * -total
    if rest is not None:  # a share of the rest first: g / rest alone may be more than the format holds
        dz += torch.where(rest == 0, 0.0, student.prob / rest) * g[..., -1:]
    own = g[..., : known.shape[-1]] - q_known * total
    best = teacher.logp.argmax(-1, keepdim=True)
    dz.scatter_(-1, teacher.ids, torch.where(known, own, own.gather(-1, best)))
    return value.detach(), dz
