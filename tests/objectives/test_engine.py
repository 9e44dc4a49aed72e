"""The engine against dense float64 autograd through plain log_softmax, and what it must not do: hold [N, V], project
twice, round logits."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmkd.objectives import engine
from llmkd.objectives.divergences import TERMS, TermKind
from llmkd.objectives.engine import WeightedTerm, fused_loss
from llmkd.types import Head, Signals

from dense import (
    F64,
    HS,
    HT,
    Case,
    V,
    assert_is_the_reference,
    case,
    dense_logits,
    dense_value,
    focal,
    randn,
    reference,
    relative,
    request,
    run,
    signals,
    total_variation,
)

# -- equal to the reference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 7, 31])
@pytest.mark.parametrize("chunk", [1, 3, 31, 100, None])
def test_loss_and_gradients_are_the_dense_ones_whatever_the_chunk(tokens, chunk):
    assert_is_the_reference(case(tokens, chunk=chunk))


@pytest.mark.parametrize("kind", TERMS)
def test_each_term_alone(kind):
    assert_is_the_reference(case(kinds=[kind], chunk=3))


@pytest.mark.parametrize("block_rows", [1, 2, 5])
def test_row_blocks_change_nothing(block_rows, monkeypatch):
    monkeypatch.setattr(engine, "CPU_BLOCK_BYTES", 4 * V * block_rows)
    assert_is_the_reference(case(7, chunk=6))


@pytest.mark.parametrize("student", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("teacher", [0.5, 1.0, 3.0])
def test_temperatures_touch_the_divergences_and_never_cross_entropy(student, teacher):
    assert_is_the_reference(case(tau_student=student, tau_teacher=teacher, chunk=3))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_every_kind_of_head(bias, softcap, scale):
    teacher = signals(7, seed=5, bias=randn(V, seed=9), softcap=5.0, scale=0.5)
    assert_is_the_reference(case(bias=bias, softcap=softcap, scale=scale, teachers=[teacher], tau_student=2.0, chunk=3))


def test_two_teachers_each_for_its_own_terms():
    c = case(31, teachers=[signals(31, seed=5), signals(31, seed=7, width=HS)], chunk=5)
    c.terms = [WeightedTerm("forward_kl", c.terms[0].weight, 1), *c.terms[1:]]
    assert_is_the_reference(c)


def test_no_teacher_is_needed_for_cross_entropy():
    c = case(kinds=["cross_entropy"], chunk=3)
    c.teachers = []
    assert_is_the_reference(c)


def test_common_rows_of_heads_that_are_padded_differently():
    assert_is_the_reference(case(rows=V + 5, teachers=[signals(7, seed=5, rows=V + 40)], bias=True, chunk=3))


def test_rows_beyond_the_common_vocabulary_get_no_gradient():
    _, gradients, _ = run(case(rows=V + 5, bias=True))
    assert (gradients["weight"][V:] == 0).all() and (gradients["bias"][V:] == 0).all()


@pytest.mark.parametrize("frozen", [("weight",), ("weight", "bias"), ("hidden",), ("bias",)])
def test_what_needs_no_gradient_gets_none_and_changes_nothing_else(frozen):
    c = case(bias=True, chunk=3, frozen=frozen)
    assert_is_the_reference(c)
    assert all(leaf is None or leaf.grad is None for leaf in (getattr(c.head, n, c.hidden) for n in frozen))


@pytest.mark.parametrize("factor", [3.0, -0.125, 0.0])
def test_a_factor_on_the_loss_scales_the_gradients(factor):
    _, expected, _ = reference(case(bias=True))
    _, found, _ = run(case(bias=True, chunk=3), factor=factor)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, factor * expected[name], rtol=1e-10, atol=1e-14)


def test_values_are_unweighted_and_per_token():
    c = case(31, chunk=4, tau_student=2.0)
    _, _, expected = reference(c)
    _, _, found = run(c)
    torch.testing.assert_close(found.terms, expected.terms, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=1e-11, atol=1e-14)
    assert torch.equal(found.agreement, expected.agreement)
    assert not any(x.requires_grad for x in (found.terms, found.entropy, found.agreement))


def test_agreement_marks_the_tokens_with_the_same_most_likely_one():
    c = case(31, chunk=4)
    near = Signals(c.hidden + 0.3 * randn(31, HS, seed=8), c.head)
    c.teachers = [Signals(c.hidden, c.head), near]
    _, _, expected = reference(c)
    _, _, found = run(c)
    assert (found.agreement[0] == 1).all() and 0 < float(found.agreement[1].mean()) < 1
    assert torch.equal(found.agreement, expected.agreement)


# -- weights ----------------------------------------------------------------------------------------------------------


def test_a_weight_of_zero_is_as_if_the_token_were_not_there():
    c, kept = case(31, chunk=4), torch.arange(31) % 3 > 0
    c.terms = [WeightedTerm(t.kind, t.weight * kept, t.teacher) for t in c.terms]
    short = Case(
        c.hidden[kept].clone(), Head(c.head.weight.clone()), c.targets[kept],
        [Signals(c.teachers[0].hidden[kept], c.teachers[0].head)],
        [WeightedTerm(t.kind, t.weight[kept], t.teacher) for t in c.terms],
    )  # fmt: skip
    loss, gradients, _ = run(c)
    short_loss, short_gradients, _ = run(short)
    torch.testing.assert_close(loss, short_loss)
    torch.testing.assert_close(gradients["weight"], short_gradients["weight"])
    torch.testing.assert_close(gradients["hidden"][kept], short_gradients["hidden"])
    assert (gradients["hidden"][~kept] == 0).all()


def test_an_infinite_value_with_weight_zero_adds_nothing():
    c = case(kinds=["reverse_kl", "cross_entropy"], bias=True)
    impossible = torch.zeros(V, dtype=F64).index_fill(0, torch.tensor([5]), -math.inf)
    c.teachers = [signals(7, seed=5, bias=impossible)]
    c.terms = [WeightedTerm("reverse_kl", torch.zeros(7, dtype=F64), 0), c.terms[1]]
    loss, gradients, values = run(c)
    alone = case(kinds=["cross_entropy"], bias=True)
    alone.terms = c.terms[1:]
    expected_loss, expected, _ = reference(alone)
    assert (values.terms[0] == math.inf).all()
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-11)
    assert all(relative(g, expected[name]) < 1e-11 for name, g in gradients.items())


def test_all_weights_zero_give_zero_loss_and_zero_gradients():
    c = case(bias=True)
    c.terms = [WeightedTerm(t.kind, torch.zeros(7), t.teacher) for t in c.terms]
    loss, gradients, _ = run(c)
    assert float(loss) == 0 and all((g == 0).all() for g in gradients.values())


def test_no_tokens_give_zero_loss_with_a_graph_and_zero_gradients():
    c = case(0, bias=True)
    loss, gradients, values = run(c)
    assert float(loss) == 0 and values.terms.shape == (3, 0) and values.agreement.shape == (1, 0)
    assert gradients["hidden"].shape == (0, HS)
    assert (gradients["weight"] == 0).all() and (gradients["bias"] == 0).all()


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 31])
@pytest.mark.parametrize("kinds", [["forward_kl"], ["reverse_kl"], ["cross_entropy"], list(TERMS)], ids="-".join)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_float32_is_within_1e5_of_float64(tokens, kinds, device):
    c = case(tokens, kinds=kinds, bias=True, softcap=5.0, tau_student=2.0, chunk=8).to(torch.float32, device)
    assert_is_the_reference(c, tolerance=1e-5)


def near_teacher(dtype: torch.dtype, kind: str, device: str = "cpu") -> Case:
    """A student near its teacher, in low precision throughout, with the weights of 4096 tokens of a step."""
    tokens, width, rows = 64, 64, 1024
    head = Head(3 * randn(rows, width, seed=1) / math.sqrt(width))
    hidden = randn(tokens, width, seed=2)
    near = Head(head.weight + 0.01 * randn(rows, width, seed=4))
    teacher = Signals(hidden + 0.02 * randn(tokens, width, seed=3), near)
    term = WeightedTerm(kind, torch.full((tokens,), 1 / 4096), 0)
    targets = torch.zeros(tokens, dtype=torch.int64)
    return Case(hidden, head, targets, [teacher], [term], vocabulary=rows, chunk=48).to(dtype, device)


def dense_gradient_with_rounded_logits(c: Case, dtype: torch.dtype) -> Tensor:
    """What the student's states would get if the logits were rounded to ``dtype`` and all else were exact."""
    c = c.to(F64)
    hidden = c.hidden.requires_grad_()
    z = dense_logits(hidden, c.head, c.vocabulary)
    rounded = z + (z.detach().to(dtype).double() - z.detach())
    logp = dense_logits(c.teachers[0].hidden, c.teachers[0].head, c.vocabulary).to(dtype).double().log_softmax(-1)
    value = dense_value(c.terms[0].kind, logp, rounded.log_softmax(-1), c.targets)
    (gradient,) = torch.autograd.grad((c.terms[0].weight.double() * value).sum(), hidden)
    return gradient


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_bfloat16_states_keep_float32_logits_and_statistics(kind, device):
    c = near_teacher(torch.bfloat16, kind, device)
    expected_loss, expected, _ = reference(c)
    loss, found, values = run(c)
    assert loss.dtype == values.terms.dtype == torch.float32
    assert found["hidden"].dtype == found["weight"].dtype == torch.bfloat16
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-4)
    # The rounding of the result alone is 1.7e-3; of the logits it would be twenty times as much and more.
    assert relative(found["hidden"], expected["hidden"]) < 4e-3
    assert relative(found["weight"], expected["weight"]) < 4e-3
    assert relative(dense_gradient_with_rounded_logits(c, torch.bfloat16), expected["hidden"]) > 4e-2


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_float16_gradients_survive_the_token_count_when_the_loss_is_scaled(device):
    c = near_teacher(torch.float16, "forward_kl", device)
    _, expected, _ = reference(c)
    scale = 2.0**16
    _, found, _ = run(c, factor=scale)
    assert found["hidden"].dtype == torch.float16
    assert relative(found["hidden"].double() / scale, expected["hidden"]) < 2e-3
    assert relative(found["weight"].double() / scale, expected["weight"]) < 2e-3


