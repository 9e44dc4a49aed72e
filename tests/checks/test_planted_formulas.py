"""`llmkd verify` finds faults that are planted in the formulas and estimators, and names the law and the entry."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch.linalg import vecdot

from llmkd.objectives import closed, divergences, policy
from llmkd.objectives.divergences import VALUES
from llmkd.terms import TERMS, Knob

# -- formulas ---------------------------------------------------------------------------------------------------------


def formula(name: str, wrong: Callable[..., Any], gradient: Callable[..., Any] | None = None):
    """The formula of a term replaced, and its closed form where that is given."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(VALUES, name, wrong)
        if gradient is not None:
            patch.setitem(closed.CLOSED, name, gradient)

    return plant


def without_entropy(logp, logq):
    return -divergences.expect(logp.exp(), logq)


def without_entropy_closed(teacher, student):
    return -vecdot(teacher.prob, student.log), student.prob - teacher.prob


def half(name: str):
    original, original_closed = VALUES[name], closed.CLOSED[name]

    def halved(*args, **knobs):
        return tuple(x / 2 for x in original_closed(*args, **knobs))

    return formula(name, lambda *args, **knobs: original(*args, **knobs) / 2, halved)


def over_tokens(logp, logq):
    return 0.5 * (logp.exp() - logq.exp()).abs().sum(0)


def over_tokens_closed(teacher, student):
    return 0.5 * (teacher.prob - student.prob).abs().sum(0), closed.total_variation(teacher, student)[1]


def reverse_with_the_gradient_of_forward(teacher, student):
    return closed.reverse_kl(teacher, student)[0], student.prob - teacher.prob


def detached_whatever_is_asked(logp, logq, *, alpha=0.1, detach_mixture=False):
    return divergences.skew_reverse_kl(logp, logq, alpha=alpha, detach_mixture=True)


def jsd_that_jumps(logp, logq, *, beta=0.5):
    """The two KLs under other names at the ends, as some frameworks have it."""
    if beta < 1e-3:
        return divergences.forward_kl(logp, logq)
    return divergences.reverse_kl(logp, logq) if beta > 1 - 1e-3 else divergences.jsd(logp, logq, beta=beta)


def alpha_beta_without_the_second_factor(logp, logq, *, alpha, beta):
    found = divergences.alpha_beta(logp, logq, alpha=alpha, beta=beta)
    return found * alpha if beta == 0 else found


def kl_with_nan(logp, logq):
    return (logp.exp() * (logp - logq)).sum(-1)


def ignoring_its_knob(logp, logq, *, alpha=0.1):
    return divergences.skew_forward_kl(logp, logq)


def declared(name: str, **changes: Any):
    return lambda patch: patch.setitem(TERMS, name, replace(TERMS[name], **changes))


