"""What the engine does on the way: precisions, matrix products, tensors it must not make, tokens it must not touch."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmkd.objectives import engine
from llmkd.objectives.engine import WeightedTerm, fused_loss
from llmkd.types import Head, Logits, States

from dense import (
    F64,
    GRID,
    HS,
    HT,
    Case,
    V,
    assert_is_the_reference,
    case,
    dense_logits,
    dense_value,
    likeliest,
    logits_of,
    randn,
    reference,
    relative,
    request,
    run,
    signals,
)

ALL = list(dict.fromkeys(kind for kind, _ in GRID))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 31])
@pytest.mark.parametrize("kinds", [*([kind] for kind in ALL), ALL], ids=[*ALL, "all"])
@pytest.mark.parametrize("device", DEVICES)
def test_float32_is_within_1e5_of_float64(tokens, kinds, device):
    c = case(tokens, kinds=kinds, bias=True, softcap=5.0, tau_student=2.0, chunk=8).to(torch.float32, device)
    assert_is_the_reference(c, tolerance=1e-5)


@pytest.mark.parametrize("student", [torch.float32, F64])
@pytest.mark.parametrize("teacher", [torch.bfloat16, torch.float16, torch.float32, F64])
@pytest.mark.parametrize("signal", ["states", "logits", "ghost"])
def test_student_and_teacher_may_be_of_different_precisions(student, teacher, signal):
    c = case(31, kinds=["forward_kl", "jsd"], chunk=8)
    low = c.to(teacher).teachers[0]
    logits = logits_of(c.to(teacher).to(F64).teachers[0]).logits.to(teacher)
    logp = logits.to(F64).log_softmax(-1)
    c = c.to(student)
    c.teachers = [{"states": low, "logits": Logits(logits), "ghost": likeliest(logp, 9, "ghost", tail=True)}[signal]]
    assert_is_the_reference(c, tolerance=1e-11 if student == F64 and teacher == F64 else 1e-5)


def near_teacher(dtype: torch.dtype, kind: str, device: str = "cpu") -> Case:
    """A student near its teacher, in low precision throughout, with the weights of 4096 tokens of a step."""
    tokens, width, rows = 64, 64, 1024
    head = Head(3 * randn(rows, width, seed=1) / math.sqrt(width))
    hidden = randn(tokens, width, seed=2)
    near = Head(head.weight + 0.01 * randn(rows, width, seed=4))
    teacher = States(hidden + 0.02 * randn(tokens, width, seed=3), near)
    term = WeightedTerm(kind, torch.full((tokens,), 1 / 4096), 0)
    targets = torch.zeros(tokens, dtype=torch.int64)
    return Case(hidden, head, targets, [teacher], [term], vocabulary=rows, chunk=48).to(dtype, device)


def dense_gradient_with_rounded_logits(c: Case, dtype: torch.dtype) -> Tensor:
    """What the student's states would get if the logits were rounded to ``dtype`` and all else were exact."""
    c = c.to(F64)
    hidden = c.hidden.requires_grad_()
    z = dense_logits(hidden, c.head, c.vocabulary)
    rounded = z + (z.detach().to(dtype).double() - z.detach())
    c.teachers = [Logits(logits_of(c.teachers[0]).logits.to(dtype).double())]
    value = dense_value(c.terms[0], rounded, c)
    (gradient,) = torch.autograd.grad((c.terms[0].weight.double().cpu() * value).sum(), hidden)
    return gradient


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl"])
@pytest.mark.parametrize("device", DEVICES)
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


@pytest.mark.parametrize("device", DEVICES)
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


def test_the_precision_of_the_products_is_asked_for_where_autocast_still_shows(monkeypatch):
    """On a CPU the answer is float32 either way; on a GPU, where it decides, the question is the same."""
    seen = []
    asked = engine._compute_dtype
    monkeypatch.setattr(
        engine, "_compute_dtype", lambda hidden: seen.append(torch.is_autocast_enabled("cpu")) or asked(hidden)
    )
    with torch.autocast("cpu", torch.bfloat16):
        run(case(7).to(torch.float32))
    assert seen == [True]


@pytest.mark.gpu
def test_autocast_on_a_gpu_lowers_the_precision_of_the_products_and_not_of_the_logits():
    c = case(31, bias=True, chunk=8).to(torch.float32, "cuda")
    with torch.autocast("cuda", torch.bfloat16), Watch() as watch:
        _, _, values = run(c)
    assert {dtype for dtype, _ in watch.operands} == {torch.bfloat16} and values.terms.dtype == torch.float32