def test_autocast_on_a_cpu_does_not_lower_the_precision_of_the_loss():
    c = case(31, bias=True, chunk=8).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert_is_the_reference(c, tolerance=1e-5)


# -- what it does not compute -----------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Counts matrix products and keeps the size of the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.products += name in ("mm", "addmm", "bmm", "matmul", "linear")
        made = [x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, Tensor)]
        self.largest = max([self.largest, *(x.numel() for x in made)])
        return out


@pytest.mark.parametrize("chunk, whole", [(16, False), (63, False), (64, True)])
def test_no_tensor_of_tokens_times_vocabulary_is_made_unless_a_chunk_is_that_large(chunk, whole):
    c = case(64, chunk=chunk)
    with Watch() as watch:
        run(c)
    assert (watch.largest >= 64 * V) == whole


@pytest.mark.parametrize("kinds", [["forward_kl"], ["forward_kl", "reverse_kl", "cross_entropy"]], ids="-".join)
@pytest.mark.parametrize("frozen, products", [((), 4), (("weight",), 3), (("hidden",), 3)])
def test_matrix_products_are_as_many_with_one_term_as_with_three(kinds, frozen, products):
    """Student's and teacher's logits, the gradient to the states and to the head."""
    c = case(20, kinds=kinds, chunk=64, frozen=frozen)
    with Watch() as watch:
        run(c)
    assert watch.products == products


