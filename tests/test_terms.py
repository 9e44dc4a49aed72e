"""The table of terms: complete, consistent with the formulas, and strict about knobs; and what a term is worth under
each reading, as a committed expectation."""

import inspect
import math
import re
import subprocess
import sys
from typing import get_args

import pytest

from llmkd.objectives.divergences import VALUES
from llmkd.terms import READINGS, TERMS, Knob, TermName, class_of, interval, knob_problems, settled

MIXTURE = {"of": {"forward_kl": 0.5, "jsd": 0.5}}
GIVEN = {"alpha_beta": {"alpha": 0.3, "beta": 0.7}, "taid": {"t": 0.4}, "mixture": MIXTURE}

# -- the table --------------------------------------------------------------------------------------------------------


def test_the_rows_are_the_names_and_each_has_a_formula():
    assert list(TERMS) == list(get_args(TermName)) == list(VALUES)


def test_only_three_terms_are_no_divergences():
    assert {kind for kind, row in TERMS.items() if not row.divergence} == {"cross_entropy", "nkd", "squared_logit"}


def test_only_cross_entropy_needs_no_teacher():
    assert {kind for kind, row in TERMS.items() if not row.needs_teacher} == {"cross_entropy"}


@pytest.mark.parametrize("kind", TERMS)
def test_a_row_says_what_it_is(kind):
    row = TERMS[kind]
    assert row.formula and row.paper and re.match(r"\[0, (inf\)|1\]|H\(beta\)\]|-log alpha\])", row.range)
    assert row.inputs and set(row.inputs) <= {"teacher", "target"}


@pytest.mark.parametrize("kind", TERMS)
def test_the_knobs_and_their_defaults_are_those_of_the_formula(kind):
    """A formula that is called without a knob takes the number that the table shows."""
    parameters = inspect.signature(VALUES[kind]).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    row, needed = TERMS[kind], inspect.Parameter.empty
    expected = {name: needed if knob.default is None else knob.default for name, knob in row.knobs.items()}
    expected |= dict.fromkeys(row.flags, False)
    if kind == "mixture":
        expected["of"] = needed
    assert found == expected


@pytest.mark.parametrize("kind", TERMS)
def test_a_default_is_inside_its_range(kind):
    assert all(knob.default is None or knob.holds(knob.default) for knob in TERMS[kind].knobs.values())


@pytest.mark.parametrize("kind", TERMS)
def test_every_sparse_class_has_its_reason(kind):
    for reading, (found, why) in TERMS[kind].sparse.items():
        assert reading in READINGS and found in ("bounded", "estimated") and why


def test_the_table_is_read_without_torch():
    """Commands that only read a recipe start fast."""
    code = "import sys, llmkd.terms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- knobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knob, inside, outside",
    [
        (Knob(0.5, 0, 1), [0, 0.5, 1], [-1e-9, 1 + 1e-9]),
        (Knob(0.5, 0, 1, low_open=True, high_open=True), [1e-9, 1 - 1e-9], [0, 1]),
        (Knob(0.1, 0, 1, high_open=True), [0, 0.999], [1]),
        (Knob(1.0, 0), [0, 1e300], [-1, math.inf]),
        (Knob(None), [-1e300, 0, 1e300], [math.inf, -math.inf]),
    ],
)
def test_a_knob_holds_what_lies_between_its_ends(knob, inside, outside):
    assert all(knob.holds(x) for x in inside)
    assert not any(knob.holds(x) for x in [*outside, math.nan])


@pytest.mark.parametrize(
    "knob, text",
    [
        (Knob(0.5, 0, 1), "[0, 1]"),
        (Knob(0.5, 0, 1, low_open=True, high_open=True), "(0, 1)"),
        (Knob(0.1, 0, 1, high_open=True), "[0, 1)"),
        (Knob(1.0, 0), "[0, inf)"),
        (Knob(None), "(-inf, inf)"),
        (Knob(None, -2, 2), "[-2, 2]"),
    ],
)
def test_an_interval_is_written_as_in_a_book(knob, text):
    assert interval(knob) == text


