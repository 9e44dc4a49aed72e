"""The engine against dense float64 autograd through plain formulas: every term with its knobs, every signal, every way
to look at the logits; and what it refuses."""

import re
from dataclasses import replace

import pytest
import torch

from llmkd.objectives import rows
from llmkd.objectives.closed import CLOSED
from llmkd.objectives.dense import dense_loss
from llmkd.objectives.divergences import VALUES
from llmkd.objectives.engine import WeightedTerm, fused_loss
from llmkd.objectives.weighting import measured
from llmkd.types import Head, Logits, Sparse, States

from dense import (
    DEFAULTS,
    F64,
    GRID,
    HS,
    HT,
    Case,
    V,
    assert_is_the_reference,
    case,
    focal,
    labels,
    likeliest,
    logits_of,
    randn,
    reference,
    relative,
    request,
    run,
    signals,
    teacher_logits,
)

BESIDE_TEACHERS = [(kind, knobs) for kind, knobs in GRID if kind != "cross_entropy"]
ALL = list(dict.fromkeys(kind for kind, _ in GRID))

# -- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 7, 31])
@pytest.mark.parametrize("chunk", [1, 3, 31, 100, None])
def test_loss_and_gradients_are_the_dense_ones_whatever_the_chunk(tokens, chunk):
    assert_is_the_reference(case(tokens, chunk=chunk))


@pytest.mark.parametrize("term", GRID, ids=labels(GRID))
def test_each_term_alone_with_its_knobs(term):
    assert_is_the_reference(case(kinds=[term], chunk=3))


def test_all_terms_together():
    assert_is_the_reference(case(kinds=ALL, chunk=3))


def test_the_same_divergence_twice_with_other_knobs_is_two_terms():
    assert_is_the_reference(case(kinds=[("jsd", {"beta": 0.1}), ("jsd", {"beta": 0.8}), "jsd"], chunk=3))


@pytest.mark.parametrize("kind", ALL)
def test_knobs_that_are_left_out_are_the_defaults(kind):
    assert_is_the_reference(case(kinds=[kind], chunk=3))


@pytest.mark.parametrize("block_rows", [1, 2, 5])
def test_row_blocks_change_nothing(block_rows, monkeypatch):
    monkeypatch.setattr(rows, "CPU_BLOCK_BYTES", 8 * V * block_rows)
    assert_is_the_reference(case(7, kinds=ALL, chunk=6, standardize=True, tau_student=2.0))


@pytest.mark.parametrize("term", GRID, ids=labels(GRID))
def test_a_teacher_with_impossible_tokens_gives_the_same_numbers_wherever_they_are_finite(term):
    c = case(kinds=[term], chunk=3)
    logits = logits_of(c.teachers[0]).logits
    logits[torch.arange(V) % 5 == torch.arange(7)[:, None] % 5] = -torch.inf
    c.teachers = [Logits(logits)]
    _, _, values = reference(c)
    if values.terms.isfinite().all():
        assert_is_the_reference(c)
    else:
        with pytest.raises(ValueError, match=f"^token 0: {term[0]} is infinite"):
            run(c)


@pytest.mark.parametrize("term", BESIDE_TEACHERS, ids=labels(BESIDE_TEACHERS))
def test_the_documented_dense_reference_says_the_same(term):
    c = case(kinds=[term], tau_student=1.5, tau_teacher=0.5, standardize=True, bias=True, softcap=5.0)
    expected_loss, expected, values = reference(c)
    leaves = {name: leaf.requires_grad_() for name, leaf in c.leaves().items()}
    loss, found = dense_loss(c.hidden, c.head, request(c))
    assert float(loss.detach()) == pytest.approx(float(expected_loss), rel=1e-10)
    for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        assert relative(gradient, expected[name]) < 1e-10, name
    for name, value in vars(found).items():
        torch.testing.assert_close(value, getattr(values, name), rtol=1e-10, atol=1e-10)


# -- temperatures and standardised logits -----------------------------------------------------------------------------