def test_without_grad_there_is_a_loss_and_no_gradient_is_computed():
    c = case(20, chunk=64)
    c.leaves()["weight"].requires_grad_()
    with torch.no_grad(), Watch() as watch:
        loss, _ = fused_loss(c.hidden, c.head, request(c))
    assert watch.products == 2 and not loss.requires_grad
    assert float(loss) == pytest.approx(float(reference(c)[0]), rel=1e-11)


def test_a_second_derivative_is_refused_rather_than_wrong():
    c = case()
    hidden = c.hidden.requires_grad_()
    loss, _ = fused_loss(hidden, c.head, request(c))
    (gradient,) = torch.autograd.grad(loss * loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# -- new terms: five lines, no closed form ----------------------------------------------------------------------------


def test_a_divergence_without_a_closed_form_works_by_autograd(monkeypatch):
    monkeypatch.setitem(TERMS, "total_variation", TermKind(total_variation))
    assert_is_the_reference(case(31, kinds=["total_variation", "forward_kl"], chunk=4, tau_student=2.0, bias=True))


def test_a_loss_against_the_data_without_a_closed_form_works_by_autograd(monkeypatch):
    monkeypatch.setitem(TERMS, "focal", TermKind(focal, needs_teacher=False, divergence=False))
    assert_is_the_reference(case(31, kinds=["focal", "forward_kl"], chunk=4, tau_student=2.0, bias=True))


# -- refusals ---------------------------------------------------------------------------------------------------------


def with_term(kind: str, weight: Tensor, teacher: int | None):
    def change(c: Case) -> None:
        c.terms = [WeightedTerm(kind, weight, teacher)]

    return change


def with_field(name: str, value):
    return lambda c: setattr(c, name, value)


@pytest.mark.parametrize(
    "change, message",
    [
        (with_field("targets", torch.full((7,), V)), rf"target id {V} is outside the shared vocabulary of {V} rows"),
        (with_field("targets", torch.full((7,), -100)), "target id -100 is outside the shared vocabulary"),
        (with_field("targets", torch.zeros(6, dtype=torch.int64)), r"7 student tokens, but targets of shape \(6,\)"),
        (with_field("hidden", torch.zeros(7, 17)), r"student hidden states \(7, 17\) do not fit the head \(123, 16\)"),
        (with_field("teachers", [signals(6, seed=0)]), "7 student tokens, but the teacher answered for 6"),
        (
            with_field("teachers", [Signals(torch.zeros(7, 5), Head(torch.zeros(V, HT)))]),
            r"teacher hidden states \(7, 5\) do not fit the head \(123, 24\)",
        ),
        (with_field("vocabulary", V + 1), "a shared vocabulary of 124 rows, but the smallest head has 123"),
        (with_term("hinge", torch.ones(7), 0), "no term hinge: one of forward_kl, reverse_kl, cross_entropy"),
        (with_term("forward_kl", torch.ones(7), None), "forward_kl needs a teacher"),
        (with_term("cross_entropy", torch.ones(7), 0), "cross_entropy takes no teacher"),
        (with_term("forward_kl", torch.ones(7), 1), "forward_kl looks at teacher 1, but there are 1 teachers"),
        (with_term("forward_kl", torch.ones(7, 1), 0), r"forward_kl has weights of shape \(7, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    c = case()
    change(c)
    with pytest.raises(ValueError, match=message):
        fused_loss(c.hidden, c.head, request(c))
