"""What is wrong with a data file, and where: read only after a reader has failed on it."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet


def first_fault(path: Path) -> str | None:
    """The first damage in a file, as `file: line n: what`, or None if it reads from end to end."""
    if path.suffix == ".parquet":
        return _parquet_fault(path)
    opened = gzip.open if path.suffix == ".gz" else open
    is_lines = ".jsonl" in path.suffixes
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            if ".json" in path.suffixes:
                return _json_fault(file.read(), path)
            for number, line in enumerate(file, start=1):
                fault = _line_fault(line) if is_lines else None
                if fault:
                    return f"{path}: line {number}: {fault}"
    except EOFError:
        return f"{path}: line {number + 1}: the compressed file ends too early; it is truncated"
    except (gzip.BadGzipFile, zlib.error) as error:
        return f"{path}: line {number + 1}: the compressed file is damaged: {error}"
    except UnicodeDecodeError as error:
        return f"{path}: after line {number}: not UTF-8: {error.reason}"
    return None


def _line_fault(line: str) -> str | None:
    if not line.strip():
        return None
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno} of {line.strip()!r:.80}"
    return None if isinstance(value, dict) else f"not an object but {line.strip()!r:.80}"


def _json_fault(text: str, path: Path) -> str | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        lines = text.splitlines()
        if error.msg != "Extra data" or len(lines) < 2:
            return f"{path}: line {error.lineno}: not JSON: {error.msg} at column {error.colno}"
        faults = ((number, _line_fault(line)) for number, line in enumerate(lines, start=1))
        return next((f"{path}: line {number}: {fault}" for number, fault in faults if fault), None)
    return None


def _parquet_fault(path: Path) -> str | None:
    try:
        pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        return f"{path}: not a whole parquet file: {str(error).splitlines()[0]}"
    return None
