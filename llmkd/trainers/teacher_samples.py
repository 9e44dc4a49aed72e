"""What a teacher writes to prompts, drawn once before a training and kept: sequence-level distillation's data.

The file is JSON lines: first what it was drawn from and how, then a line for each row.  Rows are drawn in chunks that
are the same however many processes there are, each with a seed of its own: interrupted and run again, the file ends up
the same.

Paper: Kim and Rush, Sequence-Level Knowledge Distillation, 2016 (arXiv 1606.07947), here with samples in place of the
likeliest sequence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from llmkd.trainers.checkpoints import write_whole

CHUNK = 32
Completions = dict[int, list[int]]
"""Row -> the tokens of its completion."""


def drawn(
    path: Path, rows: Sequence[int], said: Mapping[str, Any], write: Callable[[Sequence[int]], list[list[int]]],
    decode: Callable[[list[int]], str], seed: int, accelerator: Any,
) -> Completions:  # fmt: skip
    """Completions of ``rows``, of which those in the file at ``path`` are not drawn again.

    said: what the completions depend on (a file that says something else is replaced); write: tokens of the completions
    of some rows, by torch's generators.  All processes must call this; they share the file.
    """
    accelerator.wait_for_everyone()  # nobody reads what another run is still writing
    found = _read(path, said)
    if accelerator.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"drawn": said}), *(_line(row, ids, decode) for row, ids in found.items())]
        write_whole(path, "".join(f"{line}\n" for line in lines))
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    missing = [chunk for chunk in chunks if any(row not in found for row in chunk)]
    rank, ranks = accelerator.process_index, accelerator.num_processes
    for start in range(0, len(missing), ranks):
        # A process without a chunk of its own draws the last one too: sharded teachers need all of them.
        mine = missing[min(start + rank, len(missing) - 1)]
        with torch.random.fork_rng(devices=_devices(accelerator.device)):
            torch.manual_seed(_seed_of(seed, mine[0]))
            new = dict(zip(mine, write(mine), strict=True))
        for part in gather_object([new]):
            fresh = {row: ids for row, ids in part.items() if row not in found}
            found |= fresh
            if accelerator.is_main_process:
                _append(path, [_line(row, ids, decode) for row, ids in fresh.items()])
    return {row: found[row] for row in rows}


def _read(path: Path, said: Mapping[str, Any]) -> Completions:
    """What the file holds, but for a last line that was cut short; nothing where it was drawn otherwise."""
    # Not splitlines: what a model writes may hold other characters that end a line.  A cut may fall inside one.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    if not lines or _parsed(lines[0]) != {"drawn": json.loads(json.dumps(said))}:
        return {}
    rows = [row for row in map(_parsed, lines[1:]) if row is not None]
    return {row["row"]: row["ids"] for row in rows}


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _line(row: int, ids: list[int], decode: Callable[[list[int]], str]) -> str:
    return json.dumps({"row": row, "ids": ids, "text": decode(ids)}, ensure_ascii=False)


def _append(path: Path, lines: Sequence[str]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def _seed_of(seed: int, row: int) -> int:
    return (seed * 1_000_003 + row + 1) % 2**63


def _devices(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []
