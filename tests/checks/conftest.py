"""Planted faults: `find` tries the laws of a group before and after, and asserts what must be found."""

from collections.abc import Callable
from typing import Any

import pytest

from llmkd.checks import report
from llmkd.checks.law import Result, Setting
from llmkd.checks.verify import collect, run

Plant = Callable[[pytest.MonkeyPatch], None]


def failing(group: str, *entries: str, **setting: Any) -> list[Result]:
    return [r for r in run(collect(Setting(**setting), [group], entries)) if not r.passed]


@pytest.fixture(name="failing")
def failing_fixture() -> Callable[..., list[Result]]:
    return failing


@pytest.fixture
def find(monkeypatch) -> Callable[..., None]:
    """All laws hold; with the fault, `laws` of `entry` fail (others of it may), and none of the entries in `spared`."""

    def found(group: str, plant: Plant, entry: str, laws: tuple[str, ...], spared: tuple[str, ...] = ()) -> None:
        assert failing(group, entry, *spared) == []
        plant(monkeypatch)
        results = failing(group, entry, *spared)
        assert {r.entry for r in results} == {entry}
        assert {r.law for r in results} >= set(laws)
        for result in results:
            assert result.failure is not None and not result.error <= result.tolerance
        for text in report.failures(results):
            assert text.startswith(f"FAILED {entry}: ") and "smallest failing case" in text

    return found
