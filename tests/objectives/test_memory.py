"""Room for large tensors: writable, as asked for, given back when nobody holds it."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from llmkd.objectives.memory import LARGE, room

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(0, 7), (3, 5), (LARGE // 4096, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_room_is_a_contiguous_tensor_to_write_into(shape, dtype):
    found = room(*shape, dtype=dtype, device=CPU)
    assert found.shape == shape and found.dtype == dtype and found.is_contiguous()
    assert bool((found.fill_(2.5) == 2.5).all())


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the process's memory")
def test_it_is_given_back_with_its_last_view():
    size = 16 * LARGE
    view = room(size // 4, dtype=torch.float32, device=CPU).zero_()[10:20]
    held = resident()
    gone = weakref.ref(view)
    del view
    gc.collect()
    assert gone() is None and resident() < held - size // 2
