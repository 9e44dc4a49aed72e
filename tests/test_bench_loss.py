"""The benchmark of the loss head: what it measures is right, what is wrong is not timed, its goals are read right."""

import io
import json
import math
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "eval" / "bench"))

import loss as bench
import measure
from implementations import IMPLEMENTATIONS, KNOBS, Implementation, gemm4, llmkd
from inputs import Case, Inputs, Shape, make_inputs
from reference import products, reference, refusal, relative_errors
from targets import evaluate, with_ratios

pytestmark = pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")

TINY = Shape(64, 500, 16, 24)
EAGER = [name for name, row in IMPLEMENTATIONS.items() if not row.compiled and name != "gemm4"]
GRID = [(name, divergence) for name in EAGER for divergence in IMPLEMENTATIONS[name].divergences]


def installed(name: str) -> bool:
    package = IMPLEMENTATIONS[name].package
    return package is None or find_spec(package) is not None


# -- the truth and the implementations --------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", KNOBS)
def test_the_reference_is_the_formula_written_for_one_token_and_two_words(divergence):
    z, y = [0.3, -0.7], [1.1, 0.2]
    one, two = torch.ones(1, 1), torch.ones(1, 2)
    inputs = Inputs(one, torch.tensor(z)[:, None], two / 2, torch.tensor(y)[:, None].expand(2, 2), torch.zeros(1))
    q0, p0 = (1 / (1 + math.exp(x[1] - x[0])) for x in (z, y))
    p, q = (p0, 1 - p0), (q0, 1 - q0)

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    def mix(share):
        return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]

    expected = {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jsd": (kl(p, mix(0.5)) + kl(q, mix(0.5))) / 2,
        "skew_forward_kl": kl(p, mix(0.1)),
        "skew_reverse_kl": kl(q, mix(0.9)),
    }
    assert float(reference(inputs, divergence)["loss"]) == pytest.approx(expected[divergence], rel=1e-6)


@pytest.mark.parametrize("divergence", KNOBS)
def test_a_teacher_at_no_distance_has_no_loss_and_no_gradient(divergence):
    found = reference(make_inputs(Case(TINY, divergence, near=0.0)), divergence)
    assert all(float(x.abs().max()) < 1e-12 for x in found.values())


def test_the_gradients_of_the_reference_are_its_slopes():
    inputs, step = make_inputs(Case(Shape(3, 20, 4, 6), "jsd", dtype="float64")), 1e-5
    found = reference(inputs, "jsd")
    for name, leaf in (("hidden", inputs.hidden), ("head", inputs.head)):
        direction = torch.randn(leaf.shape, dtype=leaf.dtype, generator=torch.Generator().manual_seed(1))
        sides = []
        for sign in (1, -1):
            leaf.data += sign * step * direction
            sides.append(float(reference(inputs, "jsd")["loss"]))
            leaf.data -= sign * step * direction
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(float((found[name] * direction).sum()), rel=1e-6)


@pytest.mark.parametrize("name, divergence", GRID)
@pytest.mark.parametrize("near", [None, 0.3])
def test_every_implementation_computes_the_same_number_and_gradients(name, divergence, near):
    if not installed(name):
        pytest.skip(f"{IMPLEMENTATIONS[name].package} is not installed")
    inputs = make_inputs(Case(TINY, divergence, near=near))
    found = IMPLEMENTATIONS[name].step(inputs, divergence)
    errors = relative_errors(found, reference(inputs, divergence))
    # Float32 against float64, of a difference of logits that is small beside them where the teacher is near.
    assert max(errors.values()) < 1e-4, errors


