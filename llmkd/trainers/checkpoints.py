"""Checkpoints that are complete or do not count.

TRL writes a checkpoint file by file; a full disk or a kill half-way leaves a folder that looks like one.  Here the
last file written, after every rank is done, is the mark ``llmkd_state.json``; older checkpoints are removed only after
it stands; a folder without it is never resumed from.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

MARK = "llmkd_state.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SaveError(OSError):
    """Something could not be written; the checkpoints before it are whole."""


@contextmanager
def saving(target: Path, folder: Path) -> Iterator[None]:
    """Turn a full disk, met while writing ``target`` of the run in ``folder``, into a SaveError that says what to
    do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SaveError) or not _is_disk(error):
            raise
        last = newest_complete(folder)
        rescue = f"{last} is whole" if last else "there is no checkpoint yet"
        raise SaveError(
            f"{target}: could not be saved ({str(error).splitlines()[0]}); {rescue}. Make room on the disk and run "
            "again with run.resume=auto"
        ) from error


def checkpoints(folder: Path) -> list[Path]:
    """Folders named like checkpoints, oldest step first, complete or not."""
    found = [p for p in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.rsplit("-", 1)[1].isdigit()]
    return sorted(found, key=lambda p: int(p.name.rsplit("-", 1)[1]))


def newest_complete(folder: Path) -> Path | None:
    """The checkpoint to resume from."""
    return next((p for p in reversed(checkpoints(folder)) if (p / MARK).is_file()), None)


def remove_incomplete(folder: Path) -> list[str]:
    """Delete what a kill or a full disk left half-written; returns the names."""
    broken = [p for p in checkpoints(folder) if not (p / MARK).is_file()]
    for path in broken:
        shutil.rmtree(path)
    return [p.name for p in broken]


def read_mark(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / MARK).read_text())


def save_checkpoint(trainer: Any, save: Callable[[], None], mark: dict[str, Any]) -> None:
    """Run ``save``, then mark the checkpoint as complete, then remove the ones over ``save_total_limit``.

    Raises SaveError, after deleting the unfinished folder, when the disk refuses.
    """
    folder = Path(trainer.args.output_dir)
    target = folder / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None
    try:
        with saving(target, folder):
            save()
            trainer.accelerator.wait_for_everyone()
            if trainer.args.should_save:
                write_whole(target / MARK, json.dumps({"step": trainer.state.global_step, **mark}))
    except SaveError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    finally:
        trainer.args.save_total_limit = limit
    if trainer.args.should_save:
        rotate_checkpoints(
            output_dir=str(folder),
            save_total_limit=limit,
            best_model_checkpoint=trainer.state.best_model_checkpoint,
            use_mtime=True,
        )


def _is_disk(error: Exception) -> bool:
    """Writers in other languages report a full disk as their own error, with the system's message in it."""
    return (isinstance(error, OSError) and error.errno in FULL) or any(
        words in str(error) for words in ("file write failed", "unexpected pos", *(f"(os error {n})" for n in FULL))
    )


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
