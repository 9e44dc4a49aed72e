"""Local files of benchmarks: JSON lines, plain or gzipped, anywhere below the folder in ``LLMKD_EVAL_DATA``."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

VARIABLE = "LLMKD_EVAL_DATA"
ENDS = (".jsonl", ".jsonl.gz")


class MissingFile(ValueError):
    """A local file that a task needs is not there."""


def find(name: str, ends: tuple[str, ...] = ENDS) -> Path:
    """The one file ``name.jsonl`` or ``name.jsonl.gz`` below the folder; MissingFile says what to do otherwise."""
    folder = os.environ.get(VARIABLE, "")
    if not folder:
        raise MissingFile(f"{name}{ends[0]}: no folder to find it in: set {VARIABLE} to the folder of your files")
    if not Path(folder).is_dir():
        raise MissingFile(f"{VARIABLE}: {folder} is not a folder: set it to the folder of your files")
    return _find(folder, name, ends)


@lru_cache
def _find(folder: str, name: str, ends: tuple[str, ...]) -> Path:
    found = [path for end in ends for path in sorted(Path(folder).rglob(name + end))]
    if not found:
        said = " or ".join(name + end for end in ends)
        raise MissingFile(f"{said}: not below {folder}, which {VARIABLE} names: put it there")
    if len(found) > 1:
        raise MissingFile(f"{name}{ends[0]}: several below {folder}: {', '.join(map(str, found))}: keep one")
    return found[0]


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a file; MissingFile where there is none, ValueError with the line where it is no JSON."""
    path = find(name)
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = []
        for number, line in enumerate(file, 1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number}: not JSON ({error.msg}): give a JSON object a line") from None
    return rows


def dataset(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Any:
    """Rows as lm_eval wants them.  columns: those to keep; ValueError where a row lacks one."""
    from datasets import Dataset

    kept = []
    for number, row in enumerate(rows, 1):
        lacking = [name for name in columns or () if name not in row]
        if lacking:
            raise ValueError(f"row {number} of a local file has no {lacking[0]!r}: it has {', '.join(row)}")
        kept.append({name: row[name] for name in columns} if columns else dict(row))
    return Dataset.from_list(kept)


def splits(files: Mapping[str, str], columns: Sequence[str] | None = None, **_: Any) -> dict[str, Any]:
    """``custom_dataset`` of a task: split -> file, both named in its ``dataset_kwargs``."""
    return {split: dataset(read(name), columns) for split, name in files.items()}
