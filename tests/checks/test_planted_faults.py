"""`llmkd verify` finds faults that are planted in engine, sparse teachers and objective, and names law and entry."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from llmkd.checks import sparse_laws
from llmkd.objectives import closed, distribution, engine, objective, refusals, rows, sparse
from llmkd.objectives.objective import Objective
from llmkd.terms import TERMS
from llmkd.types import Head, Logits, States

# -- engine -----------------------------------------------------------------------------------------------------------


def asked_otherwise(change: Callable[..., tuple]):
    """The engine gets another request than the one that was made; `change(hidden, head, request)`."""
    original = engine.fused_loss
    return lambda patch: patch.setattr(engine, "fused_loss", lambda *asked: original(*change(*asked)))


def with_tau_squared(hidden, head, request):
    taus = [t if isinstance(t, torch.Tensor) else torch.tensor(t) for t in (request.tau_student, request.tau_teacher)]
    terms = [replace(t, weight=t.weight * taus[0] * taus[1]) if t.teacher is not None else t for t in request.terms]
    return hidden, head, replace(request, terms=terms)


def with_cross_entropy_tempered(hidden, head, request):
    tau = request.tau_student
    over = hidden / (tau.unsqueeze(-1) if isinstance(tau, torch.Tensor) else tau)
    return over, head, replace(request, tau_student=1.0)


def with_zero_logits_in_the_padding(hidden, head, request):
    """Heads made equally long by rows of zeros, which then take part."""
    size = max(len(head.weight), *(len(t.head.weight) for t in request.teachers))

    def padded(head: Head) -> Head:
        more = size - len(head.weight)
        bias = None if head.bias is None else torch.nn.functional.pad(head.bias, (0, more))
        return replace(head, weight=torch.nn.functional.pad(head.weight, (0, 0, 0, more)), bias=bias)

    teachers = [States(t.hidden, padded(t.head)) for t in request.teachers]
    return hidden, padded(head), replace(request, teachers=teachers, vocabulary=size)


def with_weights_of_zero_as_one(hidden, head, request):
    terms = [replace(t, weight=torch.where(t.weight == 0, 1.0, t.weight)) for t in request.terms]
    return hidden, head, replace(request, terms=terms)


def without_softcap(hidden, head, request):
    return hidden, replace(head, softcap=None), request


def without_the_first_chunk(hidden, head, request):
    skip = request.chunk or 0
    terms = [replace(t, weight=t.weight * (torch.arange(len(t.weight)) >= skip)) for t in request.terms]
    return hidden, head, replace(request, terms=terms)


def without_weighting(hidden, head, request):
    return hidden, head, replace(request, terms=[replace(t, weighting=None) for t in request.terms])


def all_at_the_first_teacher(hidden, head, request):
    terms = [replace(t, teacher=None if t.teacher is None else 0) for t in request.terms]
    return hidden, head, replace(request, terms=terms)


def without_the_derivative_of_standardising(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(distribution.View, "chain", lambda self, dx, z: dx)


def softmax_over_tokens(patch: pytest.MonkeyPatch) -> None:
    def wrong(z, *careful):
        return distribution.distribution(z.t().contiguous(), *careful).__class__(
            z.log_softmax(0), z.softmax(0), 0 * z.sum(-1), z.argmax(-1), z.logsumexp(-1)
        )

    patch.setattr(rows, "distribution", wrong)


def without_entropy(teacher, student):
    return -(teacher.prob * student.log).sum(-1), student.prob - teacher.prob


def reverse_with_the_gradient_of_forward(teacher, student):
    return closed.reverse_kl(teacher, student)[0], student.prob - teacher.prob


def closed_form(name: str, wrong: Callable[..., Any]):
    return lambda patch: patch.setitem(closed.CLOSED, name, wrong)


def minus_infinity_taken_for_zero(hidden, head, request):
    teachers = [Logits(t.logits.nan_to_num(neginf=0.0)) if isinstance(t, Logits) else t for t in request.teachers]
    return hidden, head, replace(request, teachers=teachers)


ENGINE = {
    "dropped entropy": (closed_form("forward_kl", without_entropy), "forward_kl",
                             ("fused equals dense",), ("reverse_kl",)),
    "wrong closed gradient": (closed_form("reverse_kl", reverse_with_the_gradient_of_forward),
                                   "reverse_kl", ("fused equals dense",), ("forward_kl",)),
    "tau squared": (asked_otherwise(with_tau_squared), "jsd", ("temperature adds no factor",),
                         ("cross_entropy",)),
    "tempered cross-entropy": (asked_otherwise(with_cross_entropy_tempered), "cross_entropy",
                                    ("temperature adds no factor",)),
    "zero logits in the padding": (asked_otherwise(with_zero_logits_in_the_padding), "forward_kl",
                                        ("rows beyond the shared vocabulary do not exist",)),
    "zero for minus infinity": (asked_otherwise(minus_infinity_taken_for_zero), "forward_kl",
                                     ("tokens impossible for the teacher",), ("cross_entropy",)),
    "weights of 0 taken for 1": (asked_otherwise(with_weights_of_zero_as_one), "hellinger",
                                      ("a weight of 0 adds nothing", "all tokens masked give 0")),
    "no softcap": (asked_otherwise(without_softcap), "cross_entropy",
                        ("bias, softcap and scale of a head are part of it",)),
    "a lost chunk": (asked_otherwise(without_the_first_chunk), "taid", ("fused equals dense",)),
    "no measured weight": (asked_otherwise(without_weighting), "nkd",
                                ("a measured weight multiplies and carries no gradient",)),
    "one teacher for all": (asked_otherwise(all_at_the_first_teacher), "all terms",
                                 ("look each at its own teacher",)),
    "no derivative of standardising": (without_the_derivative_of_standardising, "mixture",
                                            ("standardised logits",), ("cross_entropy",)),
    "softmax over tokens": (softmax_over_tokens, "forward_kl", ("fused equals dense",)),
}  # fmt: skip


# -- sparse teachers --------------------------------------------------------------------------------------------------


def known_otherwise(change: Callable[[sparse.SparseRows], sparse.SparseRows]):
    original = sparse.SparseRows.of
    return lambda patch: patch.setattr(
        sparse.SparseRows, "of", classmethod(lambda cls, *asked: change(original(*asked)))
    )  # fmt: skip


def renormalised(known: sparse.SparseRows) -> sparse.SparseRows:
    return known if known.tail is not None else replace(known, logp=known.logp.log_softmax(-1))


def empty_places_likely(known: sparse.SparseRows) -> sparse.SparseRows:
    return replace(known, logp=known.logp.nan_to_num(neginf=0.0))


def without_tail(known: sparse.SparseRows) -> sparse.SparseRows:
    return replace(known, tail=None)


def biased_draws(patch: pytest.MonkeyPatch) -> None:
    fair = sparse_laws.draws
    patch.setattr(sparse_laws, "draws", lambda logp, count, seed: fair((0.9 * logp).log_softmax(-1), count, seed))


def refusing_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(refusals, "class_of", lambda *_: ("exact", ""))


def declared_a_bound(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(TERMS, "forward_kl", replace(TERMS["forward_kl"], sparse={"topk": ("bounded", "")}))


SPARSE = {
    "renormalised top-k": (known_otherwise(renormalised), "forward_kl",
                                ("topk: equals its formula on what is known",
                                 "topk: pulls the student to p / (mass kept), as declared")),
    "empty places that count": (known_otherwise(empty_places_likely), "total_variation",
                                     ("topk: places without a token add nothing",)),
    "a lost rest": (known_otherwise(without_tail), "reverse_kl",
                         ("ghost: equals its formula on what is known",)),
    "biased draws": (biased_draws, "forward_kl",
                          ("counts: expected gradient of random draws equals dense",)),
    "nothing refused": (refusing_nothing, "taid",
                             ("topk: is refused, as declared", "ghost: is refused, as declared")),
    "declared a bound": (declared_a_bound, "forward_kl",
                              ("topk: never above the dense value, as declared",), ("hellinger",)),
}  # fmt: skip


# -- batches ----------------------------------------------------------------------------------------------------------


def masks(change: Callable[..., list]):
    original = Objective._masks
    return lambda patch: patch.setattr(Objective, "_masks", lambda self, batch: change(original(self, batch)))


def local_counts(patch: pytest.MonkeyPatch) -> None:
    original = Objective.__call__

    def divided_by_its_own(self, hidden, head, signals, batch, counts, step=0):
        return original(self, hidden, head, signals, batch, self.counts(batch), step)

    patch.setattr(Objective, "__call__", divided_by_its_own)


def counting_all_places(patch: pytest.MonkeyPatch) -> None:
    original = Objective.counts

    def counts(self, batch):
        return torch.cat([torch.tensor([batch["counted"].numel()]), original(self, batch)[1:]])

    patch.setattr(Objective, "counts", counts)


def positions_that_go_on(patch: pytest.MonkeyPatch) -> None:
    original = objective._position_among_counted
    patch.setattr(objective, "_position_among_counted",
                  lambda batch: original({k: v for k, v in batch.items() if k != "position_ids"}))  # fmt: skip


def logged_with_its_weight(patch: pytest.MonkeyPatch) -> None:
    original = Objective._tally

    def tally(self, values, request, *rest):
        weights = torch.stack([t.weight for t in request.terms])
        return original(self, replace(values, terms=values.terms * weights), request, *rest)

    patch.setattr(Objective, "_tally", tally)


def nan_without_tokens(patch: pytest.MonkeyPatch) -> None:
    original = Objective.__call__

    def mean_of_nothing(self, hidden, head, signals, batch, counts, step=0):
        loss, tally = original(self, hidden, head, signals, batch, counts, step)
        return (loss if counts[0] else loss * math.nan), tally

    patch.setattr(Objective, "__call__", mean_of_nothing)


BATCHES = {
    "an ignored mask": (masks(lambda found: [torch.ones_like(m) for m in found]), "forward_kl",
                             ("a mask keeps what it names and nothing else",)),
    "an inverted mask": (masks(lambda found: [~m for m in found]), "cross_entropy",
                              ("a mask keeps what it names and nothing else",)),
    "counts of each micro-batch": (local_counts, "reverse_kl", ("batch split changes nothing",)),
    "padding that is counted": (counting_all_places, "nkd", ("padding changes nothing",)),
    "positions that go on": (positions_that_go_on, "squared_logit", ("packing changes nothing",)),
    "a weight in the log": (logged_with_its_weight, "alpha_beta",
                                 ("what is logged is the value, unweighted",)),
    "the mean of nothing": (nan_without_tokens, "taid", ("a batch without counted tokens has loss 0",)),
}  # fmt: skip


FAULTS = {"engine": ENGINE, "sparse": SPARSE, "batches": BATCHES}
ALL = [(group, name) for group, faults in FAULTS.items() for name in faults]


@pytest.mark.parametrize("group, name", ALL)
def test_a_fault_is_found_and_named(group, name, find):
    find(group, *FAULTS[group][name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "group, name",
    [
        ("engine", "tau squared"),
        ("engine", "wrong closed gradient"),
        ("sparse", "renormalised top-k"),
        ("batches", "counts of each micro-batch"),
    ],
)
def test_low_precision_hides_no_fault(group, name, dtype, failing, monkeypatch):
    plant, entry, laws, *_ = FAULTS[group][name]
    plant(monkeypatch)
    assert {r.law for r in failing(group, entry, dtype=dtype)} >= set(laws)


def test_the_counts_of_a_micro_batch_break_no_law_of_a_whole_batch(failing, monkeypatch):
    local_counts(monkeypatch)
    assert [r.law for r in failing("batches", "reverse_kl")] == ["batch split changes nothing"]


def test_tau_squared_is_only_found_where_there_is_a_temperature(failing, monkeypatch):
    asked_otherwise(with_tau_squared)(monkeypatch)
    laws = [r.law for r in failing("engine", "hellinger")]
    assert "temperature adds no factor" in laws and "fused equals dense" not in laws
