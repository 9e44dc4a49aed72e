"""A chunk of logits, visited in row blocks small enough to stay in the cache: values, statistics and the gradient.

This is the plain torch path, which every term and every signal can take.  ``kernels`` does the same on a GPU.

On a CPU a block is computed with forms that know nothing of an impossible token (log-probability -inf); where one
shows, as a value that is not finite, the block is computed again with care.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmkd.objectives import sparse
from llmkd.objectives.closed import CLOSED
from llmkd.objectives.distribution import Distribution, View, distribution, view_of
from llmkd.objectives.divergences import VALUES
from llmkd.objectives.request import Request, Values, WeightedTerm
from llmkd.objectives.sparse import SparseRows
from llmkd.objectives.weighting import Statistics
from llmkd.types import Head

CPU_BLOCK_BYTES = 2**20
"""Float32 logits of a row block on a CPU: about the size of a second-level cache."""


@dataclass(frozen=True)
class Rows:
    """One chunk: the student's logits ``[n, V]``, which are overwritten, a teacher's logits ``[n, V]`` or sparse rows
    each, which are not, and the places ``at`` of these rows among the N tokens."""

    z: Tensor
    teachers: Sequence[Tensor | SparseRows]
    at: slice


@dataclass(frozen=True)
class Found:
    """What the blocks of a chunk found, a column a token: the student's entropy, the value of each term, the final
    weight of each, and of each teacher its entropy, agreement, mass and normalizer.

    One tensor, made before the first block: what outlived a block on the heap would keep its memory from the next.
    """

    table: Tensor

    @classmethod
    def empty(cls, rows: Rows, request: Request) -> Found:
        return cls(rows.z.new_empty(1 + 2 * len(request.terms) + 4 * len(rows.teachers), rows.z.shape[0]))

    def note(self, block: Block, parts: Sequence[Part], inner: slice) -> None:
        columns = [block.raw.entropy, *(p.value for p in parts), *(p.weight for p in parts)]
        for raw, _ in block.taught:
            agreement = (raw.top == block.raw.top).to(self.table.dtype)
            if isinstance(raw, SparseRows):
                columns += [raw.entropy(), agreement, raw.mass(block.raw.prob), torch.zeros_like(agreement)]
            else:
                columns += [raw.entropy, agreement, torch.ones_like(agreement), raw.normalizer]
        torch.stack(columns, out=self.table[:, inner])

    def write(self, values: Values, at: slice) -> Tensor:
        """Put it in its place; returns the weighted sum of all terms."""
        entropy, *rest = self.table
        terms = len(values.terms)
        values.entropy[at] = entropy
        for i in range(len(values.agreement)):
            start = 1 + 2 * terms + 4 * i
            measured = (values.teacher_entropy, values.agreement, values.mass, values.normalizer)
            for out, column in zip(measured, self.table[start : start + 4], strict=True):
                out[i, at] = column
        loss = entropy.new_zeros(())
        for k, (value, weight) in enumerate(zip(rest[:terms], rest[terms : 2 * terms], strict=True)):
            values.terms[k, at] = value
            # A token whose weight is 0 adds nothing, whatever its value: 0 * inf is not a number.
            loss += torch.where(weight == 0, 0.0, weight * value).sum()
        return loss


@dataclass(frozen=True)
class Block:
    """Some rows of a chunk, with all that the terms need of them.

    raw: the student at temperature 1; view: as the terms beside a teacher see it; tau: over what, None for 1;
    taught: of each teacher its raw distribution and its view, or its sparse rows twice.
    """

    raw: Distribution
    view: View
    tau: Tensor | None
    taught: list[tuple[Distribution, View] | tuple[SparseRows, SparseRows]]
    targets: Tensor
    careful: bool


@dataclass(frozen=True)
class Part:
    """What a term is on a block: value ``[n]``, gradient ``[n, V]`` to the logits as it sees them, final weight
    ``[n]``."""

    value: Tensor
    dz: Tensor | None
    weight: Tensor


def visit(rows: Rows, head: Head, request: Request, values: Values, differentiate: bool) -> Tensor:
    """Weighted sum of all terms over a chunk; ``rows.z`` is overwritten by the gradient to the product of hidden states
    and head, before cap and scale."""
    count, vocabulary = rows.z.shape
    on_cpu = rows.z.device.type == "cpu"
    if on_cpu:
        _keep_heap()
    size = max(1, CPU_BLOCK_BYTES // (rows.z.element_size() * vocabulary)) if on_cpu else count
    found = Found.empty(rows, request)
    for start in range(0, count, size):
        _visit_block(rows, slice(start, min(start + size, count)), head, request, found, differentiate, not on_cpu)
    return found.write(values, rows.at)


@functools.cache
def _keep_heap() -> None:
    """Make glibc's allocator keep the temporaries of a block instead of giving their pages back after each one.

    It learns what to keep from the largest piece that was ever freed, up to 32 MiB; without this, page faults take a
    third of the time of a block.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _visit_block(rows: Rows, inner: slice, head: Head, request: Request, found: Found, differentiate: bool,
                 careful: bool) -> None:  # fmt: skip
    z, at = rows.z[inner], slice(rows.at.start + inner.start, rows.at.start + inner.stop)
    block = _look(z, [t[inner] for t in rows.teachers], at, request, careful)
    parts = [Part(*_term(term, block), _weight(term, block, at)) for term in request.terms]
    if not careful and not _finite(block, parts):
        _visit_block(rows, inner, head, request, found, differentiate, careful=True)
        return
    found.note(block, parts, inner)
    if differentiate:
        _differentiate(request.terms, parts, block, z, head)


