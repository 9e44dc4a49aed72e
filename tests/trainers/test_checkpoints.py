"""A checkpoint is complete or it does not count, and the ones before it are touched only when it stands."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError

from llmkd.trainers.checkpoints import (
    MARK,
    SaveError,
    checkpoints,
    newest_complete,
    read_mark,
    remove_incomplete,
    save_checkpoint,
    saving,
)


def make(folder: Path, step: int, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    if complete:
        (path / MARK).write_text(json.dumps({"step": step}))
    return path


def trainer(folder: Path, step: int, limit: int | None = None) -> Any:
    return SimpleNamespace(
        args=SimpleNamespace(output_dir=str(folder), save_total_limit=limit, should_save=True),
        state=SimpleNamespace(global_step=step, best_model_checkpoint=None),
        accelerator=SimpleNamespace(wait_for_everyone=lambda: None),
    )


def writes(folder: Path, step: int, error: Exception | None = None) -> Callable[[], None]:
    def save() -> None:
        make(folder, step, complete=False)
        if error is not None:
            raise error

    return save


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        make(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]


def test_newest_with_its_mark_counts(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None
    make(tmp_path, 9), make(tmp_path, 10), make(tmp_path, 100, complete=False)
    assert newest_complete(tmp_path).name == "checkpoint-10"


def test_only_incomplete_ones_are_removed(tmp_path: Path) -> None:
    make(tmp_path, 1), make(tmp_path, 2, complete=False), make(tmp_path, 3), make(tmp_path, 4, complete=False)
    assert remove_incomplete(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-3"]


def test_mark_is_written_last_and_read_back(tmp_path: Path) -> None:
    def save() -> None:
        make(tmp_path, 5, complete=False)
        assert newest_complete(tmp_path) is None

    save_checkpoint(trainer(tmp_path, 5), save, {"tokens_seen": 7, "seconds": 1.5})
    assert read_mark(newest_complete(tmp_path)) == {"step": 5, "tokens_seen": 7, "seconds": 1.5}


def test_old_ones_are_removed_after_the_new_one_stands(tmp_path: Path) -> None:
    make(tmp_path, 2), make(tmp_path, 4)

    def save() -> None:
        make(tmp_path, 6, complete=False)
        assert (tmp_path / "checkpoint-4" / MARK).exists() and (tmp_path / "checkpoint-2" / MARK).exists()
        assert trained.args.save_total_limit is None, "transformers would remove them before the mark"

    trained = trainer(tmp_path, 6, limit=1)
    save_checkpoint(trained, save, {})
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-6"]
    assert trained.args.save_total_limit == 1


FULL_DISKS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EFBIG, "File too large"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL_DISKS, ids=lambda e: f"{type(e).__name__}-{str(e)[:20]}")
def test_full_disk_leaves_the_checkpoints_before(tmp_path: Path, error: Exception) -> None:
    make(tmp_path, 2), make(tmp_path, 4)
    trained = trainer(tmp_path, 6, limit=1)
    with pytest.raises(SaveError) as caught:
        save_checkpoint(trained, writes(tmp_path, 6, error), {})
    message = str(caught.value)
    assert str(tmp_path / "checkpoint-6") in message and f"{tmp_path / 'checkpoint-4'} is whole" in message
    assert "Make room" in message and "run.resume=auto" in message and "\n" not in message
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    assert trained.args.save_total_limit == 1


def test_first_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="there is no checkpoint yet"):
        save_checkpoint(trainer(tmp_path, 2), writes(tmp_path, 2, FULL_DISKS[0]), {})


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "no such file"), RuntimeError("a bug"), ValueError()]
)
def test_other_errors_are_not_called_a_full_disk(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        save_checkpoint(trainer(tmp_path, 2), writes(tmp_path, 2, error), {})
    assert caught.value is error


def test_save_error_is_not_wrapped_again(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"^inner$"):
        with saving(tmp_path / "outer", tmp_path):
            raise SaveError("inner")
