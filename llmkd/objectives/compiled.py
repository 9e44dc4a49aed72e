"""The row block as one compiled loop: torch.compile fuses the closed forms, so that a row is read a few times in all.

Blocks of one fixed size go through it, what is left of a chunk through ``rows``; so does a block in which an impossible
token shows.  Compiling takes seconds once a run and needs a C++ compiler.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vecdot

from llmkd.objectives import rows
from llmkd.objectives.closed import CLOSED
from llmkd.objectives.distribution import Distribution
from llmkd.objectives.request import Request, Values
from llmkd.objectives.rows import Rows
from llmkd.objectives.sparse import SparseRows
from llmkd.types import Head

BLOCK_BYTES = 2**21
EAGER_ONLY = ("alpha_beta", "adaptive_kl", "taid")
"""Closed forms that choose their way by the numbers in a block, or by a knob that changes at every step."""


def serves(z: Tensor, teachers: Sequence[Tensor | SparseRows], request: Request) -> bool:
    """Whether this chunk can be computed here: on a CPU, beside at most one dense teacher, with closed forms."""
    kinds = {t.kind for t in request.terms} - {"cross_entropy"}
    return (
        request.compiled
        and z.device.type == "cpu"
        and len(teachers) <= 1
        and not any(isinstance(t, SparseRows) for t in teachers)
        and not request.standardize
        and not any(t.weighting for t in request.terms)
        and all(kind in CLOSED and kind not in EAGER_ONLY for kind in kinds)
        and not any(kind in EAGER_ONLY for t in request.terms for kind in t.knobs.get("of", ()))
    )


def check_compiler() -> None:
    """Raise ValueError where there is nothing to compile with."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++", "c++")):
        raise ValueError("compiling the row block needs a C++ compiler (g++ or clang++): install one, or leave it off")


def visit(chunk: Rows, head: Head, request: Request, values: Values, differentiate: bool) -> Tensor:
    """The same as ``rows.visit``."""
    z, at = chunk.z, chunk.at
    size = max(1, BLOCK_BYTES // (z.element_size() * z.shape[1]))
    function = _function(tuple((t.kind, _frozen(t.knobs)) for t in request.terms))
    taus = [request.tau_of("student", at, z.dtype), request.tau_of("teacher", at, z.dtype)]
    loss = z.new_zeros(())
    whole = z.shape[0] // size * size
    for start in range(0, whole, size):
        inner = slice(start, start + size)
        outer = slice(at.start + start, at.start + start + size)
        weights = torch.stack([t.weight[outer].to(z.dtype) for t in request.terms])
        teacher = chunk.teachers[0][inner] if chunk.teachers else None
        tau = [None if x is None else x[inner] for x in taus]
        found = function(z[inner], teacher, request.targets[outer], weights, *tau, head.softcap, head.scale)
        part, finite = _write(found, values, outer, weights)
        if not finite:
            part = _eager(chunk, inner, head, request, values, differentiate)
        elif differentiate:
            z[inner] = found[-1]
        loss += part
    if whole < z.shape[0]:
        loss += _eager(chunk, slice(whole, z.shape[0]), head, request, values, differentiate)
    return loss


def _eager(chunk: Rows, inner: slice, head: Head, request: Request, values: Values, differentiate: bool) -> Tensor:
    at = slice(chunk.at.start + inner.start, chunk.at.start + inner.stop)
    part = replace(chunk, z=chunk.z[inner], teachers=[t[inner] for t in chunk.teachers], at=at)
    return rows.visit(part, head, request, values, differentiate)


def _write(found: tuple[Any, ...], values: Values, at: slice, weights: Tensor) -> tuple[Tensor, bool]:
    terms, entropy, theirs, _ = found
    if not math.isfinite((terms.sum() + entropy.sum() + (0 if theirs is None else theirs[0].sum())).item()):
        return terms.new_zeros(()), False
    values.terms[:, at] = terms
    values.entropy[at] = entropy
    if theirs is not None:
        values.teacher_entropy[0, at], values.agreement[0, at], values.normalizer[0, at] = theirs
        values.mass[0, at] = 1.0
    return (weights * terms).sum(), True


def _frozen(knobs: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((k, tuple(sorted(v.items())) if isinstance(v, Mapping) else v) for k, v in sorted(knobs.items()))


@functools.lru_cache(maxsize=32)
def _function(terms: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]) -> Callable[..., tuple[Any, ...]]:
    """The compiled block for some terms: values ``[K, n]``, the student's entropy, the teacher's (entropy, agreement,
    normalizer), and the gradient to the product."""
    named = [(kind, {k: dict(v) if k == "of" else v for k, v in knobs}) for kind, knobs in terms]

    def block(z, y, target, weights, tau_student, tau_teacher, softcap, scale):  # type: ignore[no-untyped-def]
        raw = _distribution(z)
        student = raw if tau_student is None else _distribution(z / tau_student.unsqueeze(-1))
        theirs = teacher = None
        if y is not None:
            teacher = _distribution(y)
            theirs = (teacher.entropy, (raw.top == teacher.top).to(z.dtype), teacher.normalizer)
            if tau_teacher is not None:
                teacher = _distribution(y / tau_teacher.unsqueeze(-1))
        values, dz = [], torch.zeros_like(z)
        hit = torch.arange(z.shape[1]) == target.unsqueeze(-1)
        for k, (kind, knobs) in enumerate(named):
            weight = weights[k].unsqueeze(-1)
            if kind == "cross_entropy":
                values.append(raw.normalizer - torch.where(hit, z, 0.0).sum(-1))
                dz = dz + weight * (raw.prob - hit.to(z.dtype))
                continue
            value, gradient = CLOSED[kind](teacher, student, **knobs)
            values.append(value)
            dz = dz + (weight if tau_student is None else weight / tau_student.unsqueeze(-1)) * gradient
        if softcap is not None:
            dz = dz * (1 - (z / softcap).square())
        return torch.stack(values), raw.entropy, theirs, dz * scale

    # Torch counts recompilations for each code object: one of its own.
    block.__code__ = block.__code__.replace(co_name="block")
    return torch.compile(block, fullgraph=True, dynamic=False)


def _distribution(z: Tensor) -> Distribution:
    top = z.amax(-1, keepdim=True)
    normalizer = top + (z - top).exp().sum(-1, keepdim=True).log()
    prob = (z - normalizer).exp()
    normalizer = normalizer.squeeze(-1)
    return Distribution(z, prob, normalizer, z.argmax(-1), normalizer - vecdot(prob, z))