class Products(TorchDispatchMode):
    """The sizes of all matrix products that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            a, b = args[-2:]
            self.sizes.append((*a.shape, b.shape[1]))
        return func(*args, **(kwargs or {}))


def test_the_floor_makes_exactly_the_products_of_ours():
    case = Case(Shape(1100, 500, 16, 24), "forward_kl")
    sizes = []
    for step in (gemm4, llmkd):
        with Products() as made:
            step(make_inputs(case), "forward_kl")
        sizes.append(sorted(made.sizes))
    assert sizes[0] == sizes[1]
    chunks = {rows for rows, width, _ in sizes[0] if width == 24}
    assert len(chunks) > 1 and max(chunks) < 1100, "the case has more than one chunk, and the last one is smaller"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_products_of_the_floor_are_right(dtype):
    inputs = make_inputs(Case(Shape(1100, 500, 16, 24), "forward_kl", dtype=dtype))
    for _ in range(2):  # the second call finds the memory of the first
        assert max(relative_errors(gemm4(inputs, "forward_kl"), products(inputs, None)).values()) < 1e-5


# -- what is wrong is not measured ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor, refused", [(1.0, False), (1.01, True), (math.nan, True)])
def test_a_gradient_that_is_off_is_refused_by_its_name(factor, refused):
    inputs = make_inputs(Case(TINY, "jsd"))
    truth = reference(inputs, "jsd")
    value, grad_hidden, grad_head = llmkd(inputs, "jsd")
    why = refusal(relative_errors((value, grad_hidden, grad_head * factor), truth), 1e-3)
    assert (why is not None) == refused
    if refused:
        assert "head" in why and "hidden" not in why


def test_a_wrong_implementation_is_never_timed(monkeypatch, tmp_path):
    def wrong(inputs: Inputs, divergence: str):
        value, grad_hidden, grad_head = llmkd(inputs, divergence)
        return value, 1.01 * grad_hidden, grad_head

    def no_command() -> Iterator[str]:
        pytest.fail("a command was asked for")
        yield ""

    monkeypatch.setitem(measure.IMPLEMENTATIONS, "llmkd", Implementation(wrong, tuple(KNOBS)))
    case = Case(TINY, "forward_kl")
    torch.save(reference(make_inputs(case), "forward_kl"), tmp_path / "truth.pt")
    job = {"implementation": "llmkd", "case": case.as_json(), "threads": torch.get_num_threads(), "tolerance": 1e-3}
    answers = io.StringIO()
    measure.serve(job | {"reference": str(tmp_path / "truth.pt")}, no_command(), answers)
    (answer,) = map(json.loads, answers.getvalue().splitlines())
    assert answer["status"] == "refused" and "hidden 0.01" in answer["message"]
    assert "seconds" not in answer


def test_a_row_that_was_refused_has_its_error_and_no_time(tmp_path, capsys):
    (row,) = run(tmp_path, "--impl", "gemm4", "--tolerance", "1e-12")["rows"]
    assert row["status"] == "refused" and row["rounds"] == [] and "seconds" not in row
    assert 0 < row["errors"]["head"] < 1e-4
    assert "gemm4, jsd, 64,500,16,24: refused: relative error above 1e-12: " in capsys.readouterr().out


def test_a_process_that_dies_between_two_rounds_is_a_row_that_says_so(tmp_path):
    options = bench.parse(["--impl", "gemm4"])
    with bench.Worker("gemm4", Case(TINY, "jsd"), tmp_path, options) as worker:
        assert worker.answer() and worker.round()
        worker.process.kill()
        worker.process.wait()
        assert not worker.round()
        row = worker.row()
    assert row["status"] == "failed" and row["message"].startswith("killed by signal 9")
    assert len(row["rounds"]) == 1 and "seconds" not in row


def test_a_package_that_is_missing_is_a_row_that_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    document = run(tmp_path, "--impl", "liger,trl_dense", "--no-flat")
    assert [row["status"] for row in document["rows"]] == ["not installed"] * 2
    assert document["rows"][0]["message"] == "liger_kernel is not installed"


# -- the command ------------------------------------------------------------------------------------------------------


def run(folder: Path, *arguments: str) -> dict:
    """What the command wrote, for one tiny case."""
    out = folder / "out.json"
    shape = ",".join(map(str, TINY))
    bench.main(["--shape", shape, "--div", "jsd", "--rounds", "1", "--threads", "1", "--out", str(out), *arguments])
    return json.loads(out.read_text())


def test_the_command_writes_errors_times_memory_and_ratios(tmp_path, capsys):
    names = [name for name in ("gemm4", "llmkd", "trl_dense", "trl_chunked", "liger") if installed(name)]
    document = run(tmp_path, "--impl", ",".join(names))
    timing = [row for row in document["rows"] if row["kind"] == "timing"]
    assert [row["implementation"] for row in timing] == names
    for row in timing:
        assert row["status"] == "ok", row.get("message")
        assert max(row["errors"].values()) < row["tolerance"]
        assert len(row["rounds"]) == 1 and row["peak_bytes"] > 0
        assert row["seconds"] == row["rounds"][0]["seconds"][0] > 0
        assert all(value > 0 for value in row["ratios"].values())
    assert [row["shape"][0] for row in document["rows"] if row["kind"] == "memory"] == [64, 256]
    assert document["versions"]["torch"] and document["machine"]["threads"] == 1
    goals = {target["what"] for target in document["targets"]}
    assert goals >= {"time over gemm4", "memory at N=256 over that at N=64"}
    said = capsys.readouterr().out
    assert all(f"| {name} " in said for name in names)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--impl", "gemm5"], "--impl: there is no gemm5: one or more of gemm4, llmkd"),
        (["--div", "jsd,kl"], "--div: there is no kl: one or more of forward_kl"),
        (["--div", ","], "--div: is empty"),
        (["--shape", "64,500,16"], "'64,500,16' is no shape: give N,V,Hs,Ht"),
        (["--shape", "64,500,16,0"], "is no shape"),
        (["--shape", "64,500,16,16", "--near", "0.03"], "--near: needs Ht > Hs"),
        (["--rounds", "0"], "--rounds: 0 is not above 0"),
        (["--out", "/nowhere/at/all.json"], "--out: there is no folder /nowhere/at"),
    ],
)
def test_a_mistake_on_the_command_line_is_said_in_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.parse(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# -- ratios and goals -------------------------------------------------------------------------------------------------


def row(implementation: str, seconds: float | None = None, peak: int | None = None, **more) -> dict:
    made = {"kind": "timing", "implementation": implementation, "shape": [2048, 32000, 256, 512], "near": None,
            "divergence": "forward_kl", "device": "cpu", "dtype": "float32", "status": "ok"}  # fmt: skip
    return made | {"seconds": seconds, "peak_bytes": peak} | more


def reached(rows: list[dict]) -> dict[str, bool | None]:
    return {target.what: target.reached for target in evaluate(rows)}


def test_goals_on_a_cpu():
    rows = [row("gemm4", 1.0), row("llmkd", 1.14, 100), row("trl_dense", 1.3, 999), row("liger", 1.4, 250)]
    assert reached(rows) == {
        "time over gemm4": True,
        "times as fast as trl_dense": False,  # 1.14 of 1.2
        "times as fast as liger": True,  # 1.23
        "times as fast as trl_chunked": None,
        "memory over trl_dense": False,
        "memory over liger": True,
    }
    jsd = [made | {"divergence": "jsd"} for made in rows]
    assert reached(jsd)["times as fast as liger"] is False
    assert reached(jsd)["memory over liger"] is False  # 0.4 of 0.25


@pytest.mark.parametrize(
    "divergence, vocabulary, limit",
    [("forward_kl", 32000, 1.15), ("jsd", 32000, 1.2), ("skew_reverse_kl", 32000, 1.2), ("reverse_kl", 151936, 1.4)],
)
def test_the_floor_allows_what_the_divergence_and_the_vocabulary_need(divergence, vocabulary, limit):
    for seconds, expected in ((limit - 0.01, True), (limit + 0.01, False)):
        case = {"divergence": divergence, "shape": [1024, vocabulary, 256, 512]}
        rows = [row("gemm4", 1.0, **case), row("llmkd", seconds, **case), row("llmkd_compiled", 1.3, **case)]
        assert reached(rows)["time over gemm4"] is expected
        assert reached(rows).get("time over gemm4, compiled") is (True if vocabulary > 2**16 else None)


def test_goals_on_a_gpu():
    case = {"device": "cuda", "dtype": "bfloat16", "shape": [8192, 151936, 1024, 4096], "divergence": "jsd"}
    head = 4 * 151936 * 1024
    rows = [row("gemm4", 0.75, **case), row("llmkd", 1.0, head + 2**31, **case), row("trl_chunked", 1.7, **case)]
    assert reached(rows) == {
        "throughput over gemm4": True,
        "times as fast as trl_chunked": False,
        "GiB beyond the head gradient": True,
    }


def test_goals_beside_a_near_teacher_count_refused_rows_too():
    case = {"dtype": "bfloat16", "near": 0.03}
    errors = {"llmkd": 2e-3, "liger": 0.3, "trl_dense": 0.01}
    rows = [
        row(name, status="refused", errors={"loss": 9.0, "hidden": error, "head": error / 2}, **case)
        for name, error in errors.items()
    ]
    assert reached(rows) == {
        "relative error of the gradient": True,
        "error of liger over ours": True,
        "error of trl_dense over ours": False,
    }


@pytest.mark.parametrize("many, flat", [(108, True), (120, False)])
def test_memory_is_flat_if_four_times_the_tokens_take_no_more(many, flat):
    rows = [
        row("llmkd", kind="memory", beyond_bytes=bytes_, shape=[n, 32000, 256, 512])
        for n, bytes_ in ((2048, 100), (8192, many))
    ]
    assert reached(rows) == {"memory at N=8192 over that at N=2048": flat}


def test_ratios_stay_within_their_case():
    others = {"divergence": "jsd"}
    rows = with_ratios([row("gemm4", 2.0, 10), row("llmkd", 3.0, 20), row("llmkd", 8.0, 5, **others), row("liger")])
    assert rows[1]["ratios"] == {"seconds/gemm4": 1.5, "seconds/llmkd": 1.0, "peak/llmkd": 1.0}
    assert rows[2]["ratios"]["seconds/gemm4"] is None
    assert set(rows[3]["ratios"].values()) == {None}