SETTLED = {
    "forward_kl": {},
    "reverse_kl": {},
    "jsd": {"beta": 0.5},
    "skew_forward_kl": {"alpha": 0.1},
    "skew_reverse_kl": {"alpha": 0.1, "detach_mixture": False},
    "total_variation": {},
    "hellinger": {},
    "alpha_beta": {"alpha": 0.3, "beta": 0.7},
    "adaptive_kl": {"mu": 0.5},
    "balanced_kl": {"low": 1.0, "high": 2.0},
    "taid": {"t": 0.4},
    "mixture": MIXTURE,
    "cross_entropy": {},
    "nkd": {"gamma": 1.5},
    "squared_logit": {},
}


@pytest.mark.parametrize("kind", TERMS)
def test_knobs_that_are_not_given_get_their_defaults(kind):
    assert settled(kind, GIVEN.get(kind, {})) == SETTLED[kind]


def test_knobs_that_are_given_stay():
    assert settled("skew_reverse_kl", {"alpha": 0.4, "detach_mixture": True}) == {"alpha": 0.4, "detach_mixture": True}
    assert settled("balanced_kl", {"high": 7}) == {"low": 1.0, "high": 7}


def test_a_knob_of_none_is_one_that_is_not_given():
    assert settled("jsd", {"beta": None}) == {"beta": 0.5}
    with pytest.raises(ValueError, match="taid needs a number"):
        settled("taid", {"t": None})


def test_what_is_given_is_left_as_it_was():
    given = {"alpha": 0.4}
    settled("skew_reverse_kl", given)
    assert given == {"alpha": 0.4}