@pytest.mark.parametrize("student", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("teacher", [0.5, 1.0, 3.0])
def test_temperatures_touch_the_divergences_and_never_cross_entropy(student, teacher):
    assert_is_the_reference(case(tau_student=student, tau_teacher=teacher, chunk=3))


def test_a_temperature_that_float32_cannot_hold_is_exact_in_float64():
    assert_is_the_reference(case(tau_student=0.7, tau_teacher=1.3, chunk=3))


PER_TOKEN = 0.5 + 3 * randn(7, seed=40).sigmoid()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("student, teacher", [(PER_TOKEN, 1.0), (2.0, PER_TOKEN), (PER_TOKEN, 4 - PER_TOKEN)])
def test_temperatures_of_each_token(student, teacher, standardize):
    c = case(kinds=ALL, tau_student=student, tau_teacher=teacher, standardize=standardize, chunk=3)
    assert_is_the_reference(c)


def test_a_temperature_for_each_token_that_is_the_same_is_one_temperature():
    together, apart = case(kinds=ALL, tau_student=2.5, chunk=3), case(kinds=ALL, chunk=3)
    apart.tau_student = torch.full((7,), 2.5, dtype=F64)
    for found, expected in zip(run(apart)[1].values(), run(together)[1].values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_temperatures_in_float64_beside_a_student_in_float32():
    c = case(tau_student=PER_TOKEN, chunk=3).to(torch.float32)
    c.tau_student = PER_TOKEN
    assert_is_the_reference(c, tolerance=1e-5)


@pytest.mark.parametrize("term", BESIDE_TEACHERS, ids=labels(BESIDE_TEACHERS))
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_standardised_logits(term, tau):
    head = {"bias": True, "softcap": 6.0, "scale": 0.5}
    assert_is_the_reference(case(kinds=[term], standardize=True, tau_student=tau, tau_teacher=tau, chunk=3, **head))


def stretched(teacher: States, factor: float, shift: float) -> Logits:
    return Logits(factor * logits_of(teacher).logits + shift * randn(7, 1, seed=50))


@pytest.mark.parametrize("kind", [k for k in ALL if k != "cross_entropy"])
def test_standardised_to_stretch_and_shift_the_teachers_logits_changes_nothing(kind):
    plain, other = (case(kinds=[kind], standardize=True, chunk=3) for _ in range(2))
    other.teachers = [stretched(other.teachers[0], factor=3.0, shift=10.0)]
    (loss, gradients, _), (other_loss, other_gradients, _) = run(plain), run(other)
    torch.testing.assert_close(other_loss, loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(other_gradients["hidden"], gradients["hidden"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [k for k in ALL if k != "cross_entropy"])
def test_standardised_to_stretch_and_shift_the_students_logits_changes_no_value(kind):
    plain, other = (case(kinds=[kind], standardize=True, bias=True, chunk=3) for _ in range(2))
    weight, bias = plain.head.weight, plain.head.bias
    other.head = Head(3 * weight, 3 * bias + 10.0)
    (loss, _, values), (other_loss, gradients, other_values) = run(plain), run(other)
    torch.testing.assert_close(other_loss, loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(other_values.terms, values.terms, rtol=1e-9, atol=1e-12)
    # So the gradient to the logits has no part along a shift, which is what the bias of every token would see.
    assert float(gradients["bias"].sum().abs()) < 1e-12


# -- heads and teachers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_every_kind_of_head(bias, softcap, scale):
    teacher = signals(7, seed=5, bias=randn(V, seed=9), softcap=5.0, scale=0.5)
    assert_is_the_reference(case(bias=bias, softcap=softcap, scale=scale, teachers=[teacher], tau_student=2.0, chunk=3))


@pytest.mark.parametrize("rows_of_head", [V, V + 40])
def test_states_and_the_logits_they_make_are_the_same_teacher(rows_of_head):
    by_states, by_logits = (case(kinds=ALL, tau_teacher=2.0, chunk=3) for _ in range(2))
    teacher = signals(7, seed=5, rows=rows_of_head, bias=randn(rows_of_head, seed=9), softcap=5.0)
    by_states.teachers, by_logits.teachers = [teacher], [logits_of(teacher)]
    (loss, gradients, values), (other_loss, other_gradients, other_values) = run(by_states), run(by_logits)
    torch.testing.assert_close(other_loss, loss, rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-10, atol=1e-14)
    for name, value in vars(values).items():
        torch.testing.assert_close(getattr(other_values, name), value, rtol=1e-11, atol=1e-13)


def test_a_teachers_logits_are_left_as_they_were():
    c = case(kinds=ALL, standardize=True, tau_teacher=2.0)
    c.teachers = [logits_of(c.teachers[0])]
    before = c.teachers[0].logits.clone()
    run(c)
    assert torch.equal(c.teachers[0].logits, before)


def test_three_teachers_each_for_its_own_terms():
    c = case(31, kinds=["forward_kl", "jsd", "reverse_kl", "nkd", "cross_entropy"], chunk=5)
    states, other = signals(31, seed=5), signals(31, seed=7, width=HS)
    logp = teacher_logits(signals(31, seed=9), V).log_softmax(-1)
    c.teachers = [states, logits_of(other), likeliest(logp, 9, "ghost", tail=True)]
    c.terms = [replace(t, teacher=at) for t, at in zip(c.terms, (0, 1, 2, 0, None), strict=True)]
    assert_is_the_reference(c)


def test_no_teacher_is_needed_for_cross_entropy():
    c = case(kinds=["cross_entropy"], chunk=3)
    c.teachers = []
    assert_is_the_reference(c)


@pytest.mark.parametrize("kind", ALL)
def test_common_rows_of_heads_that_are_padded_differently(kind):
    assert_is_the_reference(
        case(kinds=[kind], rows=V + 5, teachers=[signals(7, seed=5, rows=V + 40)], bias=True, chunk=3)
    )


def test_rows_beyond_the_common_vocabulary_get_no_gradient():
    _, gradients, _ = run(case(rows=V + 5, bias=True))
    assert (gradients["weight"][V:] == 0).all() and (gradients["bias"][V:] == 0).all()


def test_agreement_marks_the_tokens_with_the_same_most_likely_one():
    c = case(31, chunk=4)
    near = States(c.hidden + 0.3 * randn(31, HS, seed=8), c.head)
    c.teachers = [States(c.hidden, c.head), near]
    _, _, expected = reference(c)
    _, _, found = run(c)
    assert (found.agreement[0] == 1).all() and 0 < float(found.agreement[1].mean()) < 1
    assert torch.equal(found.agreement, expected.agreement)


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [ALL, ["cross_entropy"], ["nkd"]], ids=["all", "cross_entropy", "nkd"])
@pytest.mark.parametrize("frozen", [("weight",), ("weight", "bias"), ("hidden",), ("bias",)])
def test_what_needs_no_gradient_gets_none_and_changes_nothing_else(frozen, kinds):
    c = case(kinds=kinds, bias=True, chunk=3, frozen=frozen)
    assert_is_the_reference(c)
    assert all(leaf is None or leaf.grad is None for leaf in (getattr(c.head, n, c.hidden) for n in frozen))


@pytest.mark.parametrize("factor", [3.0, -0.125, 0.0])
def test_a_factor_on_the_loss_scales_the_gradients(factor):
    _, expected, _ = reference(case(bias=True))
    _, found, _ = run(case(bias=True, chunk=3), factor=factor)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, factor * expected[name], rtol=1e-10, atol=1e-14)


def test_values_are_detached_unweighted_and_per_token():
    light, heavy = case(31, chunk=4), case(31, chunk=4)
    heavy.terms = [replace(t, weight=100 * t.weight) for t in heavy.terms]
    (_, _, found), (_, _, expected) = run(light), run(heavy)
    assert found.terms.shape == (3, 31)
    for name, value in vars(found).items():
        assert torch.equal(value, getattr(expected, name)) and not value.requires_grad


def test_a_second_derivative_is_refused_rather_than_wrong():
    c = case()
    hidden = c.hidden.requires_grad_()
    loss, _ = fused_loss(hidden, c.head, request(c))
    (gradient,) = torch.autograd.grad(loss * loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "total_variation"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_student_that_is_its_teacher_has_exactly_no_loss_and_no_gradient(kind, dtype):
    c = case(31, kinds=[kind], bias=True, softcap=5.0, tau_student=2.0, tau_teacher=2.0, chunk=4).to(dtype)
    c.teachers = [States(c.hidden.clone(), Head(c.head.weight.clone(), c.head.bias.clone(), 5.0))]
    loss, gradients, values = run(c)
    assert float(loss) == 0 and (values.terms == 0).all()
    assert all((gradient == 0).all() for gradient in gradients.values())
    assert (values.agreement == 1).all()


# -- weights that are measured ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["student_entropy", "teacher_entropy", "teacher_confidence"])
@pytest.mark.parametrize("signal", ["states", "logits", "topk", "ghost"])
def test_a_measured_weight_multiplies_and_carries_no_gradient(kind, signal):
    c = case(31, kinds=["forward_kl", "total_variation"], tau_student=2.0, chunk=4)
    logits = logits_of(c.teachers[0])
    sparse = {s: likeliest(logits.logits.log_softmax(-1), 12, s) for s in ("topk", "ghost")}
    c.teachers = [{"states": c.teachers[0], "logits": logits, **sparse}[signal]]
    c.terms = [replace(c.terms[0], weighting=measured(kind, floor=0.25, power=2.0)), c.terms[1]]
    assert_is_the_reference(c)


def test_a_measured_weight_of_a_term_without_a_teacher_sees_the_student():
    c = case(31, kinds=["cross_entropy", "forward_kl"], chunk=4)
    c.terms = [replace(c.terms[0], weighting=measured("student_entropy")), c.terms[1]]
    assert_is_the_reference(c)


# -- new terms: five lines, no closed form ----------------------------------------------------------------------------


def triangular(logp, logq):
    p, q = logp.exp(), logq.exp()
    return 0.5 * ((p - q).square() / (p + q).clamp(min=1e-30)).sum(-1)


@pytest.mark.parametrize("signal", ["states", "logits", "topk", "ghost"])
def test_a_divergence_without_a_closed_form_works_by_autograd(signal, monkeypatch):
    monkeypatch.setitem(VALUES, "triangular", triangular)
    c = case(31, kinds=["triangular", "forward_kl"], chunk=4, tau_student=2.0, bias=True)
    logits = logits_of(c.teachers[0])
    sparse = {s: likeliest(logits.logits.log_softmax(-1), 12, s) for s in ("topk", "ghost")}
    c.teachers = [{"states": c.teachers[0], "logits": logits, **sparse}[signal]]
    assert_is_the_reference(c)


def test_a_loss_against_the_data_without_a_closed_form_works_by_autograd(monkeypatch):
    monkeypatch.setitem(VALUES, "focal", focal)
    assert_is_the_reference(case(31, kinds=["focal", "forward_kl"], chunk=4, tau_student=2.0, bias=True))


@pytest.mark.parametrize("kind", CLOSED)
def test_without_its_closed_form_a_term_is_the_same(kind, monkeypatch):
    monkeypatch.delitem(CLOSED, kind)
    assert_is_the_reference(case(kinds=[kind], chunk=3, tau_student=2.0))


# -- refusals ---------------------------------------------------------------------------------------------------------


def with_term(kind: str, weight=None, teacher: int | None = 0, **knobs):
    weight = torch.ones(7) if weight is None else weight

    def change(c: Case) -> None:
        c.terms = [WeightedTerm(kind, weight, teacher, knobs)]

    return change


def with_field(name: str, value):
    return lambda c: setattr(c, name, value)


def sparse(k: int = 3, **fields) -> Sparse:
    return Sparse(
        **{"ids": torch.zeros(7, k, dtype=torch.int64), "logp": torch.zeros(7, k), "reading": "topk"} | fields
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (with_field("targets", torch.zeros(6, dtype=torch.int64)), "7 student tokens, but targets of shape (6,)"),
        (with_field("hidden", torch.zeros(7, 17)), "student hidden states (7, 17) do not fit the head (123, 16)"),
        (with_field("teachers", [signals(6, seed=0)]), "7 student tokens, but the teacher answered for 6"),
        (with_field("teachers", [Logits(torch.zeros(6, V))]), "7 student tokens, but the teacher answered for 6"),
        (with_field("teachers", [Logits(torch.zeros(7, V - 1))]), "expected [N, V] with at least 123 columns"),
        (
            with_field("teachers", [States(torch.zeros(7, 5), Head(torch.zeros(V, HT)))]),
            "teacher hidden states (7, 5) do not fit the head (123, 24)",
        ),
        (with_field("teachers", [sparse(logp=torch.zeros(7, 4))]), "with ids (7, 3) and log-probabilities (7, 4)"),
        (with_field("teachers", [sparse(tail=torch.zeros(6))]), "7 student tokens, but a sparse teacher's tail has (6"),
        (with_field("vocabulary", V + 1), "a shared vocabulary of 124 rows, but the smallest head has 123"),
        (with_field("tau_student", 0.0), "the student temperature 0.0 is not a number above 0"),
        (with_field("tau_teacher", float("nan")), "the teacher temperature nan is not a number above 0"),
        (with_field("tau_teacher", torch.ones(6)), "7 student tokens, but teacher temperatures of shape (6,)"),
        (with_term("hinge"), "no term hinge: one of forward_kl, reverse_kl, jsd"),
        (with_term("forward_kl", teacher=None), "forward_kl needs a teacher"),
        (with_term("nkd", teacher=None), "nkd needs a teacher"),
        (with_term("cross_entropy"), "cross_entropy takes no teacher"),
        (with_term("forward_kl", teacher=1), "forward_kl looks at teacher 1, but there are 1 teachers"),
        (with_term("forward_kl", torch.ones(7, 1)), "forward_kl has weights of shape (7, 1)"),
        (with_term("jsd", beta=1.0), "jsd.beta: 1 is outside (0, 1)"),
        (with_term("jsd", alpha=0.5), "jsd.alpha: is not a knob of jsd: it takes beta"),
        (with_term("taid"), "taid.t: is missing: taid needs a number in [0, 1]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(change, message):
    c = case()
    change(c)
    with pytest.raises(ValueError, match=re.escape(message)):
        fused_loss(c.hidden, c.head, request(c))


def test_the_defaults_of_these_tests_name_every_term_that_needs_knobs():
    assert set(VALUES) == set(ALL) and set(DEFAULTS) <= set(ALL)
