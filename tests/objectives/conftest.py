"""Where the row kernel's tests run: interpreted on a CPU, or on a GPU."""

from types import ModuleType

import pytest

from llmkd.objectives import kernels

from kernel_cases import TILE, programs


@pytest.fixture(scope="module")
def interpreted() -> ModuleType:
    return programs(interpreted=True)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> str:
    if request.param == "cpu":
        module = request.getfixturevalue("interpreted")
        monkeypatch.setattr(kernels, "INTERPRETED", True)
        monkeypatch.setattr(kernels, "_programs", lambda: module)
        monkeypatch.setattr(kernels, "BLOCK", TILE)
        monkeypatch.setattr(kernels, "SECTION", TILE)
    return request.param
