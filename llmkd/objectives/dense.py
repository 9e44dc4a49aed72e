"""The dense reference: what the engine computes, written down plainly, with every logit in memory and autograd.

Slow and large; in float64 it is the truth that tests and ``llmkd verify`` hold the engine against.  No trainer uses it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmkd.objectives.divergences import VALUES
from llmkd.objectives.request import Request, Values, WeightedTerm
from llmkd.objectives.sparse import missing
from llmkd.objectives.weighting import Statistics
from llmkd.types import Head, Logits, Signals, Sparse


def dense_loss(hidden: Tensor, head: Head, request: Request) -> tuple[Tensor, Values]:
    """The same as ``engine.fused_loss``, differentiable in the hidden states and the head by autograd."""
    z = dense_logits(hidden, head, request.vocabulary)
    values = Values.zeros(len(request.terms), len(request.teachers), hidden.shape[0], like=hidden)
    logq = z.log_softmax(-1)
    values.entropy[:] = _entropy(logq.detach())
    for i, teacher in enumerate(request.teachers):
        _measure(teacher, i, logq.detach(), request, values)
    loss = z.new_zeros(())
    for k, term in enumerate(request.terms):
        value = _value(term, z, request)
        values.terms[k] = value.detach()
        weight = term.weight.to(z.dtype) * _weighting(term, values, request)
        loss = loss + torch.where(weight == 0, 0.0, weight * value).sum()
    return loss, values


def dense_logits(hidden: Tensor, head: Head, vocabulary: int) -> Tensor:
    """``[N, V]`` in the precision of the hidden states, at least float32."""
    wide = hidden if hidden.dtype == torch.float64 else hidden.float()
    z = wide @ head.weight[:vocabulary].to(wide.dtype).t()
    if head.bias is not None:
        z = z + head.bias[:vocabulary].to(z.dtype)
    z = z * head.scale
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def _value(term: WeightedTerm, z: Tensor, request: Request) -> Tensor:
    """The unweighted value ``[N]`` of one term."""
    formula = VALUES[term.kind]
    if term.teacher is None:
        return formula(z.log_softmax(-1), request.targets, **term.knobs)
    x = _viewed(z, request.tau_student, request.standardize)
    teacher = request.teachers[term.teacher]
    if isinstance(teacher, Sparse):
        return formula(*_known(teacher, x.log_softmax(-1)), **term.knobs)
    y = _viewed(_logits(teacher, request.vocabulary, z.dtype), request.tau_teacher, request.standardize)
    if term.kind == "squared_logit":
        return formula(y, x)
    extra = (request.targets,) if term.kind == "nkd" else ()
    return formula(y.log_softmax(-1), x.log_softmax(-1), *extra, **term.knobs)


def _logits(teacher: Signals, vocabulary: int, dtype: torch.dtype) -> Tensor:
    if isinstance(teacher, Logits):
        return teacher.logits[:, :vocabulary].to(dtype)
    assert not isinstance(teacher, Sparse)
    return dense_logits(teacher.hidden, teacher.head, vocabulary).to(dtype)


def _viewed(z: Tensor, tau: float | Tensor, standardize: bool) -> Tensor:
    if standardize:
        z = (z - z.mean(-1, keepdim=True)) / z.std(-1, correction=0, keepdim=True)
    return z / (tau.unsqueeze(-1) if isinstance(tau, Tensor) else tau)


def _known(teacher: Sparse, logq: Tensor) -> tuple[Tensor, Tensor]:
    """Teacher's and student's log-probabilities of the known tokens, and of all the rest as one more."""
    known = teacher.logp > -math.inf
    logp = teacher.logp.to(logq.dtype)
    ids = torch.where(known, teacher.ids, 0)
    ours = torch.where(known, logq.gather(-1, ids), -math.inf)
    if teacher.reading != "ghost":
        return logp, ours
    named = torch.zeros_like(logq).scatter_add(-1, ids, known.to(logq.dtype)) > 0
    rest = logq.masked_fill(named, -math.inf).logsumexp(-1)
    tail = missing(logp, logq.shape[-1]) if teacher.tail is None else teacher.tail
    return torch.cat([logp, tail.to(logp.dtype)[:, None]], -1), torch.cat([ours, rest[:, None]], -1)


def _measure(teacher: Signals, i: int, logq: Tensor, request: Request, values: Values) -> None:
    if isinstance(teacher, Sparse):
        logp, _ = _known(teacher, logq)
        best = teacher.ids.gather(-1, teacher.logp.argmax(-1, keepdim=True)).squeeze(-1)
        known = teacher.logp > -math.inf
        values.mass[i] = torch.where(known, logq.gather(-1, torch.where(known, teacher.ids, 0)).exp(), 0.0).sum(-1)
    else:
        y = _logits(teacher, request.vocabulary, logq.dtype)
        logp, best = y.log_softmax(-1), y.argmax(-1)
        values.normalizer[i] = y.logsumexp(-1)
        values.mass[i] = 1.0
    values.teacher_entropy[i] = _entropy(logp)
    values.agreement[i] = (best == logq.argmax(-1)).to(values.agreement.dtype)


def _entropy(log: Tensor) -> Tensor:
    return -torch.where(log == -math.inf, 0.0, log.exp() * log).sum(-1)


def _weighting(term: WeightedTerm, values: Values, request: Request) -> Tensor | float:
    if term.weighting is None:
        return 1.0
    if term.teacher is None:
        return term.weighting(Statistics(values.entropy, request.vocabulary))
    teacher = request.teachers[term.teacher]
    if isinstance(teacher, Sparse):
        top = teacher.logp.amax(-1).exp().to(values.entropy.dtype)
    else:
        top = _logits(teacher, request.vocabulary, values.entropy.dtype).softmax(-1).amax(-1)
    return term.weighting(Statistics(values.entropy, request.vocabulary, values.teacher_entropy[term.teacher], top))
