"""The legend of letters, and the few shapes that every layer shares.

Letters, everywhere in this package:

    p, logp    the teacher's distribution over the vocabulary, and its logarithm
    q, logq    the student's
    tau        a temperature: logits are divided by it
    B, T       rows of a batch, tokens of a row
    N          counted tokens of a batch: the positions that the loss looks at
    V          rows of the vocabulary that student and teacher share
    H          width of a hidden state (Hs the student's, Ht the teacher's)
    K          terms of an objective

A *counted* token is a target: a token of the completion (the end-of-turn token once) that has a predecessor in its
own segment.  The hidden state that predicts it stands one position to its left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from llmkd.terms import Reading

Batch = Mapping[str, Tensor]
"""What the collator makes: ``input_ids [B, T]``, ``counted [B, T]`` and more (``llmkd.data.collate``)."""


@dataclass(frozen=True)
class Head:
    """The projection from hidden states to logits: ``z = cap(scale * (h W^T + b))``.

    weight ``[V, H]``, bias ``[V]``; ``softcap`` c means ``cap(z) = c tanh(z / c)`` (Gemma 2), ``scale`` multiplies
    (Cohere) and is the inverse where a family divides (Granite).
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def rows(self, count: int) -> Head:
        """The head of the first ``count`` vocabulary rows: the rows that student and teacher share."""
        if count == self.weight.shape[0]:
            return self
        return replace(self, weight=self.weight[:count], bias=None if self.bias is None else self.bias[:count])

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Float32 logits ``[N, V]`` of ``hidden [N, H]``, from a product of the hidden states' own precision; written
        into ``out`` if it is given."""
        product = matmul_float32(hidden, self.weight.to(hidden.dtype).t(), out)
        if self.bias is not None:
            product += self.bias.to(product.dtype)
        if self.scale != 1.0:
            product *= self.scale
        if self.softcap is not None:
            product.div_(self.softcap).tanh_().mul_(self.softcap)
        return product


def matmul_float32(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``a @ b`` in float32 (float64 stays), never rounded to bfloat16: the precision of the loss depends on it."""
    if a.dtype in (torch.float32, torch.float64):
        return torch.mm(a, b, out=out) if out is not None else a @ b
    if not a.is_cuda:
        return matmul_float32(a.float(), b.float(), out)
    if out is not None:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a, b, out_dtype=torch.float32)


def add_matmul_float32(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b`` for a float32 or float64 total, without a tensor for the product."""
    if a.is_cuda and a.dtype != total.dtype:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


@dataclass(frozen=True)
class States:
    """Hidden states ``[N, H]`` for the N counted tokens and the head they go through: the whole distribution, exactly,
    in the fewest bytes.

    ``kept [N]`` is False where the teacher has nothing to say (its own rendering ends a turn with another token).
    """

    hidden: Tensor
    head: Head
    kept: Tensor | None = None


@dataclass(frozen=True)
class Logits:
    """Logits ``[N, V]`` as the teacher made them; a single -inf is a probability of 0."""

    logits: Tensor
    kept: Tensor | None = None


@dataclass(frozen=True)
class Sparse:
    """What is known of a few tokens: ``ids [N, k]`` and their log-probabilities ``logp [N, k]``, at temperature 1.

    reading    ``topk``: nothing is known of the rest.  ``ghost``: the rest is one bucket of log-probability
               ``tail [N]`` (without it, what is missing to 1).  ``counts``: logp is log(count / draws) of random draws
               with replacement.  ``llmkd.terms`` says which term is worth what under each.

    A row with fewer tokens is filled up with logp -inf and any id.
    """

    ids: Tensor
    logp: Tensor
    reading: Reading
    tail: Tensor | None = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class Sampled:
    """Log-probabilities ``logp [N]`` of the batch's own tokens, and nothing of the others: what a server says cheaply.
    Estimators that look at sampled tokens alone can be made of it."""

    logp: Tensor
    kept: Tensor | None = None


Signals = States | Logits | Sparse
"""What a model says about the N counted tokens of a batch."""


Tally = dict[str, Tensor]
"""Name -> ``[D, 2]``: the sum of a measured value over a batch's tokens and how many they were, for D domains."""


class Loss(Protocol):
    """What a trainer knows of the objective: counts first, over a whole step, then a share of the loss per batch."""

    domains: Sequence[str]
    vocabulary: int
    terms: Sequence[object]
    teacher_names: Sequence[str]
    adaptive: Mapping[str, Any]

    def counts(self, batch: Batch) -> Tensor: ...

    def __call__(
        self, hidden: Tensor, head: Head, signals: Mapping[str, Signals], batch: Batch, counts: Tensor, step: int = 0
    ) -> tuple[Tensor, Tally]: ...

    def scheduled(self, step: int) -> dict[str, float]: ...

    def observe(self, means: Mapping[str, float], step: int) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Teacher(Protocol):
    """A named source of Signals.  It is asked about a batch and answers for its counted tokens, in row-major order."""

    name: str

    def score(self, batch: Batch) -> Signals: ...
