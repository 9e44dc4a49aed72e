"""The Triton row kernel against the dense formulas in float64 and against the torch path."""

import math
from dataclasses import replace

import pytest
import torch

from llmkd.objectives import kernels, rows
from llmkd.objectives.rows import Rows
from llmkd.objectives.weighting import MEASURED

from kernel_cases import (
    DIVERGENCES,
    F64,
    MANY,
    TERMS,
    TILE,
    Case,
    V,
    assert_is_the_formula,
    assert_same,
    case,
    expected,
    logits_of,
    named,
    needs_triton,
    randn,
    relative,
    visited,
)

pytestmark = [needs_triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # inf - inf in the interpreter


# -- the formulas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, knobs", TERMS, ids=named(TERMS))
def test_each_term_alone(kind, knobs, device):
    assert_is_the_formula(case((kind, knobs)), device)


def test_many_terms_at_once_some_of_them_twice(device):
    assert_is_the_formula(case(*MANY, head={"softcap": 8.0}, tau=(1.5, 2.0)), device)


def test_the_torch_path_gives_the_same(device):
    c = case(*MANY, head={"softcap": 8.0, "scale": 0.5}, tau=(2.0, 1.5))
    assert_same(visited(c, device), visited(c, "cpu", by=rows.visit))


PER_ROW = torch.tensor([0.5, 1.0, 4.0], dtype=F64)


@pytest.mark.parametrize(
    "tau", [(2.0, 2.0), (1.0, 3.0), (0.7, 1.0), (PER_ROW, 2.0), (PER_ROW, PER_ROW.flip(0))], ids=str
)
def test_temperatures_of_either_side_touch_all_but_cross_entropy(tau, device):
    kinds = [("forward_kl", {}), ("reverse_kl", {}), ("jsd", {"beta": 0.3}), ("balanced_kl", {}), ("cross_entropy", {})]
    assert_is_the_formula(case(*kinds, tau=tau), device)


@pytest.mark.parametrize(
    "head",
    [{"softcap": 5.0}, {"scale": 0.25}, {"bias": randn(V, seed=7), "softcap": 6.0, "scale": 2.0}],
    ids=["cap", "scale", "all"],
)
def test_the_gradient_is_the_one_before_cap_and_scale(head, device):
    assert_is_the_formula(
        case(("forward_kl", {}), ("hellinger", {}), ("cross_entropy", {}), head=head, tau=(2.0, 1.0)), device
    )


@pytest.mark.parametrize("size, tile", [(57, 64), (1000, 128), (4097, 512)])
def test_vocabularies_that_fill_no_tile(size, tile, device, monkeypatch):
    if device == "cpu":
        monkeypatch.setattr(kernels, "BLOCK", tile)
        monkeypatch.setattr(kernels, "SECTION", 2 * tile)
    assert_is_the_formula(case(("forward_kl", {}), ("jsd", {"beta": 0.3}), tokens=2, size=size), device)


def test_logits_whose_largest_comes_last(device):
    """Every tile moves the maximum, and everything summed so far with it."""
    c = case(("forward_kl", {}), ("reverse_kl", {}), ("balanced_kl", {}), tau=(0.5, 0.5), near=0.3)
    assert_is_the_formula(replace(c, x=c.x.sort(-1).values, y=c.y.gather(-1, c.x.argsort(-1))), device)


@pytest.mark.parametrize("shift", [-1000.0, 1000.0])
def test_a_shift_of_all_logits_changes_nothing(shift, device):
    c = case(("forward_kl", {}), ("jsd", {"beta": 0.5}), ("cross_entropy", {}))
    loss, dz, values = visited(replace(c, x=c.x + shift), device)
    loss_, dz_, values_ = expected(c)
    assert float(loss) == pytest.approx(float(loss_), rel=1e-4)  # the shifted logits themselves are rounded to 6e-5
    assert relative(dz, dz_) < 1e-4
    torch.testing.assert_close(values.entropy.cpu().double(), values_.entropy, rtol=1e-4, atol=1e-4)


def test_no_teacher_is_needed_for_cross_entropy(device):
    assert_is_the_formula(case(("cross_entropy", {}), untaught=True, tau=(2.0, 2.0)), device)


def test_a_teacher_that_no_term_looks_at_is_measured_all_the_same(device):
    assert_is_the_formula(case(("cross_entropy", {}), tau=(2.0, 2.0)), device)


def test_no_terms_give_zeros_and_the_statistics(device):
    c = case()
    loss, dz, values = visited(c, device)
    assert float(loss) == 0 and (dz == 0).all()
    torch.testing.assert_close(values.entropy.cpu().double(), expected(case(("forward_kl", {})))[2].entropy)


@pytest.mark.parametrize("other", [9, 7 + TILE])
def test_of_equal_logits_the_first_is_the_likeliest(other, device):
    c = case(("forward_kl", {}), tokens=3)
    c.x[:, [7, other, 100]] = 20.0
    c.y[[0, 2], 7] = 20.0
    c.y[[1, 2], other] = 20.0
    _, _, values = visited(c, device)
    assert values.agreement[0].tolist() == [1, 0, 1]


def test_entropies_at_the_temperatures_decide_for_balanced_kl(device):
    c = case(("balanced_kl", {}), tau=(PER_ROW, 0.3))
    z, request = logits_of(c, device).sort(-1).values, c.request(torch.float32, device)
    y = request.teachers[0].logits
    launch = kernels._Launch(Rows(z, [y], slice(0, 3)), request)
    found = launch.statistics(kernels.Plan.of(c.terms))
    for name, x in (("tau_entropy", z.cpu() / PER_ROW.unsqueeze(-1)), ("teacher_tau_entropy", y.cpu() / 0.3)):
        truth = torch.distributions.Categorical(logits=x.double()).entropy()
        torch.testing.assert_close(found[name].cpu().double(), truth, rtol=1e-5, atol=1e-6)


# -- equal models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [(1.0, 1.0), (PER_ROW, PER_ROW)], ids=["1", "rows"])
def test_a_student_equal_to_its_teacher_has_no_divergence(tau, device):
    c = case(*DIVERGENCES, near=0.0, tau=tau)
    loss, dz, values = visited(c, device)
    kls = [kind in ("forward_kl", "reverse_kl", "balanced_kl") for kind, _ in DIVERGENCES]
    assert (values.terms[kls] == 0).all()
    assert float(values.terms.abs().max()) < 1e-7 and abs(float(loss)) < 1e-6
    assert float(dz.abs().max()) < 1e-6
    assert (values.agreement == 1).all()


@pytest.mark.parametrize(
    "kind, knobs", DIVERGENCES[:3] + DIVERGENCES[6:7], ids=named(DIVERGENCES[:3] + DIVERGENCES[6:7])
)
def test_the_gradient_keeps_its_digits_near_the_teacher(kind, knobs, device):
    """A thousandth apart: the difference of two probabilities has lost three digits, and no more."""
    c = case((kind, knobs), near=1e-3)
    _, dz, values = visited(c, device)
    _, dz_, _ = expected(c)
    assert relative(dz, dz_) < 1e-3
    assert (values.terms >= 0).all()


def test_rounding_makes_no_kl_negative(device):
    _, _, values = visited(case(("forward_kl", {}), ("reverse_kl", {}), tokens=8, near=1e-5), device)
    assert (values.terms >= 0).all() and float(values.terms.max()) < 1e-6


# -- impossible tokens ------------------------------------------------------------------------------------------------


def without(c: Case, student: list[int] = (), teacher: list[int] = ()) -> Case:
    """The case with tokens that a model gives probability 0: by the student's bias, by the teacher's logits."""
    bias = torch.zeros(c.x.shape[1], dtype=F64)
    bias[list(student)] = -math.inf
    y = c.y.clone()
    y[:, list(teacher)] = -math.inf
    return replace(c, y=y, head={"bias": bias})


PADS = [0, 40, *range(100, V)]  # whole lanes too: tile 64, columns 100 to 122
AT_ANY = [(k, a) for k, a in TERMS if not (k == "alpha_beta" and min(a["alpha"], a["beta"]) <= 0)]


@pytest.mark.parametrize("kind, knobs", AT_ANY, ids=named(AT_ANY))
def test_tokens_impossible_to_both(kind, knobs, device):
    c = without(case((kind, knobs)), PADS, PADS)
    assert_is_the_formula(replace(c, targets=torch.tensor([1, 2, 50])), device)


FINITE = [TERMS[i] for i in (0, 1, 3, 4, 5, 7, 8, 10, 11, 14, 15)]


def test_tokens_impossible_to_the_teacher(device):
    assert_is_the_formula(without(case(*FINITE), teacher=PADS), device)


def test_tokens_impossible_to_the_student(device):
    finite = [(k, a) for k, a in FINITE if k not in ("forward_kl", "cross_entropy")]
    assert_is_the_formula(without(case(("reverse_kl", {}), *finite), student=PADS), device)


@pytest.mark.parametrize("column", [0, 70])
@pytest.mark.parametrize("kind, side", [("forward_kl", "student"), ("reverse_kl", "teacher")])
def test_a_kl_is_infinite_where_its_second_model_excludes_what_its_first_does_not(kind, side, column, device):
    """Also where the excluded token comes before those that make it unlikely, and the sum is rescaled."""
    c = case((kind, {}))
    (c.x if side == "teacher" else c.y)[0, 1:] += 60
    _, _, values = visited(without(c, **{side: [column]}), device)
    assert (values.terms == math.inf).all()


@pytest.mark.parametrize("column", [0, V - 1])
@pytest.mark.parametrize("kind, side", [("forward_kl", "student"), ("reverse_kl", "teacher")])
def test_a_probability_that_vanishes_in_float32_makes_no_infinity(kind, side, column, device):
    """Whether the token is seen before those that make it nothing, or after them."""
    c = case((kind, {}))
    (c.x if side == "teacher" else c.y)[:, [v for v in range(V) if v != column]] += 200
    _, _, values = visited(without(c, **{side: [column]}), device)
    assert values.terms.isfinite().all()


# -- weights ----------------------------------------------------------------------------------------------------------


def test_a_weight_of_zero_adds_nothing_to_the_loss_even_if_the_value_is_infinite(device):
    c = without(
        case(("reverse_kl", {}), ("alpha_beta", {"alpha": -0.3, "beta": 0.8}), ("jsd", {"beta": 0.5})), teacher=[5]
    )
    for term in c.terms[:2]:
        term.weight.zero_()
    loss, dz, values = visited(c, device)
    loss_, dz_, _ = expected(replace(c, terms=c.terms[2:]))
    assert (values.terms[:2] == math.inf).all()
    assert float(loss) == pytest.approx(float(loss_), rel=1e-5)
    assert relative(dz, dz_) < 1e-5


def test_rows_without_weight_have_values_and_no_gradient(device):
    c = case(("forward_kl", {}), ("jsd", {"beta": 0.5}), ("cross_entropy", {}))
    for term in c.terms:
        term.weight[1] = 0
    assert_is_the_formula(c, device)
    _, dz, _ = visited(c, device)
    assert (dz[1] == 0).all() and (dz[0] != 0).any()


def test_a_student_without_weight_may_be_no_distribution(device):
    c = case(("reverse_kl", {}), ("jsd", {"beta": 0.5}), ("cross_entropy", {}))
    c.x[1, 3] = math.nan
    for term in c.terms:
        term.weight[1] = 0
    loss, dz, _ = visited(replace(c, head={"bias": torch.zeros(V, dtype=F64)}), device)
    assert loss.isfinite() and dz.isfinite().all() and (dz[1] == 0).all()


@pytest.mark.parametrize("name", MEASURED)
def test_weights_that_are_measured(name, device):
    kinds = [("forward_kl", {}), ("total_variation", {})]
    if name == "student_entropy":
        kinds.append(("cross_entropy", {}))
    c = case(*kinds, tau=(2.0, 2.0))
    assert_is_the_formula(replace(c, terms=[replace(t, weighting=MEASURED[name]) for t in c.terms]), device)
