"""Teachers of whom a few tokens are known: each reading by hand, its bounds, its bias, and what is refused."""

import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llmkd.terms import READINGS, TERMS, class_of
from llmkd.types import Head, Sparse

from dense import (
    F64,
    GRID,
    Case,
    V,
    assert_is_the_reference,
    case,
    draws,
    labels,
    likeliest,
    logits_of,
    randn,
    relative,
    run,
    terms_of,
)

INF = math.inf
SPARSE = [reading for reading in READINGS if reading != "dense"]
BESIDE_TEACHERS = [(kind, knobs) for kind, knobs in GRID if kind != "cross_entropy"]


def classes(*wanted: str) -> list:
    """Every term with its knobs and a sparse reading under which it is of one of the wanted classes."""
    return [
        pytest.param(kind, knobs, reading, id=f"{reading}-{name}")
        for (kind, knobs), name in zip(BESIDE_TEACHERS, labels(BESIDE_TEACHERS), strict=True)
        for reading in SPARSE
        if class_of(kind, reading, knobs)[0] in wanted
    ]


ALLOWED, BOUNDED = classes("exact", "bounded", "estimated"), classes("bounded")


def teacher_logp(c: Case) -> Tensor:
    return logits_of(c.teachers[0]).logits[:, : c.vocabulary].log_softmax(-1)


def sparse_case(kind: str, knobs: dict, reading: str, k: int = 9, tail: bool = False, **settings) -> Case:
    c = case(kinds=[(kind, knobs)], chunk=3, **settings)
    logp = teacher_logp(c)
    c.teachers = [draws(logp, 40, seed=8) if reading == "counts" else likeliest(logp, k, reading, tail)]
    return c


def of_logits(z: Tensor, teacher: Sparse, kind: str, weight: Tensor | None = None, **knobs) -> Case:
    """A student whose hidden states are its logits: their gradient is the gradient to the logits."""
    tokens, size = z.shape
    term = replace(terms_of([(kind, knobs)], tokens)[0], weight=torch.ones(tokens) if weight is None else weight)
    eye = Head(torch.eye(size, dtype=z.dtype))
    targets = torch.zeros(tokens, dtype=torch.int64)
    return Case(z.clone(), eye, targets, [teacher], [term], vocabulary=size, frozen=("weight",))


# -- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, knobs, reading", ALLOWED)
@pytest.mark.parametrize("tail", [False, True])
def test_value_gradient_and_statistics_are_those_of_the_known_tokens(kind, knobs, reading, tail):
    assert_is_the_reference(sparse_case(kind, knobs, reading, tail=tail, bias=True, softcap=6.0, scale=0.5))


@pytest.mark.parametrize("kind, knobs, reading", ALLOWED)
def test_the_students_temperature_is_its_own(kind, knobs, reading):
    assert_is_the_reference(sparse_case(kind, knobs, reading, tau_student=2.0))
    assert_is_the_reference(sparse_case(kind, knobs, reading, tau_student=0.5 + randn(7, seed=3).square()))


@pytest.mark.parametrize("reading", SPARSE)
def test_float32_is_within_1e5_of_float64(reading):
    kinds = [p.values[:2] for p in ALLOWED if p.values[2] == reading]
    c = case(31, kinds=kinds, chunk=8)
    logp = teacher_logp(c)
    c.teachers = [draws(logp, 40, seed=8) if reading == "counts" else likeliest(logp, 9, reading)]
    assert_is_the_reference(c.to(torch.float32), tolerance=1e-5)


def test_two_known_tokens_by_hand():
    """Of four tokens the teacher names two, with 1/2 and 1/4; the student gives 1/4 to each of the four."""
    teacher = {"ids": torch.tensor([[2, 0]]), "logp": torch.tensor([[1 / 2, 1 / 4]], dtype=F64).log()}
    z = torch.zeros(1, 4, dtype=F64)
    raw = run(of_logits(z, Sparse(**teacher, reading="topk"), "forward_kl"))
    # 1/2 ln(1/2 / 1/4) + 1/4 ln(1/4 / 1/4); its gradient is 3/4 q - p on the known tokens and 3/4 q elsewhere.
    assert float(raw[0]) == pytest.approx(0.5 * math.log(2), rel=1e-14)
    torch.testing.assert_close(raw[1]["hidden"], torch.tensor([[-1, 3, -5, 3]], dtype=F64) / 16)
    ghost = run(of_logits(z, Sparse(**teacher, reading="ghost"), "forward_kl"))
    # One more bucket, two tokens that share alike: 1/4 of the teacher's mass, 1/2 of the student's: 1/4 ln(1/4 / 1/2).
    assert float(ghost[0]) == pytest.approx(0.25 * math.log(2), rel=1e-14)
    torch.testing.assert_close(ghost[1]["hidden"], torch.tensor([[0, 1, -2, 1]], dtype=F64) / 8)


