"""Where rows of text come from: a local file or folder, a data set of the hub, or the corpus in this package."""

from __future__ import annotations

import difflib
import glob
import gzip
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from datasets import Dataset, Features, IterableDataset, Json, List, Value

from llmkd.data.faults import first_fault
from llmkd.data.render import FORMATS, row_format

if TYPE_CHECKING:
    from llmkd.config import DatasetSource

    AnyDataset = Dataset | IterableDataset

EMBEDDED = "llmkd/quickstart"
TASKS = "llmkd/tasks"
KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
DOCUMENT_BREAK = "<|endoftext|>"
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval", "heldout")


def load(source: DatasetSource, *, where: str, numbers: Sequence[str] = (), prompts: bool = False) -> AnyDataset:
    """The rows of one source, with its columns renamed and checked, at most `max_rows` of them. `numbers` names columns
    that are read beside the text; `prompts`: rows of prompts alone will do.

    `path` is one of:

    * a file: `.jsonl`, `.json`, `.parquet`, or `.txt`, where one file is one row `text`, or, if lines that hold only
      `<|endoftext|>` separate documents, each document is, without the newlines around it (`.gz` is read too);
    * a folder of such files of one kind; with file names such as `train-0.jsonl` and `test.jsonl` those of the split;
      `data_files` (a name or pattern, a list of them, or either for each split) chooses among them;
    * a folder that `Dataset.save_to_disk` wrote;
    * the name of a data set of the hub (`name` is its configuration);
    * `llmkd/quickstart` with `name` code, prose or math;
    * `llmkd/tasks` with `name` a task of `llmkd.data.tasks.table`, `max_rows` problems of it: made, not read, as
      `options` say (its difficulty and a `seed`). Columns: prompt, completion, answer (for the task's grader), task.

    A file has one split, which `split` may slice: `train[:95%]`.

    Raises:
        ValueError: a missing or damaged file, an unknown split, an empty data set, or columns of no accepted format.
    """
    path = str(source.path)
    if source.streaming and "[" in source.split:
        raise ValueError(
            f"{where}.split: a stream cannot be sliced ({source.split!r}); use max_rows or streaming: false"
        )
    if path == EMBEDDED:
        dataset = _embedded(source, where)
    elif path == TASKS:
        dataset = _problems(source, where)
    elif _is_local(path):
        dataset = _local(source, Path(path).expanduser(), where)
    else:
        dataset = _hub(source, where)
    columns = _columns(dataset, where)
    _refuse_no_column(numbers, columns, where)
    dataset = _renamed(dataset, columns, source.columns or {}, where, numbers, prompts)
    if source.max_rows is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.take(source.max_rows)
    return dataset.select(range(min(source.max_rows, len(dataset))))


def _columns(dataset: AnyDataset, where: str) -> list[str]:
    """The columns of a data set that holds at least one row."""
    first = next(iter(dataset), None) if isinstance(dataset, IterableDataset) or len(dataset) else None
    if first is None:
        raise ValueError(f"{where}: the data set is empty")
    return dataset.column_names or list(first)


def _refuse_no_column(wanted: Iterable[str], columns: list[str], where: str) -> None:
    missing = [theirs for theirs in wanted if theirs not in columns]
    if missing:
        near = difflib.get_close_matches(missing[0], columns, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}.columns: there is no column {missing[0]!r}; found {sorted(columns)}{hint}")


def _renamed(
    dataset: AnyDataset, columns: list[str], wanted: dict[str, str], where: str, numbers: Sequence[str], prompts: bool
) -> AnyDataset:
    """`wanted` names our columns and theirs. If they make up a whole format, it is the one that is used."""
    _refuse_no_column(wanted.values(), columns, where)
    unused = [column for column in columns if column in wanted and column not in wanted.values()]
    if row_format(wanted):
        unused = [column for column in columns if column not in (*wanted.values(), *numbers, "tools")]
    dataset = dataset.remove_columns(unused) if unused else dataset
    renaming = {theirs: ours for ours, theirs in wanted.items() if ours != theirs}
    dataset = dataset.rename_columns(renaming) if renaming else dataset
    found = [renaming.get(column, column) for column in columns if column not in unused]
    if prompts and {"prompt", "messages"} & set(found):
        return dataset
    if row_format(found) is None:
        raise ValueError(
            f"{where}: found the columns {sorted(found)}; accepted are {FORMATS}. Rename them with "
            "columns: {ours: theirs}"
        )
    return dataset


def _embedded(source: DatasetSource, where: str) -> AnyDataset:
    from llmkd.data.quickstart import corpus

    base = source.split.partition("[")[0]
    try:
        rows = corpus.rows(source.name, base)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{where}: {EMBEDDED}: {error.args[0] if error.args else error}") from None
    dataset = _sliced(Dataset.from_list(rows), source.split, base, where)
    return dataset.to_iterable_dataset() if source.streaming else dataset


def _problems(source: DatasetSource, where: str) -> AnyDataset:
    from llmkd.data.tasks import table

    if source.max_rows is None:
        raise ValueError(f"{where}.max_rows: a task has no end of rows; say how many problems to make")
    try:
        rows = table.rows(source.name, source.max_rows, source.split, source.options or {})
    except ValueError as error:
        raise ValueError(f"{where}: {TASKS}: {error}") from None
    message = List({"role": Value("string"), "content": Value("string")})
    # As JSON an answer keeps its keys: one schema for all rows would give each puzzle the people of all others.
    features = {"prompt": message, "completion": message, "answer": Json(), "task": Value("string")}
    dataset = Dataset.from_list(rows, features=Features(features))
    return dataset.to_iterable_dataset() if source.streaming else dataset