# -- what it does not compute -----------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Counts matrix products, whatever they write into; keeps dtypes and shapes of their operands and the size of the
    largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.largest = 0
        self.operands: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__.strip("_")
        if name in ("mm", "addmm", "bmm", "matmul", "linear"):
            self.products += 1
            pair = args[1:3] if name == "addmm" else args[:2]
            self.operands += [(x.dtype, tuple(x.shape)) for x in pair]
        made = [x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, Tensor)]
        self.largest = max([self.largest, *(x.numel() for x in made)])
        return out


def test_the_watch_sees_products_of_every_kind():
    a, b, out = torch.ones(2, 3), torch.ones(3, 4), torch.ones(2, 4)
    with Watch() as watch:
        (
            a @ b,
            torch.mm(a, b, out=out),
            torch.addmm(out, a, b, out=out),
            out.addmm_(a, b),
            torch.nn.functional.linear(a, a),
        )
    assert watch.products == 5 and watch.largest == 8
    assert [shape for _, shape in watch.operands[:8]] == 4 * [(2, 3), (3, 4)]


@pytest.mark.parametrize("chunk, whole", [(16, False), (63, False), (64, True)])
@pytest.mark.parametrize("kinds", [["forward_kl"], ALL], ids=["one", "all"])
def test_no_tensor_of_tokens_times_vocabulary_is_made_unless_a_chunk_is_that_large(kinds, chunk, whole):
    c = case(64, kinds=kinds, chunk=chunk, standardize=True, tau_student=2.0)
    with Watch() as watch:
        run(c)
    assert (watch.largest >= 64 * V) == whole


def test_a_sparse_teacher_makes_no_tensor_of_tokens_times_vocabulary_either():
    c = case(64, kinds=["forward_kl", "reverse_kl"], chunk=16)
    c.teachers = [likeliest(logits_of(c.teachers[0]).logits.log_softmax(-1), 9, "ghost")]
    with Watch() as watch:
        run(c)
    assert watch.largest < 64 * V


@pytest.mark.parametrize("kinds", [["forward_kl"], ["forward_kl", "reverse_kl", "cross_entropy"], ALL], ids=len)
@pytest.mark.parametrize("frozen, products", [((), 4), (("weight",), 3), (("hidden",), 3)])
def test_matrix_products_are_as_many_with_one_term_as_with_all(kinds, frozen, products):
    """Student's and teacher's logits, the gradient to the states and to the head."""
    c = case(20, kinds=kinds, chunk=64, frozen=frozen)
    with Watch() as watch:
        run(c)
    assert watch.products == products


@pytest.mark.parametrize("signal", ["logits", "ghost"])
def test_a_teacher_that_brings_numbers_costs_no_product(signal):
    c = case(20, chunk=64)
    logits = logits_of(c.teachers[0])
    c.teachers = [logits if signal == "logits" else likeliest(logits.logits.log_softmax(-1), 9, "ghost")]
    with Watch() as watch:
        run(c)
    assert watch.products == 3


def test_without_grad_there_is_a_loss_and_no_gradient_is_computed():
    c = case(20, chunk=64)
    c.leaves()["weight"].requires_grad_()
    with torch.no_grad(), Watch() as watch:
        loss, _ = fused_loss(c.hidden, c.head, request(c))
    assert watch.products == 2 and not loss.requires_grad
    assert float(loss) == pytest.approx(float(reference(c)[0]), rel=1e-11)


def test_where_nothing_needs_a_gradient_none_is_computed():
    c = case(20, kinds=ALL, chunk=64)
    expected, _, _ = reference(c)
    c.hidden, c.head = c.hidden.detach(), Head(c.head.weight.detach())
    with Watch() as watch:
        loss, _ = fused_loss(c.hidden, c.head, request(c))
    assert watch.products == 2 and not loss.requires_grad
    assert float(loss) == pytest.approx(float(expected), rel=1e-11)


# -- tokens that no term looks at -------------------------------------------------------------------------------------

KEPT = torch.arange(31) % 3 > 0


def masked(kinds=("forward_kl", "reverse_kl", "cross_entropy"), **settings) -> Case:
    """A case of 31 tokens of which every third weighs nothing."""
    c = case(31, kinds=kinds, chunk=4, **settings)
    c.terms = [replace(t, weight=t.weight * KEPT) for t in c.terms]
    return c


@pytest.mark.parametrize("kinds", [["forward_kl", "cross_entropy"], ALL], ids=["two", "all"])
def test_a_weight_of_zero_is_as_if_the_token_were_not_there(kinds):
    tau = 0.5 + randn(31, seed=41).square()
    c = masked(kinds, tau_student=tau, tau_teacher=1 / tau)
    short = c.only(KEPT)
    (loss, gradients, values), (short_loss, short_gradients, short_values) = run(c), run(short)
    torch.testing.assert_close(loss, short_loss)
    torch.testing.assert_close(gradients["weight"], short_gradients["weight"])
    torch.testing.assert_close(gradients["hidden"][KEPT], short_gradients["hidden"])
    assert (gradients["hidden"][~KEPT] == 0).all()
    for name, value in vars(values).items():
        torch.testing.assert_close(value[..., KEPT], getattr(short_values, name))
        assert (value[..., ~KEPT] == 0).all()