def test_statistics_by_hand():
    teacher = {"ids": torch.tensor([[2, 0]]), "logp": torch.tensor([[1 / 2, 1 / 4]], dtype=F64).log()}
    z = torch.tensor([[1, 1, 1, 5]], dtype=F64).log()  # the student: 1/8, 1/8, 1/8, 5/8
    _, _, raw = run(of_logits(z, Sparse(**teacher, reading="topk"), "forward_kl"))
    _, _, ghost = run(of_logits(z, Sparse(**teacher, reading="ghost"), "forward_kl"))
    assert float(raw.mass) == float(ghost.mass) == pytest.approx(1 / 4)
    assert float(raw.agreement) == float(ghost.agreement) == 0
    assert float(raw.teacher_entropy) == pytest.approx(math.log(2))  # 1/2 ln 2 + 1/4 ln 4
    assert float(ghost.teacher_entropy) == pytest.approx(1.5 * math.log(2))  # and 1/4 ln 4 of the rest
    assert float(raw.normalizer) == float(ghost.normalizer) == 0


# -- the whole vocabulary ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, knobs, reading", ALLOWED)
@pytest.mark.parametrize("tail", ["given", "computed"])
def test_a_teacher_that_names_every_token_is_the_dense_teacher(kind, knobs, reading, tail):
    dense, whole = (case(kinds=[(kind, knobs)], chunk=3, tau_student=2.0) for _ in range(2))
    logp = teacher_logp(dense)
    order = torch.stack([torch.randperm(V, generator=torch.Generator().manual_seed(n)) for n in range(7)])
    nothing = torch.full((7,), -INF, dtype=F64) if tail == "given" else None
    whole.teachers = [Sparse(order, logp.gather(-1, order), reading, nothing if reading == "ghost" else None)]
    (loss, gradients, values), (expected_loss, expected, expected_values) = run(whole), run(dense)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=0)
    for name, gradient in gradients.items():
        assert relative(gradient, expected[name]) < 1e-10, name
    torch.testing.assert_close(values.teacher_entropy, expected_values.teacher_entropy)
    torch.testing.assert_close(values.mass, expected_values.mass)
    assert torch.equal(values.agreement, expected_values.agreement)


# -- bounds -----------------------------------------------------------------------------------------------------------


