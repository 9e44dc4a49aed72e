"""The Triton row kernel where it is used: through the engine, in low precision, compiled, and on a GPU."""

import ast
import importlib.util
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from llmkd.objectives import engine, kernels, rows
from llmkd.objectives.dense import dense_loss
from llmkd.objectives.divergences import VALUES
from llmkd.objectives.engine import TokenFault, fused_loss
from llmkd.objectives.request import Request, Values, WeightedTerm
from llmkd.objectives.rows import Rows
from llmkd.objectives.sparse import SparseRows
from llmkd.types import Head, Logits, States

from kernel_cases import (
    MANY,
    TERMS,
    V,
    assert_same,
    case,
    expected,
    logits_of,
    needs_triton,
    programs,
    randn,
    relative,
    visited,
)

pytestmark = [needs_triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # inf - inf in the interpreter


# -- where the gradient goes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_gradient_can_go_elsewhere_rounded_once(dtype, device):
    c = case(("forward_kl", {}), ("jsd", {"beta": 0.5}), ("cross_entropy", {}))
    _, dz, _ = visited(c, device)
    wide = torch.full((3, V + 5), 7.0, dtype=dtype, device=device)
    _, z, _ = visited(c, device, out=wide[:, :V])
    assert torch.equal(z, logits_of(c, device))
    torch.testing.assert_close(wide[:, :V], dz.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)
    assert (wide[:, V:] == 7).all()


def test_without_a_gradient_the_logits_stay(device):
    c = case(("forward_kl", {}), ("jsd", {"beta": 0.5}))
    z, request = logits_of(c, device), c.request(torch.float32, device)
    values = Values.zeros(2, 1, 3, like=z)
    loss = kernels.visit(Rows(z, [request.teachers[0].logits], slice(0, 3)), c.full_head(), request, values, False)
    assert float(loss) == pytest.approx(float(expected(c)[0]), rel=1e-5)
    assert torch.equal(z, logits_of(c, device))


def test_a_teacher_with_more_columns_than_the_vocabulary(device):
    c = case(("forward_kl", {}), ("jsd", {"beta": 0.5}))
    z, request = logits_of(c, device), c.request(torch.float32, device)
    wide = torch.full((3, V + 9), 50.0, device=device)
    wide[:, :V] = request.teachers[0].logits
    values = Values.zeros(2, 1, 3, like=z)
    taught = [wide[:, :V]]
    assert kernels.serves(z, taught, request) and taught[0].stride(0) == V + 9
    loss = kernels.visit(Rows(z, taught, slice(0, 3)), c.full_head(), request, values, True)
    assert_same((loss, z, values), expected(c))


# -- through the engine -----------------------------------------------------------------------------------------------


def student(tokens: int, dtype: torch.dtype, device: str, rows_: int = V, width: int = 16, near: float = 1.0):
    """Hidden states and head, and a teacher that is them with noise."""
    hidden, weight = randn(tokens, width, seed=1), 3 * randn(rows_, width, seed=2) / math.sqrt(width)
    other = (
        hidden + near * randn(tokens, width, seed=3),
        weight + near * randn(rows_, width, seed=4) / math.sqrt(width),
    )
    hidden, weight, *other = [x.to(device, dtype) for x in (hidden, weight, *other)]
    return hidden, weight, States(other[0], Head(other[1]))


def through(engine_call, hidden, weight, teacher, terms, **settings):
    """Loss, gradients and values of one call, in the precision of what it is given."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    terms = [replace(t, weight=t.weight.to(hidden.device)) for t in terms]
    request = Request(torch.arange(len(hidden), device=hidden.device), [teacher], terms, len(weight), **settings)
    loss, values = engine_call(hidden, Head(weight), request)
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad, values


def wide(teacher: States) -> States:
    return States(teacher.hidden.cpu().double(), Head(teacher.head.weight.cpu().double()))


def engine_terms(tokens: int) -> list[WeightedTerm]:
    weights = [randn(tokens, seed=20 + k).sigmoid() for k in range(3)]
    weights[0][1] = weights[1][1] = weights[2][1] = 0
    kinds = [("forward_kl", 0), ("jsd", 0), ("cross_entropy", None)]
    return [WeightedTerm(kind, w, teacher) for (kind, teacher), w in zip(kinds, weights, strict=True)]


def test_the_engine_takes_it_chunk_by_chunk(device, monkeypatch):
    def never(*args):
        raise AssertionError("the torch path was taken")

    monkeypatch.setattr(engine.rows, "visit", never)
    hidden, weight, teacher = student(5, torch.float32, device)
    loss, *gradients, values = through(fused_loss, hidden, weight, teacher, engine_terms(5), chunk=2, tau_student=2.0)
    truth = through(
        dense_loss, hidden.cpu().double(), weight.cpu().double(), wide(teacher), engine_terms(5), tau_student=2.0
    )
    assert float(loss) == pytest.approx(float(truth[0]), rel=1e-5)
    for found, gradient in zip(gradients, truth[1:3], strict=True):
        assert relative(found, gradient) < 1e-5
    kept = [0, 2, 3, 4]
    torch.testing.assert_close(values.terms[:, kept].cpu().double(), truth[3].terms[:, kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fault", ["nan", "inf", "nothing"])
@pytest.mark.parametrize("kind", ["forward_kl", "jsd"])
def test_a_teacher_that_is_no_distribution_is_named(fault, kind, device):
    hidden, weight, _ = student(4, torch.float32, device)
    logits = randn(4, V, seed=5).to(device, torch.float32)
    if fault == "nothing":
        logits[2] = -math.inf
    else:
        logits[2, 70] = float(fault)
    terms = [WeightedTerm(kind, torch.ones(4), 0)]
    with pytest.raises(TokenFault, match="the logits of teacher 0") as found:
        through(fused_loss, hidden, weight, Logits(logits), terms, chunk=3)
    assert found.value.row == 2


def test_an_infinite_value_is_named(device):
    hidden, weight, _ = student(4, torch.float32, device)
    logits = randn(4, V, seed=5).to(device, torch.float32)
    logits[3, 100] = -math.inf
    with pytest.raises(TokenFault, match="reverse_kl is infinite") as found:
        through(fused_loss, hidden, weight, Logits(logits), [WeightedTerm("reverse_kl", torch.ones(4), 0)])
    assert found.value.row == 3


# -- what it serves ---------------------------------------------------------------------------------------------------


def asked(z: Tensor, taught: list, *terms, **settings) -> bool:
    weighted = [WeightedTerm(k, torch.ones(len(z)), None if k == "cross_entropy" else 0, a) for k, a in terms]
    request = Request(torch.zeros(len(z), dtype=torch.int64), [], weighted, z.shape[1], **settings)
    return kernels.serves(z, taught, request)


def test_what_it_does_not_serve_goes_the_torch_way(device):
    z, y = torch.zeros(2, V, device=device), torch.zeros(2, V, device=device)
    kl = ("forward_kl", {})
    assert asked(z, [y], kl) and asked(z, [], ("cross_entropy", {}))
    assert not asked(z, [y, y], kl)
    assert not asked(z.double(), [y.double()], kl)
    assert not asked(z, [y.bfloat16()], kl)
    assert not asked(z, [torch.zeros(V, 2, device=device).t()], kl)
    assert not asked(z, [SparseRows(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1), None)], kl)
    assert not asked(z, [y], kl, standardize=True)
    for kind in set(VALUES) - {kind for kind, _ in TERMS}:
        assert not asked(z, [y], kl, (kind, {}))
    assert not asked(z, [y], ("mixture", {"of": {"jsd": 0.5, "adaptive_kl": 0.5}}))


def test_a_cpu_is_not_served_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    z = torch.zeros(2, V)
    assert not asked(z, [z.clone()], ("forward_kl", {}))


def test_it_is_imported_without_triton(monkeypatch):
    """Triton stands in no import of the module, and its programs are imported by name when they are first run."""
    tree = ast.parse(Path(kernels.__file__).read_text(encoding="utf-8"))
    imports = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports and not any("triton" in line for line in imports)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not kernels._available.__wrapped__(torch.device("cuda"))


def test_the_numbers_of_both_files_agree(interpreted):
    """The programs know columns and divergences by number, their caller by name."""
    names = [n.upper() for n in kernels.FOUND]
    for name in ("TOP", "SUM", "ENTROPY", "TAU_SUM", "TAU_ENTROPY", "AGREEMENT", "FORWARD_KL", "REVERSE_KL"):
        assert names.index(name) == getattr(interpreted, name).value
    teacher = interpreted.TEACHER.value
    assert names[teacher : teacher + 5] == [f"TEACHER_{n}" for n in names[:5]]
    assert interpreted.FIRST.value == 1 + kernels.REVERSE_KL
    numbers = (
        interpreted.JSD, interpreted.SKEW_FORWARD, interpreted.SKEW_REVERSE, interpreted.SKEW_REVERSE_DETACHED,
        interpreted.TOTAL_VARIATION, interpreted.HELLINGER, interpreted.ALPHA_BETA,
    )  # fmt: skip
    assert [n.value for n in numbers] == list(range(len(kernels.POINTWISE)))


# -- compilation, for GPUs that are not here --------------------------------------------------------------------------


@dataclass
class Elsewhere:
    """A Triton driver of a GPU that is not there: enough to compile for it."""

    target: object

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.mark.parametrize(
    "vendor, target", [("nvidia", ("cuda", 90, 32)), ("amd", ("hip", "gfx942", 64))], ids=["H100", "MI300"]
)
def test_the_calls_compile(vendor, target, monkeypatch, tmp_path):
    """Every program, with the very arguments it is called with."""
    import triton
    from triton.backends.compiler import GPUTarget

    if vendor not in triton.backends.backends:
        pytest.skip(f"Triton comes without its {vendor} compiler")
    module, compiled = programs(interpreted=False), []

    class Program:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid):
            kernel = getattr(module, self.name)
            return lambda **arguments: compiled.append((self.name, kernel.warmup(grid=grid, **arguments)))

    names = ("statistics", "measure", "gradient")
    monkeypatch.setattr(kernels, "_programs", lambda: SimpleNamespace(**{name: Program(name) for name in names}))
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    monkeypatch.setattr(triton.runtime.driver, "_active", Elsewhere(GPUTarget(*target)))
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        visited(case(*MANY, head={"softcap": 8.0}, tau=(2.0, 2.0)), "cpu")
        visited(case(("forward_kl", {}), ("cross_entropy", {})), "cpu", out=torch.zeros(3, V, dtype=torch.bfloat16))
        visited(case(("cross_entropy", {}), untaught=True), "cpu")
    assert [name for name, _ in compiled] == [*names, "statistics", "gradient", "statistics", "gradient"]
    binary = "cubin" if vendor == "nvidia" else "hsaco"
    assert all(len(kernel.asm[binary]) > 0 for _, kernel in compiled)


# -- on a GPU alone ---------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_bfloat16_near_the_teacher_keeps_the_gradient_to_three_thousandths(kind):
    hidden, weight, teacher = student(256, torch.bfloat16, "cuda", rows_=32000, width=128, near=0.03)
    terms = [WeightedTerm(kind, torch.full((256,), 1 / 4096), 0)]
    _, *gradients, _ = through(fused_loss, hidden, weight, teacher, terms, chunk=100)
    _, *truth, _ = through(dense_loss, hidden.cpu().double(), weight.cpu().double(), wide(teacher), terms)
    for found, gradient in zip(gradients, truth, strict=True):
        assert relative(found, gradient) <= 3e-3


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    c = case(*MANY, head={"softcap": 8.0}, tau=(2.0, 2.0))
    visited(c, "cuda")  # compiles
    z, request = logits_of(c, "cuda"), c.request(torch.float32, "cuda")
    values, head = Values.zeros(len(c.terms), 1, 3, like=z), c.full_head()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.visit(Rows(z, [request.teachers[0].logits], slice(0, 3)), head, request, values, True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_real_vocabulary_in_place():
    """Many programs at once over full tiles: what the interpreter, one after the other, could not show."""
    c = case(("forward_kl", {}), ("jsd", {"beta": 0.5}), ("cross_entropy", {}), tokens=512, size=151936)
    request, loss = c.request(torch.float32, "cuda"), {}
    for name, visit in (("torch", rows.visit), ("kernel", kernels.visit)):
        z = c.x.to("cuda", torch.float32)
        values = Values.zeros(3, 1, 512, like=z)
        loss[name] = visit(Rows(z, [request.teachers[0].logits.clone()], slice(0, 512)), Head(z), request, values, True)
        loss[name + " gradient"] = z
    assert float(loss["kernel"]) == pytest.approx(float(loss["torch"]), rel=1e-5)
    assert relative(loss["kernel gradient"], loss["torch gradient"]) < 1e-5
