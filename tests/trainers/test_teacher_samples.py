"""Completions that are drawn once and kept: the same however they are drawn, whole or with interruptions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from llmkd.trainers.teacher_samples import CHUNK, drawn

SAID = {"by": "a teacher", "temperature": 1.0}


class Writer:
    """Two random tokens for each row; notes which rows it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, rows: Sequence[int]) -> list[list[int]]:
        self.asked += rows
        return torch.randint(0, 10**6, (len(rows), 2)).tolist()


def draw(folder: Path, rows: Sequence[int], writer: Writer | None = None, seed: int = 5, **said: Any) -> dict:
    # What would end a line for str.splitlines, and is no end of a line of JSON.
    return drawn(folder / "kept.jsonl", rows, SAID | said, writer or Writer(), lambda ids: f"a\u2028b\x85{ids}", seed,
                 Accelerator(cpu=True))  # fmt: skip


ROWS = list(range(0, 6 * CHUNK, 2))


def test_it_depends_on_the_seed_and_the_rows_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = draw(tmp_path / "a", ROWS)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert draw(tmp_path / "b", ROWS) == first
    assert torch.equal(torch.get_rng_state(), before), "the training would draw otherwise"
    assert draw(tmp_path / "c", ROWS, seed=6) != first
    assert len({tuple(ids) for ids in first.values()}) > len(ROWS) - 3, "chunks repeat each other"


@pytest.mark.parametrize("cut", [0, 1, 40, 1000, 2000, -2, -30, "inside a character"])
def test_wherever_the_file_was_cut_it_ends_up_the_same(tmp_path: Path, cut: Any) -> None:
    first = draw(tmp_path, ROWS)
    file = tmp_path / "kept.jsonl"
    whole = file.read_bytes()
    cut = whole.rindex("\u2028".encode()) + 1 if isinstance(cut, str) else cut
    file.write_bytes(whole[:cut])
    writer = Writer()
    assert draw(tmp_path, ROWS, writer) == first
    assert file.read_bytes() == whole
    near_the_end = cut < 0 or cut > len(whole) - 100
    assert len(writer.asked) == CHUNK if near_the_end else CHUNK < len(writer.asked) <= len(ROWS)


def test_what_is_there_is_not_drawn_again(tmp_path: Path) -> None:
    first = draw(tmp_path, ROWS)
    writer = Writer()
    assert draw(tmp_path, ROWS, writer) == first and not writer.asked


def test_what_was_drawn_otherwise_is_replaced(tmp_path: Path) -> None:
    first = draw(tmp_path, ROWS[:8])
    writer = Writer()
    draw(tmp_path, ROWS[:8], writer, temperature=0.5)
    assert writer.asked == ROWS[:8]
    header, *lines = (tmp_path / "kept.jsonl").read_text().split("\n")
    assert json.loads(header) == {"drawn": SAID | {"temperature": 0.5}} and len(lines) == 8 + 1
    assert draw(tmp_path, ROWS[:8]) == first
