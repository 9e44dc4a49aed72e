"""The folder of a study.

study.yaml      the resolved study
table.md        what came out, for people; table.json for programs (its form: `table.py`)
curves.json     how it went, step by step (its form: `curves.py`)
commands.sh     the command of every run
search.json     the trials of a search and the values that were chosen for them
arms/ARM/seed-N       a run folder; seed-N.log beside it: what its processes said
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from llmkd.evaluation.study.loading import StudyError
from llmkd.evaluation.study.sections import Study
from llmkd.trainers.checkpoints import write_whole

LOCK = ".lock"
ORPHAN_SECONDS = 600


def run_folder(study: Study, arm: str, seed: int) -> Path:
    return Path(study.output_dir) / "arms" / arm / f"seed-{seed}"


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[int]:
    """The folder for one ``compare`` alone; yields the lock's file descriptor.

    Runs keep it open too: where a ``compare`` was killed, the next one waits until they have saved and ended.
    StudyError where another ``compare`` is at work in the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StudyError([f"{folder}: cannot be written ({error.strerror}): give another --output-dir"]) from error
    try:
        _take(lock, folder, say)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _take(lock: int, folder: Path, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + ORPHAN_SECONDS
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        holder = os.pread(lock, 20, 0).decode().strip()
        if holder and _alive(int(holder)):
            raise StudyError([f"{folder}: another llmkd compare (process {holder}) is at work in it: wait for it, or "
                              "give another --output-dir"])  # fmt: skip
        if time.monotonic() > deadline:
            raise StudyError([f"{folder}: runs of an llmkd compare that was killed (process {holder}) do not end: end "
                              "them by hand"])  # fmt: skip
        if not told:
            say("waiting for the runs of an llmkd compare that was killed: they save a checkpoint and end")
            told = True
        time.sleep(0.2)


def _alive(process: int) -> bool:
    """Whether a process runs; one that has ended and waits to be asked for its exit code does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:  # it has gone since, or there is no such folder
        return not Path("/proc/self/stat").exists()


def write_study(study: Study) -> None:
    text = yaml.safe_dump(study.to_dict(), sort_keys=False, allow_unicode=True)
    write_whole(Path(study.output_dir) / "study.yaml", text)


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 1) -> None:
    write_whole(path, json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_commands(folder: Path, lines: Sequence[tuple[Mapping[str, str], Sequence[str]]]) -> None:
    """lines: (environment, words) of every run, the words with ``{OUT}`` for the study's folder."""
    text = [
        "# The command of every run, to be repeated in the folder in which llmkd compare ran:",
        "#   OUT=somewhere-else sh commands.sh",
        'OUT="${OUT:-repeated}"',
        *(" ".join([*(f"{name}={value}" for name, value in environment.items()), *map(_quoted, words)])
          for environment, words in lines),
    ]  # fmt: skip
    write_whole(folder / "commands.sh", "\n".join(text) + "\n")


def _quoted(word: str) -> str:
    before, mark, after = word.partition("{OUT}")
    return f'{before}"$OUT"{shlex.quote(after) if after else ""}' if mark else shlex.quote(word)