def _look(z: Tensor, teachers: list[Any], at: slice, request: Request, careful: bool) -> Block:
    raw, tau = distribution(z, careful), request.tau_of("student", at, z.dtype)
    taught: list[Any] = []
    for teacher in teachers:
        if isinstance(teacher, SparseRows):
            taught.append((teacher, teacher))
        else:
            own = distribution(teacher, careful)
            warmth = request.tau_of("teacher", at, z.dtype)
            taught.append((own, view_of(teacher, own, warmth, request.standardize, careful)))
    view = view_of(z, raw, tau, request.standardize, careful)
    return Block(raw, view, tau, taught, request.targets[at], careful)


def _finite(block: Block, parts: list[Part]) -> bool:
    """Whether all that was found is finite: one number is read."""
    total = block.raw.entropy
    for part in parts:
        total = total + part.value
    for raw, _ in block.taught:
        if isinstance(raw, Distribution):
            total = total + raw.entropy
    return math.isfinite(total.sum().item())


def _term(term: WeightedTerm, block: Block) -> tuple[Tensor, Tensor | None]:
    """Value ``[n]`` and gradient ``[n, V]`` to the logits as the term sees them; None for that of cross-entropy, which
    is not written down before it is needed."""
    if term.kind == "cross_entropy":
        return -block.raw.log_of(block.targets.unsqueeze(-1)).squeeze(-1), None
    if term.teacher is None:
        return _by_autograd(VALUES[term.kind], (), block.raw, (block.targets,), term)
    _, theirs = block.taught[term.teacher]
    q = block.view.dist
    if isinstance(theirs, SparseRows):
        return sparse.value_and_gradient(term.kind, term.knobs, theirs, q)
    if term.kind == "squared_logit":
        x, y = block.view.logits, theirs.logits
        return VALUES["squared_logit"](y, x), (x - y).mul_(2 / x.shape[-1])
    p = theirs.dist
    closed = None if block.careful else CLOSED.get(term.kind)
    if closed is not None:
        return closed(p, q, **term.knobs)
    return _by_autograd(VALUES[term.kind], (p.log,), q, (block.targets,) if term.kind == "nkd" else (), term)


def _by_autograd(
    formula: Callable[..., Tensor], before: tuple[Tensor, ...], q: Distribution, after: tuple[Tensor, ...],
    term: WeightedTerm,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The formula itself, and its gradient to the logits by autograd on this block: what a new term needs to work."""
    with torch.enable_grad():
        leaf = q.log.detach().requires_grad_()
        value = formula(*before, leaf, *after, **term.knobs)
        (g,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), torch.addcmul(g, q.prob, g.sum(-1, keepdim=True), value=-1)


def _weight(term: WeightedTerm, block: Block, at: slice) -> Tensor:
    """Final weight ``[n]``."""
    weight = term.weight[at].to(block.raw.prob.dtype)
    if term.weighting is None:
        return weight
    found = Statistics(block.raw.entropy, block.raw.prob.shape[-1])
    if term.teacher is not None:
        raw, _ = block.taught[term.teacher]
        entropy = raw.entropy() if isinstance(raw, SparseRows) else raw.entropy
        found = Statistics(block.raw.entropy, block.raw.prob.shape[-1], entropy, raw.top_probability)
    return weight * term.weighting(found)


def _differentiate(terms: Sequence[WeightedTerm], parts: list[Part], block: Block, z: Tensor, head: Head) -> None:
    """Overwrite the logits by the gradient to the product: the weighted sum of the terms' own, through the temperature,
    the standardising, the cap and the scale."""
    capped = None if head.softcap is None else (z / head.softcap).square_().neg_().add_(1)
    plain: list[tuple[Tensor, Tensor]] = []  # on the logits themselves
    viewed: list[tuple[Tensor, Tensor]] = []  # on standardised logits
    hits = []
    for term, part in zip(terms, parts, strict=True):
        if part.dz is None:
            plain.append((block.raw.prob, part.weight))
            hits.append(part.weight)
        elif term.teacher is None:
            plain.append((_clean(part, block), part.weight))
        else:
            weight = part.weight if block.tau is None else part.weight / block.tau
            (plain if block.view.standard is None else viewed).append((_clean(part, block), weight))
    if viewed:
        total = torch.empty_like(z)
        _sum(viewed, total)
        plain.append((block.view.chain(total, z), z.new_ones(z.shape[0])))
    _sum(plain, z)
    for weight in hits:
        z.scatter_add_(-1, block.targets.unsqueeze(-1), -weight.unsqueeze(-1))
    if capped is not None:
        z.mul_(capped)
    if head.scale != 1.0:
        z.mul_(head.scale)


def _clean(part: Part, block: Block) -> Tensor:
    """A gradient of weight 0 adds nothing even if it is no number, which only a careful block can hold."""
    assert part.dz is not None
    return torch.where((part.weight == 0).unsqueeze(-1), 0.0, part.dz) if block.careful else part.dz


def _sum(parts: list[tuple[Tensor, Tensor]], out: Tensor) -> None:
    if not parts:
        out.zero_()
    for number, (dz, weight) in enumerate(parts):
        if number == 0:
            torch.mul(dz, weight.unsqueeze(-1), out=out)
        else:
            out.addcmul_(dz, weight.unsqueeze(-1))
