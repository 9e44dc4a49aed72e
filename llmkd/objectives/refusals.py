"""What the engine refuses: shapes, names, knobs and readings before it starts; numbers by flags that are read once."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from llmkd.objectives.divergences import VALUES
from llmkd.objectives.faults import Faults
from llmkd.objectives.request import Request, Values, WeightedTerm
from llmkd.terms import TERMS, class_of, settled
from llmkd.types import Head, Logits, Signals, Sparse, States


def check(hidden: Tensor, head: Head, request: Request) -> None:
    """Raise ValueError for what can be told without reading a number."""
    tokens = hidden.shape[0]
    if hidden.dim() != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"student hidden states {tuple(hidden.shape)} do not fit the head {tuple(head.weight.shape)}: "
            "expected [N, Hs] and [V, Hs]"
        )
    if request.targets.shape != (tokens,):
        raise ValueError(f"{tokens} student tokens, but targets of shape {tuple(request.targets.shape)}")
    if request.vocabulary > head.weight.shape[0]:
        raise ValueError(
            f"a shared vocabulary of {request.vocabulary} rows, but the smallest head has {head.weight.shape[0]}"
        )
    for signals in request.teachers:
        _check_signals(signals, tokens, request.vocabulary)
    for side in ("student", "teacher"):
        _check_tau(request.tau_student if side == "student" else request.tau_teacher, side, tokens)
    for term in request.terms:
        _check_term(term, tokens, request)


def _check_signals(signals: Signals, tokens: int, vocabulary: int) -> None:
    if isinstance(signals, Sparse):
        if signals.ids.dim() != 2 or signals.ids.shape != signals.logp.shape:
            raise ValueError(
                f"a sparse teacher with ids {tuple(signals.ids.shape)} and log-probabilities "
                f"{tuple(signals.logp.shape)}: expected [N, k] for both"
            )
        if signals.tail is not None and signals.tail.shape != (tokens,):
            raise ValueError(f"{tokens} student tokens, but a sparse teacher's tail has {tuple(signals.tail.shape)}")
        answered = signals.ids.shape[0]
    elif isinstance(signals, Logits):
        if signals.logits.dim() != 2 or signals.logits.shape[1] < vocabulary:
            raise ValueError(
                f"teacher logits {tuple(signals.logits.shape)}: expected [N, V] with at least {vocabulary} columns"
            )
        answered = signals.logits.shape[0]
    else:
        answered = _check_states(signals, vocabulary)
    if answered != tokens:
        raise ValueError(f"{tokens} student tokens, but the teacher answered for {answered}")


def _check_states(signals: States, vocabulary: int) -> int:
    if signals.hidden.dim() != 2 or signals.hidden.shape[1] != signals.head.weight.shape[1]:
        raise ValueError(
            f"teacher hidden states {tuple(signals.hidden.shape)} do not fit the head "
            f"{tuple(signals.head.weight.shape)}: expected [N, Ht] and [V, Ht]"
        )
    rows = signals.head.weight.shape[0]
    if vocabulary > rows:
        raise ValueError(f"a shared vocabulary of {vocabulary} rows, but the smallest head has {rows}")
    return signals.hidden.shape[0]


def _check_tau(tau: float | Tensor, side: str, tokens: int) -> None:
    if isinstance(tau, Tensor):
        if tau.shape != (tokens,):
            raise ValueError(f"{tokens} student tokens, but {side} temperatures of shape {tuple(tau.shape)}")
    elif not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"the {side} temperature {tau} is not a number above 0")


def _check_term(term: WeightedTerm, tokens: int, request: Request) -> None:
    kind, declared = term.kind, TERMS.get(term.kind)  # type: ignore[call-overload]
    if kind not in VALUES:
        raise ValueError(f"there is no term {kind}: one of {', '.join(VALUES)}")
    if declared is not None:
        settled(kind, term.knobs)
    needs = declared is None or declared.needs_teacher
    if declared is not None and needs != (term.teacher is not None):
        raise ValueError(f"{kind} {'needs a teacher' if term.teacher is None else 'takes no teacher'}")
    if term.teacher is not None and not 0 <= term.teacher < len(request.teachers):
        raise ValueError(f"{kind} looks at teacher {term.teacher}, but there are {len(request.teachers)} teachers")
    if term.weight.shape != (tokens,):
        raise ValueError(f"{tokens} student tokens, but {kind} has weights of shape {tuple(term.weight.shape)}")
    if term.teacher is not None and isinstance(signals := request.teachers[term.teacher], Sparse):
        _check_reading(term, signals, request)


def _check_reading(term: WeightedTerm, signals: Sparse, request: Request) -> None:
    if term.kind in TERMS:
        found, why = class_of(term.kind, signals.reading, term.knobs)
        if found == "refused":
            raise ValueError(f"{term.kind} is refused on a teacher's {signals.reading}: {why}")
    if isinstance(request.tau_teacher, Tensor) or request.tau_teacher != 1:
        raise ValueError(
            f"{term.kind} at a teacher's temperature other than 1 is refused on its {signals.reading}: what was stored "
            "is at temperature 1, and the rest that another one needs is not there"
        )
    if request.standardize:
        raise ValueError(f"logit_standardize is refused on a teacher's {signals.reading}: it needs all logits")


def flag_targets(request: Request, faults: Faults) -> Request:
    """Flag target ids outside the vocabulary; the request that is returned has them inside, so that it can be run."""
    targets, size = request.targets, request.vocabulary
    faults.add(
        (targets < 0) | (targets >= size),
        lambda row: (
            f"target id {int(targets[row])} is outside the shared vocabulary of {size} rows: the tokenizer "
            "does not belong to this model"
        ),
    )
    return replace(request, targets=targets.clamp(0, size - 1))


def flag_temperatures(request: Request, faults: Faults) -> None:
    for side, tau in (("student", request.tau_student), ("teacher", request.tau_teacher)):
        if isinstance(tau, Tensor):
            faults.add(~(tau > 0) | ~tau.isfinite(), f"its temperature for the {side} is not a number above 0")


def flag_teacher(signals: Sparse, vocabulary: int, faults: Faults) -> None:
    """Flag what a sparse teacher cannot mean."""
    ids, logp = signals.ids, signals.logp
    known = logp != -math.inf
    faults.add(~known.any(-1) | logp.isnan().any(-1), "the sparse teacher has no token, or one that is not a number")
    faults.add(
        (known & ((ids < 0) | (ids >= vocabulary))).any(-1),
        f"the sparse teacher names an id outside the shared vocabulary of {vocabulary} rows",
    )
    places = torch.arange(ids.shape[1], device=ids.device)
    ordered = torch.where(known, ids, -1 - places).sort(-1).values
    faults.add((ordered[:, 1:] == ordered[:, :-1]).any(-1), "the sparse teacher names a token twice")
    mass = logp.double().exp().sum(-1)
    total = mass if signals.tail is None else mass + signals.tail.double().exp()
    slack = 1e-4 if logp.dtype in (torch.float32, torch.float64) else 1e-2

    def too_much(row: int) -> str:
        return f"the sparse teacher's probabilities sum to {float(total[row]):.6g}, more than 1"

    faults.add(total > 1 + slack, too_much)
    if signals.reading == "counts":
        faults.add(mass < 1 - slack, lambda row: f"the shares of the draws sum to {float(mass[row]):.4g}, not to 1")


def flag_values(request: Request, values: Values, faults: Faults) -> None:
    """Flag teachers that are no distribution, and values that are infinite while the student is well."""
    for i in range(len(request.teachers)):
        faults.add(
            ~values.normalizer[i].isfinite(),
            f"the logits of teacher {i} hold NaN, +inf or no finite number at all: no distribution (a single -inf, a "
            "probability of 0, is fine)",
        )
    well = values.entropy.isfinite()
    for k, term in enumerate(request.terms):
        faults.add(
            well & ~values.terms[k].isfinite() & (term.weight != 0),
            f"{term.kind} is infinite: the teacher gives probability 0 to a token that the student may choose, or the "
            "student to one that the teacher does; a jsd, skew_forward_kl or skew_reverse_kl is finite there",
        )
