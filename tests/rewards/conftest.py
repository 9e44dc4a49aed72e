"""A sandbox twice where the machine allows namespaces: in them, and with limits alone."""

import tempfile
from pathlib import Path

import pytest

from llmkd.rewards import sandbox
from llmkd.rewards.sandbox import why_not_namespaces


@pytest.fixture(params=["namespaces", "limits"])
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "limits":
        monkeypatch.setattr(sandbox, "why_not_namespaces", lambda: "not asked for")
    elif why_not_namespaces() is not None:
        pytest.skip(f"no namespaces: {why_not_namespaces()}")
    return request.param


@pytest.fixture
def namespaces() -> None:
    if why_not_namespaces() is not None:
        pytest.skip(f"no namespaces: {why_not_namespaces()}")


@pytest.fixture
def nest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where this test's sandboxes have their folders; it stands in their processes' environment, and in no other's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return str(tmp_path)