def _is_local(path: str) -> bool:
    """A hub name is `name` or `owner/name`: anything else, and anything that exists, is a path."""
    if Path(path).expanduser().exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        return True
    return bool(KINDS.keys() & set(Path(path).suffixes)) or path.endswith(".gz")


def _local(source: DatasetSource, path: Path, where: str) -> AnyDataset:
    _refuse_missing(path, where)
    base = source.split.partition("[")[0]
    if (path / "state.json").exists():
        dataset = datasets.load_from_disk(str(path))
        dataset = dataset.to_iterable_dataset() if source.streaming else dataset
    else:
        files = _files(source, path, base, where)
        dataset = _read(files, _kind(files, where), base, source.streaming, where)
    return dataset if source.streaming else _sliced(dataset, source.split, base, where)


def _refuse_missing(path: Path, where: str) -> None:
    if path.exists():
        return
    if not path.parent.is_dir():
        raise ValueError(f"{where}.path: there is no {str(path)!r}, nor its folder")
    names = sorted(entry.name for entry in path.parent.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4) or names[:3]
    raise ValueError(f"{where}.path: there is no {str(path)!r}; that folder has {', '.join(near) or 'no files'}")


def _files(source: DatasetSource, path: Path, base: str, where: str) -> list[Path]:
    if not path.is_dir():
        return [path]
    if source.data_files:
        patterns = source.data_files
        if isinstance(patterns, dict):
            patterns = patterns.get(base, [])
        patterns = [patterns] if isinstance(patterns, str) else patterns
        found = [Path(name) for pattern in patterns for name in sorted(glob.glob(str(path / pattern), recursive=True))]
        if not found:
            raise ValueError(
                f"{where}.data_files: nothing in {str(path)!r} matches {source.data_files} (split {base!r})"
            )
        return found
    found = sorted(entry for entry in path.iterdir() if entry.is_file() and _suffix(entry) in KINDS)
    if not found:
        raise ValueError(f"{where}.path: the folder {str(path)!r} holds no file of the kinds {', '.join(KINDS)}")
    named = {name: [file for file in found if name in re.split(r"[^a-z]+", file.name.lower())] for name in SPLITS}
    if named.get(base):
        return named[base]
    if any(named.values()):
        raise ValueError(
            f"{where}.split: no file in {str(path)!r} is named after the split {base!r}; there are "
            f"{', '.join(name for name, files in named.items() if files)}; or choose with data_files"
        )
    return found


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()


def _kind(files: list[Path], where: str) -> str:
    suffixes = {_suffix(file) for file in files}
    kinds = {KINDS.get(suffix) for suffix in suffixes}
    if None in kinds:
        unknown = next(file for file in files if _suffix(file) not in KINDS)
        raise ValueError(f"{where}.path: {str(unknown)!r} is of no known kind; known are {', '.join(KINDS)} (and .gz)")
    if len(kinds) > 1:
        raise ValueError(
            f"{where}.path: files of several kinds ({', '.join(sorted(suffixes))}); choose with data_files"
        )
    return kinds.pop()


def _read(files: list[Path], kind: str, base: str, streaming: bool, where: str) -> AnyDataset:
    if all(file.stat().st_size == 0 for file in files):
        raise ValueError(f"{where}: the data set is empty: {files[0]} has no bytes")
    if not re.fullmatch(r"\w+", base):
        raise ValueError(f"{where}.split: {base!r} is not the name of one split, such as train or train[:95%]")
    names = [str(file.resolve()) for file in files]
    try:
        if kind == "text":
            return _read_text(files, names, streaming)
        return datasets.load_dataset(kind, data_files={base: names}, split=base, streaming=streaming)
    except Exception as error:  # whatever a reader says of damage: look for it ourselves, to name file and line
        fault = next(filter(None, map(first_fault, files)), None)
        if fault:
            raise ValueError(f"{where}: {fault}") from None
        cause = error.__cause__ or error
        reason = str(cause).strip() or type(cause).__name__
        raise ValueError(f"{where}: cannot read {files[0]}: {reason.splitlines()[0]}") from error


def _read_text(files: list[Path], names: list[str], streaming: bool) -> AnyDataset:
    if streaming:
        return IterableDataset.from_generator(_documents, gen_kwargs={"names": names})
    # The state of the files is an argument so that a cached table is not used for a file that has changed.
    state = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return Dataset.from_generator(_documents, gen_kwargs={"names": names, "state": state})


def _documents(names: list[str], state: Any = None) -> Iterator[dict[str, str]]:
    for name in names:
        opened = gzip.open if name.endswith(".gz") else open
        with opened(name, "rt", encoding="utf-8") as lines:
            groups = itertools.groupby(lines, key=lambda line: line.strip() == DOCUMENT_BREAK)
            texts = ("".join(group).strip("\n") for is_break, group in groups if not is_break)
            yield from ({"text": text} for text in texts if text.strip())


def _sliced(dataset: Dataset, split: str, base: str, where: str) -> Dataset:
    if split == base:
        return dataset
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute({base: len(dataset)})
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"{where}.split: {split!r} is not a slice such as train[:95%] or train[10:20]: {error}"
        ) from None
    rows = [index for part in parts for index in range(part.from_ or 0, len(dataset) if part.to is None else part.to)]
    return dataset.select(rows)


def _hub(source: DatasetSource, where: str) -> AnyDataset:
    try:
        return datasets.load_dataset(
            source.path, source.name, split=source.split, data_files=source.data_files, streaming=source.streaming
        )
    except ValueError as error:  # an unknown configuration or split
        raise ValueError(f"{where}: {source.path}: {error}") from None
    except (OSError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{where}.path: {source.path!r} is no local file or folder, and as a data set of the hub it cannot be "
            f"loaded: {reason}"
        ) from error
