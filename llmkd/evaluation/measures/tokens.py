"""Student against teacher, token by token: divergences by the engine of the training, ranks by chunks of rows.

No tensor of all tokens and the whole vocabulary exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from llmkd.objectives.distribution import argmax
from llmkd.objectives.engine import Request, WeightedTerm, fused_loss
from llmkd.terms import Class, class_of, settled
from llmkd.types import Head, Logits, Signals, Sparse, States

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "total_variation")
CHUNK_BYTES = 2**27
"""Float32 logits that exist at once, student and teacher together."""

PerToken = dict[str, Tensor]
"""Measure -> ``[N]``: its value at each counted token."""


@torch.no_grad()
def compared(student: States, teacher: Signals, targets: Tensor, vocabulary: int, k: int = 5) -> PerToken:
    """What student and teacher say of the same N tokens, targets ``[N]``; values where ``teacher.kept`` is False mean
    nothing.

    ``forward_kl``, ``reverse_kl``, ``jsd`` (beta 0.5), ``total_variation`` and ``cross_entropy``: the engine's, in
    nats; infinite where they are.  With top(p) for the likeliest token and top_k(p) for the k likeliest, each 0 or 1
    but for the overlap:

        correct          top(q) = target
        agreement        top(q) = top(p)
        top_k_overlap    |top_k(q) & top_k(p)| / k
        top_1_in_top_k   top(q) in top_k(p)
        teacher_right    top(p) = target
        teacher_top      max_v p_v, the chance that a token drawn from the teacher is its likeliest
        teacher_collision  sum_v p_v^2, the chance that two tokens drawn from the teacher are the same
        teacher_cross_entropy  -log p_target

    What the teacher's signal does not tell is missing (``left_out`` says why).
    """
    found = _divergences(student, teacher, targets, vocabulary)
    parts = list(_ranks(student, teacher, targets, vocabulary, min(k, vocabulary)))
    return found | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def left_out(teacher: Signals, k: int) -> dict[str, str]:
    """Measures that a teacher's signal does not allow, and why."""
    if not isinstance(teacher, Sparse):
        return {}
    reading = teacher.reading
    out = {term: why for term in DIVERGENCES for kind, why in [class_of(term, reading)] if kind == "refused"}
    if reading == "counts":
        why = "random draws do not tell which tokens are the likeliest"
        out |= dict.fromkeys(("top_k_overlap", "top_1_in_top_k", "teacher_top", "teacher_collision"), why)
    elif teacher.ids.shape[1] < k:
        why = f"the teacher names {teacher.ids.shape[1]} tokens, fewer than {k}"
        out |= dict.fromkeys(("top_k_overlap", "top_1_in_top_k"), why)
    return out | {"teacher_cross_entropy": "the teacher need not name the target"}


def classes(teacher: Signals) -> dict[str, tuple[Class, str]]:
    """What is not exact on a teacher's signal, and why: those of ``llmkd.terms``, and what follows from them."""
    if not isinstance(teacher, Sparse):
        return {}
    found = {term: class_of(term, teacher.reading) for term in DIVERGENCES}
    out = {term: (kind, why) for term, (kind, why) in found.items() if kind not in ("exact", "refused")}
    if "total_variation" in out:
        out["acceptance"] = ("bounded", "1 - total_variation, which is bounded from below: never below the dense value")
    if teacher.reading == "counts":
        why = "the most frequent of the draws stands for the likeliest token"
        out |= dict.fromkeys(("agreement", "teacher_right"), ("estimated", why))
    else:
        out["teacher_collision"] = ("bounded", "without the tail: never above the dense value")
    return out