FORMULAS = {
    "dropped entropy": (
        formula("forward_kl", without_entropy, without_entropy_closed), "forward_kl",
        ("equals its formula", "zero at equality", "closed gradient equals finite differences"), ("reverse_kl", "jsd"),
    ),
    "half of jsd": (half("jsd"), "jsd", ("equals its formula", "gradient equals finite differences",
                         "closed gradient equals finite differences"), ("hellinger",)),
    "wrong axis": (formula("total_variation", over_tokens, over_tokens_closed), "total_variation",
                        ("equals its formula", "closed gradient equals finite differences"), ("hellinger",)),
    "wrong closed gradient": (
        formula("reverse_kl", divergences.reverse_kl, reverse_with_the_gradient_of_forward), "reverse_kl",
        ("closed gradient equals finite differences",), ("forward_kl", "adaptive_kl"),
    ),
    "gradient that stops at the mixture": (
        formula("skew_reverse_kl", detached_whatever_is_asked), "skew_reverse_kl",
        ("gradient equals finite differences",), ("forward_kl",),
    ),
    "jump at the ends of jsd": (
        formula("jsd", jsd_that_jumps), "jsd", ("over beta tends to forward KL as beta -> 0",
        "over 1 - beta tends to reverse KL as beta -> 1"), ("forward_kl",),
    ),
    "missing factor of a limit": (
        formula("alpha_beta", alpha_beta_without_the_second_factor), "alpha_beta",
        ("equals its formula", "is continuous at its singular points"), ("forward_kl",),
    ),
    "0 times infinity": (
        formula("forward_kl", kl_with_nan), "forward_kl", ("a token impossible for both changes nothing",
        "is cross-entropy where the teacher is sure of the target"), ("reverse_kl",),
    ),
    "a knob that is ignored": (
        formula("skew_forward_kl", ignoring_its_knob), "skew_forward_kl",
        ("equals its formula", "tends to forward KL as alpha -> 0"), ("skew_reverse_kl",),
    ),
    "another default than declared": (
        declared("jsd", knobs={"beta": Knob(0.3, 0, 1, low_open=True, high_open=True)}), "jsd",
        ("left-out knobs are the declared defaults",), ("forward_kl",),
    ),
    "a range that is too small": (
        declared("forward_kl", range="[0, 1]"), "forward_kl", ("stays below its upper bound",), ("jsd",)
    ),
    "a loss declared as a divergence": (
        declared("cross_entropy", divergence=True), "cross_entropy", ("zero at equality",), ("nkd",)
    ),
    "a divergence declared as a loss": (
        declared("hellinger", divergence=False), "hellinger", ("is not zero at equality, as declared",),
        ("jsd",),
    ),
    "an entry without a formula": (
        lambda patch: patch.setitem(TERMS, "triangular", TERMS["hellinger"]), "triangular",
        ("has an independent formula",), ("hellinger",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_a_fault_in_a_formula_is_found_and_named(name, find):
    find("formulas", *FORMULAS[name])


def test_the_reported_case_is_the_smallest(failing, monkeypatch):
    """Wrong from four tokens on: of the shapes (1, 2), (3, 3), (2, 5), (4, 11), (3, 300) the fourth is reported."""

    def wrong(logp, logq):
        return divergences.forward_kl(logp, logq) + (logp.shape[0] >= 4)

    monkeypatch.setitem(VALUES, "forward_kl", wrong)
    found = {r.law: r for r in failing("formulas", "forward_kl")}["equals its formula"]
    case = found.failure["case"]
    assert (case["tokens"], case["vocabulary"], case["spread"]) == (4, 11, 1.0)
    assert found.failure["found"] == pytest.approx(found.failure["expected"] + 1)


def test_an_exception_in_the_code_is_a_failure_like_any_other(failing, monkeypatch):
    def broken(logp, logq):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(VALUES, "forward_kl", broken)
    found = failing("formulas", "forward_kl")
    assert "equals its formula" in {r.law for r in found}
    assert all(r.failure["found"] == "RuntimeError: no such kernel" for r in found if r.law == "equals its formula")


# -- estimators -------------------------------------------------------------------------------------------------------


def estimator(name: str, wrong: Callable[..., Any]):
    return lambda patch: patch.setattr(policy, name, wrong)


ESTIMATORS = {
    "k3 in place of k2": (estimator("k2", policy.k3), "k2",
                               ("equals its formula", "as a loss has the gradient of reverse KL"), ("k1", "k3")),
    "k2 in place of k3": (estimator("k3", policy.k2), "k3",
                               ("expected value is reverse KL", "as a loss has the gradient of forward KL"), ("k2",)),
    "k1 with its sign turned": (estimator("k1", lambda logp, logq: logp - logq), "k1",
                                     ("equals its formula", "expected value is reverse KL"), ("k3",)),
    "k2 without its half": (estimator("k2", lambda logp, logq: (logq - logp).square()), "k2",
                                 ("as a loss has the gradient of reverse KL",), ("k3",)),
}  # fmt: skip


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_fault_in_an_estimator_is_found_and_named(name, find):
    find("estimators", *ESTIMATORS[name])
