"""Writing the page anew while what it shows goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

FILES = ("*.json", "*.jsonl", "*.yaml", "eval/*.json", "baseline/*.json", "baseline/*.jsonl")


def state_of(folders: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files that a page is made of: it changes when one of them does."""
    found = []
    for folder in folders:
        for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
            try:
                told = path.stat()
            except FileNotFoundError:  # replaced between the listing and here
                continue
            found.append((str(path), told.st_mtime_ns, told.st_size))
    return tuple(found)


def changes(folders: Sequence[Path], every: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Yields once for each state of the folders, the present one first."""
    before = None
    while True:
        now = state_of(folders)
        if now != before:
            before = now
            yield
        sleep(every)