def pairs(tokens: int = 200, size: int = 40) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teachers and logits of students, from flat to sharp, near each other and far apart."""
    spread = torch.logspace(-1, 0.8, tokens, dtype=F64)[:, None]
    y, noise = spread * randn(tokens, size, seed=60), spread * randn(tokens, size, seed=61)
    near = torch.arange(tokens)[:, None] % 2 == 0
    return y.log_softmax(-1), torch.where(near, y + 0.1 * noise, noise)


def whole(logp: Tensor) -> Sparse:
    ids = torch.arange(logp.shape[1]).expand_as(logp)
    return Sparse(ids, logp, "ghost", torch.full(logp.shape[:1], -INF, dtype=logp.dtype))


def some(logp: Tensor, k: int, seed: int = 70) -> Tensor:
    """k tokens of each row, any."""
    return torch.rand(logp.shape, generator=torch.Generator().manual_seed(seed)).topk(k, dim=-1).indices


def values_of(z: Tensor, teacher: Sparse, kind: str, knobs: dict) -> Tensor:
    return run(of_logits(z, teacher, kind, **knobs))[2].terms[0]


@pytest.mark.parametrize("kind, knobs, reading", BOUNDED)
@pytest.mark.parametrize("k", [1, 5, 39])
def test_what_is_called_bounded_is_never_above_the_dense_value(kind, knobs, reading, k):
    logp, z = pairs()
    dense = values_of(z, whole(logp), kind, knobs)
    for ids in (logp.topk(k).indices, some(logp, k)):
        tail = logp.scatter(-1, ids, -INF).logsumexp(-1)
        found = values_of(z, Sparse(ids, logp.gather(-1, ids), reading, tail), kind, knobs)
        assert (found <= dense + 1e-12).all() and (found >= -1e-12).all()
        assert (found < 0.9 * dense).any() or k == 39  # and it is a bound, not the value itself


@pytest.mark.parametrize("kind, knobs, reading", [p for p in BOUNDED if p.values[2] == "ghost"])
def test_the_more_tokens_are_known_the_nearer_a_bound_comes(kind, knobs, reading):
    logp, z = pairs()
    found = [values_of(z, likeliest(logp, k, reading, tail=True), kind, knobs) for k in (1, 2, 5, 10, 20, 39)]
    for coarse, fine in itertools.pairwise(found):
        assert (coarse <= fine + 1e-12).all()


def test_a_raw_forward_kl_may_be_below_0_and_above_the_dense_value():
    """Why `topk` is no bound for it: the tail that is left out is of either sign."""
    logp, z = pairs()
    dense, found = (
        values_of(z, whole(logp), "forward_kl", {}),
        values_of(z, likeliest(logp, 5, "topk"), "forward_kl", {}),
    )
    assert (found > dense + 0.01).any() and (found < -0.01).any()


def test_a_raw_forward_kl_pulls_the_student_to_the_known_tokens_alone():
    logp, _ = pairs(tokens=20)
    teacher = likeliest(logp, 5, "topk")
    z = torch.full_like(logp, -200.0).scatter(-1, teacher.ids, teacher.logp)
    _, gradients, _ = run(of_logits(z, teacher, "forward_kl"))
    assert float(gradients["hidden"].abs().max()) < 1e-14


@pytest.mark.parametrize("kind, knobs, reading", [p for p in ALLOWED if p.values[2] == "ghost"])
def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient_under_ghost(kind, knobs, reading):
    logp, _ = pairs()
    loss, gradients, _ = run(of_logits(logp, likeliest(logp, 5, reading, tail=True), kind, **knobs))
    assert abs(float(loss)) < 1e-12
    # An absolute value has a gradient beside 0, however near.
    assert "total_variation" in str((kind, knobs)) or float(gradients["hidden"].abs().max()) < 1e-12


# -- random draws -----------------------------------------------------------------------------------------------------


def many_draws(count: int, times: int = 4000, size: int = 11) -> tuple[Tensor, Tensor, Sparse]:
    """One teacher and one student, and the shares of ``count`` draws, many times over."""
    logp, z = randn(1, size, seed=80).log_softmax(-1), randn(1, size, seed=81).expand(times, size)
    return logp, z, draws(logp.expand(times, size), count, seed=82)


@pytest.mark.parametrize("count", [1, 4, 50])
def test_the_gradient_of_random_draws_is_the_dense_one_on_average(count):
    logp, z, teacher = many_draws(count)
    gradient = run(of_logits(z, teacher, "forward_kl"))[1]["hidden"]
    error = gradient.std(0) / math.sqrt(len(gradient))
    assert ((gradient.mean(0) - (z[0].softmax(-1) - logp[0].exp())).abs() < 5 * error).all()
    assert (error > 0).all()


def test_the_value_of_random_draws_is_above_by_the_entropy_that_they_lose():
    count = 500
    logp, z, teacher = many_draws(count)
    values = values_of(z, teacher, "forward_kl", {})
    dense = float((logp.exp() * (logp - z[:1].log_softmax(-1))).sum())
    bias, error = float(values.mean()) - dense, float(values.std()) / math.sqrt(len(values))
    assert abs(bias - (11 - 1) / (2 * count)) < 5 * error < (11 - 1) / (4 * count)


# -- how a signal is written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, knobs, reading", ALLOWED)
@pytest.mark.parametrize("junk", [0, V - 1, -1, 10**6])
def test_places_without_a_token_change_nothing_whatever_their_id(kind, knobs, reading, junk):
    plain, padded = (sparse_case(kind, knobs, reading) for _ in range(2))
    teacher = padded.teachers[0]
    pad = torch.full((7, 2), junk)
    logp = torch.cat([torch.full((7, 2), -INF, dtype=F64), teacher.logp], -1)
    padded.teachers = [replace(teacher, ids=torch.cat([pad, teacher.ids], -1), logp=logp)]
    (loss, gradients, values), (expected_loss, expected, expected_values) = run(padded), run(plain)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-15)
    for name, value in vars(values).items():
        torch.testing.assert_close(value, getattr(expected_values, name), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kind, knobs, reading", ALLOWED)
def test_the_order_of_the_tokens_changes_nothing(kind, knobs, reading):
    plain, turned = (sparse_case(kind, knobs, reading) for _ in range(2))
    teacher = turned.teachers[0]
    turned.teachers = [replace(teacher, ids=teacher.ids.flip(-1), logp=teacher.logp.flip(-1))]
    (loss, gradients, _), (expected_loss, expected, _) = run(turned), run(plain)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_ids_and_log_probabilities_may_be_stored_small(dtype, stored):
    c = sparse_case("jsd", {}, "ghost", tail=True)
    ids, logp, tail = c.teachers[0].ids, c.teachers[0].logp, c.teachers[0].tail
    c.teachers = [Sparse(ids.to(dtype), logp.to(stored), "ghost", tail.to(stored))]
    assert_is_the_reference(c)


def test_a_tail_that_is_not_given_is_what_is_missing_to_1():
    computed, given = (sparse_case("reverse_kl", {}, "ghost", tail=tail) for tail in (False, True))
    (loss, gradients, _), (expected_loss, expected, _) = run(computed), run(given)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-11, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-14)


def test_a_tail_of_a_raw_reading_is_not_looked_at():
    with_tail, without = (sparse_case("forward_kl", {}, "topk", tail=tail) for tail in (True, False))
    torch.testing.assert_close(run(with_tail)[1], run(without)[1], rtol=0, atol=0)


# -- at the ends of the numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["reverse_kl", "jsd", "adaptive_kl"])
def test_known_tokens_whose_rounded_mass_is_1_leave_a_value_that_is_finite(stored, kind):
    """What is missing to 1 is lost in rounding; the student's mass elsewhere must not cost infinitely much for it."""
    c = sparse_case(kind, {}, "ghost").to(torch.float32)
    logp = (30 * teacher_logp(case())).log_softmax(-1)
    top = likeliest(logp, 5, "ghost")
    c.teachers = [replace(top, logp=top.logp.to(stored))]
    loss, gradients, _ = run(c)
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "hellinger"])
def test_a_student_with_almost_no_mass_in_the_tail_has_a_finite_gradient(kind):
    z = torch.full((1, 20), -98.0).index_fill_(1, torch.tensor([0]), 0.0)  # e^-98 is still a float32
    teacher = Sparse(torch.tensor([[0]]), torch.tensor([[0.5]]).log(), "ghost")
    loss, gradients, _ = run(of_logits(z, teacher, kind))
    assert loss.isfinite() and gradients["hidden"].isfinite().all()
    assert float(gradients["hidden"].sum().abs()) < 1e-6  # a shift of all logits changes nothing


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, knobs, reading", classes("refused"))
def test_what_a_reading_cannot_carry_is_refused_with_the_reason(kind, knobs, reading):
    reason = class_of(kind, reading, knobs)[1]
    assert len(reason) > 20
    with pytest.raises(ValueError, match=re.escape(f"{kind} is refused on a teacher's {reading}: {reason}")):
        run(sparse_case(kind, knobs, reading))


@pytest.mark.parametrize("reading", SPARSE)
@pytest.mark.parametrize("tau", [0.5, torch.ones(7)])
def test_a_temperature_of_the_teacher_is_refused(reading, tau):
    with pytest.raises(ValueError, match=f"temperature other than 1 is refused on its {reading}"):
        run(sparse_case("forward_kl", {}, reading, tau_teacher=tau))


@pytest.mark.parametrize("reading", SPARSE)
def test_standardised_logits_are_refused(reading):
    with pytest.raises(ValueError, match=f"logit_standardize is refused on a teacher's {reading}: it needs all logits"):
        run(sparse_case("forward_kl", {}, reading, standardize=True))


def test_cross_entropy_beside_a_sparse_teacher_is_as_ever():
    c = sparse_case("forward_kl", {}, "topk")
    c.terms += terms_of(["cross_entropy"], 7)
    assert_is_the_reference(c)


def test_these_tests_see_every_term_under_every_reading():
    seen = {(p.values[0], p.values[2]) for p in [*ALLOWED, *classes("refused")]}
    assert seen == {(kind, reading) for kind in TERMS for reading in SPARSE if kind != "cross_entropy"}
