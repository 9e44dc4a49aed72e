"""The head, against its formula written out in float64."""

import math

import pytest
import torch

from llmkd.types import Head, matmul_float32


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("scale", [1.0, 0.0625])
def test_logits_are_capped_after_scaled_after_the_product(bias, softcap, scale):
    hidden, weight, offset = randn(5, 7), randn(11, 7, seed=1), randn(11, seed=2)
    found = Head(weight, offset if bias else None, softcap, scale).logits(hidden)
    for n in range(5):
        for v in range(11):
            z = sum(float(hidden[n, h] * weight[v, h]) for h in range(7)) + (float(offset[v]) if bias else 0.0)
            z = scale * z
            z = z if softcap is None else softcap * math.tanh(z / softcap)
            assert float(found[n, v]) == pytest.approx(z, rel=1e-12)


def test_the_first_rows_of_a_head_give_the_first_logits():
    head = Head(randn(11, 7), randn(11, seed=1), softcap=3.0, scale=0.5)
    hidden = randn(5, 7, seed=2)
    torch.testing.assert_close(head.rows(4).logits(hidden), head.logits(hidden)[:, :4])


def test_all_rows_of_a_head_are_the_head():
    head = Head(randn(11, 7))
    assert head.rows(11) is head


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_product_is_not_rounded_to_it(dtype):
    a, b = randn(9, 64).to(dtype), randn(64, 33, seed=1).to(dtype)
    product = matmul_float32(a, b)
    assert product.dtype == torch.float32
    exact = a.double() @ b.double()
    assert float((product - exact).norm() / exact.norm()) < 1e-6
    assert float((exact.to(dtype) - exact).norm() / exact.norm()) > 1e-4


def test_a_float64_product_stays_float64():
    assert matmul_float32(randn(2, 3), randn(3, 4)).dtype == torch.float64
