"""Checkpoints that are complete or do not count.

TRL writes a checkpoint file by file; a full disk or a kill half-way leaves a folder that looks like one.  Here the
last file written, after every rank is done, is the mark ``llmkd_state.json``; older checkpoints are removed only after
it stands; a folder without it is never resumed from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

MARK = "llmkd_state.json"


class SaveError(OSError):
    """A checkpoint could not be written; the ones before it are whole."""


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
        save()
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            _write_whole(target / MARK, json.dumps({"step": trainer.state.global_step, **mark}))
    except Exception as error:
        if not _is_disk(error):
            raise
        shutil.rmtree(target, ignore_errors=True)
        last = newest_complete(folder)
        rescue = f"{last} is whole" if last else "there is no earlier one"
        raise SaveError(
            f"{target}: could not be saved ({error}); {rescue}. Make room on the disk and run again with "
            "run.resume=auto"
        ) from error
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
    return (
        isinstance(error, OSError)
        or any(f"os error {n}" in str(error) for n in (27, 28, 122))
        or ("file write failed" in str(error) or "No space left" in str(error))
    )


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