@pytest.mark.parametrize("signal", ["states", "logits", "topk", "ghost"])
def test_masked_tokens_of_every_signal_are_the_reference(signal):
    c = masked(["forward_kl", "hellinger"])
    logits = logits_of(c.teachers[0])
    logp = logits.logits.log_softmax(-1)
    sparse = {"topk": likeliest(logp, 9, "topk"), "ghost": likeliest(logp, 9, "ghost", tail=True)}
    c.teachers = [{"states": c.teachers[0], "logits": logits, **sparse}[signal]]
    assert_is_the_reference(c)


@pytest.mark.parametrize("explicit", [False, True])
def test_masked_tokens_are_dropped_before_the_first_product(explicit):
    c = masked()
    c.chunk, c.keep = 64, KEPT if explicit else None
    with Watch() as watch:
        run(c)
    kept = int(KEPT.sum())
    shapes = [shape for _, shape in watch.operands]
    assert shapes[:4] == [(kept, HS), (HS, V), (kept, HT), (HT, V)]
    assert 31 not in {size for shape in shapes for size in shape}


def test_a_token_is_kept_if_any_term_looks_at_it():
    c = case(31, chunk=4)
    c.terms = [replace(t, weight=t.weight * (torch.arange(31) % 3 == k)) for k, t in enumerate(c.terms)]
    assert_is_the_reference(c)
    assert (run(c)[2].entropy > 0).all()


def test_tokens_that_are_kept_are_measured_even_if_they_weigh_nothing():
    c = masked()
    c.keep = torch.ones(31, dtype=torch.bool)
    assert_is_the_reference(c)
    assert (run(c)[2].terms > 0).all()


def test_tokens_that_are_not_kept_add_nothing_whatever_they_weigh():
    c = case(31, kinds=["forward_kl", "cross_entropy"], chunk=4)
    c.keep = KEPT
    loss, gradients, _ = run(c)
    expected_loss, expected, _ = run(masked(["forward_kl", "cross_entropy"]))
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradients, expected)


def test_all_tokens_may_be_visited_without_a_look_at_their_weights():
    c, expected = masked(), reference(masked())
    hidden = c.hidden.requires_grad_()
    loss, values = fused_loss(hidden, c.head, replace(request(c), all_kept=True))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected[0]), rel=1e-11)
    assert relative(hidden.grad, expected[1]["hidden"]) < 1e-11 and (hidden.grad[~KEPT] == 0).all()
    assert (values.terms > 0).all() and (values.entropy > 0).all()


def test_without_a_term_there_is_nothing_to_lose():
    c = case(bias=True)
    c.terms = []
    loss, gradients, values = run(c)
    assert float(loss) == 0 and all((g == 0).all() for g in gradients.values())
    assert values.terms.shape == (0, 7) and values.agreement.shape == (1, 7)


def test_an_infinite_value_with_weight_zero_adds_nothing():
    c = case(kinds=["reverse_kl", "cross_entropy"], bias=True)
    impossible = torch.zeros(V, dtype=F64).index_fill(0, torch.tensor([5]), -math.inf)
    c.teachers = [signals(7, seed=5, bias=impossible)]
    c.terms = [replace(c.terms[0], weight=torch.zeros(7, dtype=F64)), c.terms[1]]
    loss, gradients, values = run(c)
    alone = case(kinds=["cross_entropy"], bias=True)
    alone.terms = c.terms[1:]
    expected_loss, expected, _ = reference(alone)
    assert (values.terms[0] == math.inf).all()
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-11)
    assert all(relative(g, expected[name]) < 1e-11 for name, g in gradients.items())


@pytest.mark.parametrize("explicit", [False, True])
def test_a_call_without_a_token_that_counts_gives_zero_loss_and_zero_gradients(explicit):
    c = case(bias=True)
    if explicit:
        c.keep = torch.zeros(7, dtype=torch.bool)
    else:
        c.terms = [replace(t, weight=torch.zeros(7)) for t in c.terms]
    with Watch() as watch:
        loss, gradients, values = run(c)
    assert float(loss) == 0 and all((g == 0).all() for g in gradients.values())
    assert watch.products == 0 and all((value == 0).all() for value in vars(values).values())


def test_no_tokens_give_zero_loss_with_a_graph_and_zero_gradients():
    c = case(0, bias=True)
    loss, gradients, values = run(c)
    assert float(loss) == 0 and values.terms.shape == (3, 0) and values.agreement.shape == (1, 0)
    assert gradients["hidden"].shape == (0, HS)
    assert (gradients["weight"] == 0).all() and (gradients["bias"] == 0).all()
