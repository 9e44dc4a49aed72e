"""What an evaluation found: files in the ``eval`` folder of a run, one for each task, model and setting.

``<task>@<key>.json``          a Record
``<task>@<key>.items.jsonl``   what it found on each item, in the order of the task: what paired intervals need

The key is a digest of the model's fingerprint, the task's version and the settings that change its numbers.  What is
there under its key is not computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmkd.evaluation.intervals import Estimate
from llmkd.trainers.checkpoints import write_whole

Better = Literal["higher", "lower"]
WEIGHTS = ("*.safetensors", "*.bin")
FILES_OF_A_MODEL = (*WEIGHTS, "*.json", "*.model", "*.jinja", "*.txt", "*.py")


@dataclass(frozen=True)
class Metric:
    """One number of a task.  better: which way is up, None where neither is; unit: such as ``nats/token``."""

    estimate: Estimate
    better: Better | None = None
    unit: str = ""


@dataclass(frozen=True)
class Record:
    """What was found.  task: its name; version: changes when its numbers would; model: a fingerprint; settings: what
    changes the numbers (shots, limit, chat template, teacher ...); metrics: by name; details: curves, groups and
    whatever else a report draws, as JSON; versions: of the packages; seconds: what it took.
    """

    task: str
    version: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def key(self) -> str:
        return key_of(self.version, self.model, self.settings)


def key_of(version: str, model: str, settings: Mapping[str, Any]) -> str:
    said = json.dumps([version, model, settings], sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(said.encode(), digest_size=5).hexdigest()


class Store:
    """The records in a folder.  A kill leaves a record whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, task: str, version: str, model: str, settings: Mapping[str, Any]) -> Record | None:
        path = self._path(task, key_of(version, model, settings))
        return read_record(path) if path.is_file() else None

    def write(self, record: Record, items: Iterable[Mapping[str, Any]] = ()) -> Path:
        """The items first: where the record is, they are too."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(record.task, record.key)
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
        if lines:
            write_whole(_items_path(path), "".join(lines))
        else:
            _items_path(path).unlink(missing_ok=True)
        write_whole(path, json.dumps(asdict(record), ensure_ascii=False) + "\n")
        return path

    def items(self, record: Record) -> list[dict[str, Any]]:
        path = _items_path(self._path(record.task, record.key))
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [
            json.loads(line) for line in text.split("\n") if line
        ]  # splitlines would cut texts at U+2028 and others

    def records(self) -> Iterator[Record]:
        """All that are there, the newest last; ValueError at a file that holds none."""
        paths = sorted(self.folder.glob("*@*.json"), key=lambda p: (p.stat().st_mtime_ns, p.name))
        return (read_record(path) for path in paths)

    def _path(self, task: str, key: str) -> Path:
        return self.folder / f"{task.replace('/', '__')}@{key}.json"


def read_record(path: Path) -> Record:
    """ValueError, with what to do, for a file that holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        metrics = {
            name: Metric(Estimate(**metric["estimate"]), metric["better"], metric["unit"])
            for name, metric in found["metrics"].items()
        }
        return Record(**{**found, "metrics": metrics})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a result of llmkd-eval ({error}): delete it, and it is measured again") from None


def _items_path(record: Path) -> Path:
    return record.with_suffix(".items.jsonl")


def fingerprint(folder: Path, names: Sequence[str] = FILES_OF_A_MODEL) -> str:
    """A digest of the contents of a model's files; ValueError where there are no weights."""
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        raise ValueError(f"{folder}: holds no weights ({', '.join(WEIGHTS)}): give the folder of a saved model")
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({path for name in names for path in folder.glob(name)}):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()
