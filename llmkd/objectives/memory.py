"""Room for what is as large as the vocabulary times a chunk."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

HUGE_PAGE = 2**21
LARGE = 8 * HUGE_PAGE
"""Bytes from which huge pages are asked for."""


def room(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty tensor; a large one on a CPU lies in huge pages where the system has them.

    glibc gives pieces of more than 32 MiB back when they are freed, so at every step the system has to find and clear
    each of their pages again: 32,000 small ones for a chunk of two models at V = 32000, a twentieth of the step's time.
    """
    count = torch.Size(shape).numel()
    size = count * dtype.itemsize
    if device.type != "cpu" or size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype, count=count).view(shape)