def _divergences(student: States, teacher: Signals, targets: Tensor, vocabulary: int) -> PerToken:
    refused = left_out(teacher, 1)
    kinds = [term for term in DIVERGENCES if term not in refused]
    # Weights of 0: the values are measured all the same, and an infinite one is no fault but the answer.
    nothing = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
    terms = [WeightedTerm(kind, nothing, 0, settled(kind, {})) for kind in kinds]
    terms.append(WeightedTerm("cross_entropy", nothing, None, settled("cross_entropy", {})))
    request = Request(targets, [teacher], terms, vocabulary, keep=teacher.kept, all_kept=teacher.kept is None)
    _, values = fused_loss(student.hidden, student.head, request)
    return dict(zip([*kinds, "cross_entropy"], values.terms, strict=True))


def _ranks(student: States, teacher: Signals, targets: Tensor, vocabulary: int, k: int) -> Iterator[PerToken]:
    student, teacher = _ready(student, vocabulary), _ready(teacher, vocabulary)
    size = max(1, CHUNK_BYTES // (8 * vocabulary))
    for start in range(0, max(1, len(targets)), size):
        at = slice(start, start + size)
        z = logits_of(student, at)
        top = argmax(z)
        taught = _sparse_teacher(teacher, at, k) if isinstance(teacher, Sparse) else _dense_teacher(
            logits_of(teacher, at), targets[at], k
        )  # fmt: skip
        best = taught.pop("ids")
        found = {
            "correct": top == targets[at],
            "agreement": top == best[:, 0],
            "teacher_right": best[:, 0] == targets[at],
        }
        if "top_k_overlap" not in left_out(teacher, k):
            ours = z.topk(k).indices
            found["top_k_overlap"] = (ours.unsqueeze(2) == best.unsqueeze(1)).any(2).float().mean(1)
            found["top_1_in_top_k"] = (top.unsqueeze(1) == best).any(1)
        yield {name: value.to(torch.float32) for name, value in (found | taught).items()}


def _dense_teacher(y: Tensor, targets: Tensor, k: int) -> PerToken:
    log = y.log_softmax(-1)
    first = argmax(y).unsqueeze(1)
    # The likeliest token leads its k, also where several are equally likely.
    rest = y.scatter(-1, first, -torch.inf).topk(k - 1).indices
    return {
        "ids": torch.cat([first, rest], 1),
        "teacher_top": log.gather(-1, first)[:, 0].exp(),
        "teacher_collision": (2 * log).exp().sum(-1),
        "teacher_cross_entropy": -log.gather(-1, targets.clamp(0, y.shape[1] - 1).unsqueeze(1))[:, 0],
    }


def _sparse_teacher(teacher: Sparse, at: slice, k: int) -> PerToken:
    logp, order = teacher.logp[at].float().sort(dim=-1, descending=True, stable=True)
    ids = torch.where(logp > -torch.inf, teacher.ids[at].long().gather(-1, order), -1)[:, :k]
    if teacher.reading == "counts":
        return {"ids": ids}
    return {"ids": ids, "teacher_top": logp[:, 0].exp(), "teacher_collision": (2 * logp).exp().sum(-1)}


def _ready(signals: Signals, vocabulary: int) -> Signals:
    """Only the shared rows of the head, and on a CPU in float32 at once, not for every chunk."""
    if not isinstance(signals, States):
        return signals if isinstance(signals, Sparse) else replace(signals, logits=signals.logits[:, :vocabulary])
    head = signals.head.rows(vocabulary)
    wide = torch.promote_types(signals.hidden.dtype, torch.float32)
    if signals.hidden.is_cuda or signals.hidden.dtype == wide:
        return replace(signals, head=head)
    return States(
        signals.hidden.to(wide), Head(head.weight.to(wide), head.bias, head.softcap, head.scale), signals.kept
    )


def logits_of(signals: States | Logits, at: slice) -> Tensor:
    """Logits ``[n, V]`` of some tokens, at least float32."""
    if isinstance(signals, Logits):
        return signals.logits[at].to(torch.promote_types(signals.logits.dtype, torch.float32))
    return signals.head.logits(signals.hidden[at])
