"""Products in bfloat16, as on a GPU: their gradients are gathered over several chunks before they are multiplied."""

import pytest
import torch

from llmkd.objectives import engine
from llmkd.objectives.dense import dense_loss
from llmkd.objectives.engine import fused_loss
from llmkd.objectives.request import Request, WeightedTerm
from llmkd.types import Head, States

N, V, HS, HT = 50, 123, 16, 24


def gradients(loss_of, dtype: torch.dtype = torch.float32) -> tuple[float, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().to(dtype)

    hidden, weight, bias = (x.requires_grad_() for x in (randn(N, HS), randn(V, HS), randn(V)))
    teacher = States(randn(N, HT), Head(randn(V, HT)))
    terms = [WeightedTerm("jsd", torch.rand(N, generator=generator), 0), WeightedTerm("cross_entropy", torch.ones(N))]
    request = Request(torch.arange(N), [teacher], terms, V, chunk=8)
    loss, _ = loss_of(hidden, Head(weight, bias), request)
    return loss.item(), [g.double() for g in torch.autograd.grad(loss, [hidden, weight, bias])]


@pytest.mark.parametrize("rows", [1, 8, 20, 24, 4096])
def test_gradients_are_those_of_the_dense_formula_however_many_chunks_go_into_a_product(rows, monkeypatch):
    expected_loss, expected = gradients(dense_loss, torch.float64)
    monkeypatch.setattr(engine, "_compute_dtype", lambda hidden: torch.bfloat16)
    monkeypatch.setattr(engine, "PRODUCT_ROWS", rows)
    loss, found = gradients(fused_loss)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for gradient, truth in zip(found, expected, strict=True):
        # The gradient to the logits is rounded once, to 8 bits; what is made of it is exact.
        assert 0 < float((gradient - truth).norm() / truth.norm()) < 3e-3


def test_the_rows_of_a_product_are_those_of_whole_chunks(monkeypatch):
    monkeypatch.setattr(engine, "_compute_dtype", lambda hidden: torch.bfloat16)
    monkeypatch.setattr(engine, "PRODUCT_ROWS", 20)
    seen = []
    product = engine.add_matmul_float32
    monkeypatch.setattr(engine, "add_matmul_float32", lambda t, a, b: (seen.append(a.shape[1]), product(t, a, b)))
    gradients(fused_loss)
    assert seen == [16, 16, 16, 2]