@pytest.mark.parametrize(
    "kind, knobs, message",
    [
        ("hinge", {}, "there is no term hinge: one of forward_kl, reverse_kl, jsd, "),
        ("forward_kl", {"alpha": 0.1}, "forward_kl.alpha: is not a knob of forward_kl: leave it out"),
        ("jsd", {"alpha": 0.1}, "jsd.alpha: is not a knob of jsd: it takes beta"),
        ("jsd", {"of": {"jsd": 1}}, "jsd.of: is not a knob of jsd: it takes beta"),
        ("skew_reverse_kl", {"beta": 1}, "is not a knob of skew_reverse_kl: it takes alpha, detach_mixture"),
        ("taid", {}, "taid.t: is missing: taid needs a number in [0, 1]"),
        ("alpha_beta", {"alpha": 1}, "alpha_beta.beta: is missing: alpha_beta needs a number in [-2, 2]"),
        ("jsd", {"beta": 0}, "jsd.beta: 0 is outside (0, 1)"),
        ("jsd", {"beta": 1}, "jsd.beta: 1 is outside (0, 1)"),
        ("skew_forward_kl", {"alpha": 1.0}, "skew_forward_kl.alpha: 1 is outside [0, 1)"),
        ("alpha_beta", {"alpha": 2.5, "beta": 0}, "alpha_beta.alpha: 2.5 is outside [-2, 2]"),
        ("nkd", {"gamma": -1}, "nkd.gamma: -1 is outside [0, inf)"),
        ("balanced_kl", {"high": math.inf}, "balanced_kl.high: inf is outside [0, inf)"),
        ("adaptive_kl", {"mu": math.nan}, "adaptive_kl.mu: nan is outside [0, 1]"),
        ("mixture", {}, "mixture.of: is missing: give divergences and their weights"),
        ("mixture", {"of": {}}, "mixture.of: is missing"),
        ("mixture", {"of": {"cross_entropy": 1.0}}, "mixture.of.cross_entropy: is not one of forward_kl, reverse_kl"),
        ("mixture", {"of": {"taid": 1.0}}, "mixture.of.taid: is not one of"),
        ("mixture", {"of": {"mixture": 1.0}}, "mixture.of.mixture: is not one of"),
        ("mixture", {"of": {"jsd": 0.5, "hellinger": 0.4}}, "mixture.of: the weights sum to 0.9: they must sum to 1"),
        ("mixture", {"of": {"jsd": 1.5, "hellinger": -0.5}}, "mixture.of.hellinger: -0.5 is not above 0"),
        ("mixture", {"of": {"jsd": 1.0, "hellinger": 0.0}}, "mixture.of.hellinger: 0 is not above 0"),
        ("mixture", {"of": {"jsd": math.nan}}, "mixture.of.jsd: nan is not above 0"),
        ("mixture", {"of": {"jsd": 1.0}, "alpha": 1.0}, "mixture.alpha: is not a knob of mixture: it takes of"),
    ],
)
def test_a_knob_that_cannot_be_meant_is_refused(kind, knobs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        settled(kind, knobs)


def test_all_that_is_wrong_is_said_at_once():
    found = [name for name, _ in knob_problems("alpha_beta", {"alpha": 3, "gamma": 1})]
    assert found == ["gamma", "alpha", "beta"]
    of = {"jsd": -1.0, "nkd": 0.5}
    assert [name for name, _ in knob_problems("mixture", {"of": of})] == ["of.jsd", "of.nkd", "of"]


def test_a_knob_that_follows_a_schedule_is_not_looked_into():
    assert list(knob_problems("taid", {"t": object()})) == []


@pytest.mark.parametrize("kind", TERMS)
def test_what_is_settled_has_no_problem(kind):
    assert list(knob_problems(kind, settled(kind, GIVEN.get(kind, {})))) == []


def test_weights_of_a_mixture_may_miss_1_by_rounding():
    assert settled("mixture", {"of": {"jsd": 0.1, "forward_kl": 0.2, "hellinger": 0.7}})
    assert settled("mixture", {"of": dict.fromkeys(["jsd", "forward_kl", "hellinger"], 0.3333333)})


# -- classes ----------------------------------------------------------------------------------------------------------

#                     dense    topk         ghost        counts
CLASSES = {
    "forward_kl": ("exact", "estimated", "bounded", "estimated"),
    "reverse_kl": ("exact", "refused", "bounded", "refused"),
    "jsd": ("exact", "refused", "bounded", "refused"),
    "skew_forward_kl": ("exact", "estimated", "bounded", "refused"),
    "skew_reverse_kl": ("exact", "refused", "bounded", "refused"),
    "total_variation": ("exact", "bounded", "bounded", "refused"),
    "hellinger": ("exact", "bounded", "bounded", "refused"),
    "alpha_beta": ("exact", "refused", "bounded", "refused"),
    "adaptive_kl": ("exact", "refused", "estimated", "refused"),
    "balanced_kl": ("exact", "refused", "estimated", "refused"),
    "taid": ("exact", "refused", "refused", "refused"),
    "mixture": ("exact", "refused", "bounded", "refused"),
    "cross_entropy": ("exact", "exact", "exact", "exact"),
    "nkd": ("exact", "refused", "refused", "refused"),
    "squared_logit": ("exact", "refused", "refused", "refused"),
}


@pytest.mark.parametrize("kind", TERMS)
def test_the_class_of_a_term_under_each_reading(kind):
    assert READINGS == ("dense", "topk", "ghost", "counts")
    assert tuple(class_of(kind, reading)[0] for reading in READINGS) == CLASSES[kind]
    assert tuple(class_of(kind, reading, GIVEN.get(kind, {}))[0] for reading in READINGS) == CLASSES[kind]


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("reading", READINGS)
def test_what_is_not_exact_says_why(kind, reading):
    found, why = class_of(kind, reading)
    assert (found == "exact") == (why == "")


@pytest.mark.parametrize(
    "alpha, beta, expected",
    [(0.3, 0.7, "bounded"), (1, 0, "bounded"), (0.1, 0.9, "bounded"), (1, 1, "refused"), (0.3, 0.6, "refused")],
)
def test_alpha_beta_is_an_f_divergence_where_its_knobs_sum_to_1(alpha, beta, expected):
    found, why = class_of("alpha_beta", "ghost", {"alpha": alpha, "beta": beta})
    assert found == expected and ("no f-divergence" in why) == (expected == "refused")


@pytest.mark.parametrize(
    "parts, expected",
    [
        (["forward_kl", "jsd"], "bounded"),
        (["forward_kl", "adaptive_kl"], "estimated"),
        (["balanced_kl", "jsd"], "estimated"),
        (["total_variation"], "bounded"),
    ],
)
def test_a_mixture_is_worth_what_its_worst_part_is(parts, expected):
    of = dict.fromkeys(parts, 1 / len(parts))
    assert class_of("mixture", "ghost", {"of": of})[0] == expected
    assert class_of("mixture", "topk", {"of": of})[0] == "refused"


def test_the_reasons_of_refusals_are_those_of_the_reading():
    assert "unbiased gradient for forward_kl alone" in class_of("jsd", "counts")[1]
    assert "probability of every token" in class_of("taid", "ghost")[1]
    assert "store the tail too (reading: ghost)" in class_of("reverse_kl", "topk")[1]
