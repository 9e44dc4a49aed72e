"""A data set of text as rows of tokens.

Columns of a row: `input_ids`; `counted` (1 = a counted target, the first token never is); `seq_lengths` and `domains`
(a list of one); `n_bytes` (UTF-8 bytes of the counted tokens' text); and for each teacher NAME that has a rendering of
its own `input_ids@NAME`, `counted@NAME`, `seq_lengths@NAME` and `shared@NAME`: the student's counted tokens (over its
`input_ids`) that this teacher scores, one for each of `counted@NAME`, in order. A column of numbers C that the loss
reads, one a source row, is `column:C` (a list of one).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher

from llmkd.data.align import align
from llmkd.data.chat import ChatTemplate
from llmkd.data.encode import Encoded, encode, special_ids
from llmkd.data.render import FORMATS, render, row_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

OverLong = Literal["truncate", "split", "drop", "error"]
TruncationMode = Literal["keep_start", "keep_end"]
DONE = {"truncate": "were truncated", "split": "were split", "drop": "were dropped"}


@dataclass(frozen=True)
class Options:
    """What `tokenise` was asked for, in a form that travels to worker processes."""

    tokenizer: PreTrainedTokenizerFast
    domain_id: int
    max_length: int | None
    over_long: OverLong
    truncation_mode: TruncationMode
    completion_only_loss: bool | None
    assistant_only_loss: bool | None
    teachers: Mapping[str, PreTrainedTokenizerFast]
    numbers: tuple[str, ...]
    where: str
    is_text: bool = field(default=False)


def tokenise(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int | None,
    domain_id: int = 0,
    over_long: OverLong = "truncate",
    truncation_mode: TruncationMode = "keep_start",
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool | None = None,
    teachers: Mapping[str, PreTrainedTokenizerFast] | None = None,
    numbers: Sequence[str] = (),
    num_proc: int | None = None,
    where: str = "data",
) -> Dataset | IterableDataset:
    """The rows of `dataset` as tokens.

    Args:
        dataset: rows in one of the formats of `render`.
        tokenizer: the student's, as `prepare_tokenizer` leaves it.
        max_length: longest row in tokens, for every rendering; None for no limit.
        domain_id: the domain of these rows.
        over_long: what to do with longer rows. "split" cuts plain text into windows that overlap by one token: the
            first of a window does not count there, so every token counts once. Rows of other formats are truncated.
        truncation_mode: which end of a truncated row is kept.
        completion_only_loss, assistant_only_loss: as in `render`.
        teachers: tokenizers of the teachers that score their own rendering, by name.
        numbers: columns that hold a number for each row, 0 or more, which its tokens take with them.
        num_proc: worker processes; not for streams.
        where: place in the recipe, for messages.

    Raises:
        ValueError: a row cannot be rendered, is too long (with "error"), or no row has a counted token.
    """
    if max_length is not None and max_length < 2:
        raise ValueError(f"{where}: max_length {max_length} leaves no counted token; it must be at least 2")
    columns = _accepted_columns(dataset, where)
    options = Options(
        tokenizer, domain_id, max_length, over_long, truncation_mode, completion_only_loss, assistant_only_loss,
        dict(teachers or {}), tuple(numbers), where, row_format(columns) == "text",
    )  # fmt: skip
    arguments = {
        "batched": True,
        "with_indices": True,
        "remove_columns": columns,
        "features": _features(options),
        "fn_kwargs": {"options": options},
    }
    if isinstance(dataset, IterableDataset):
        return dataset.map(_tokenise_batch, **arguments).remove_columns("over_long")
    rows = dataset.map(
        _tokenise_batch,
        **arguments,
        num_proc=num_proc if num_proc and len(dataset) >= 1000 else None,
        new_fingerprint=_fingerprint(dataset, options),
        desc=f"Tokenising {where}",
    )
    _report_over_long(dataset, rows, options)
    _refuse_all_uncounted(rows, where)
    return rows.remove_columns("over_long")


def _accepted_columns(dataset: Dataset | IterableDataset, where: str) -> list[str]:
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if row_format(columns) is None:
        raise ValueError(f"{where}: found the columns {sorted(columns)}; accepted are {FORMATS}")
    return columns


def _features(options: Options) -> Features:
    columns = {"input_ids": List(Value("int32")), "counted": List(Value("int8")), "seq_lengths": List(Value("int32"))}
    features = {**columns, "domains": List(Value("int32")), "n_bytes": Value("int64"), "over_long": Value("bool")}
    for name in options.teachers:
        features |= {f"{column}@{name}": feature for column, feature in columns.items()}
        features[f"shared@{name}"] = List(Value("int8"))
    features |= {f"column:{name}": List(Value("float32")) for name in options.numbers}
    return Features(features)


def _tokenise_batch(batch: dict[str, list], indices: list[int], options: Options) -> dict[str, list]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    places = [f"{options.where}: row {index}" for index in indices]
    student = _encode_all(rows, options.tokenizer, places, options)
    own = {name: _encode_all(rows, tokenizer, places, options) for name, tokenizer in options.teachers.items()}
    enders = {name: special_ids(tokenizer) for name, tokenizer in options.teachers.items()}
    enders[""] = special_ids(options.tokenizer)
    out: dict[str, list] = {column: [] for column in _features(options)}
    for number, place in enumerate(places):
        views = {"": student[number]} | {name: encoded[number] for name, encoded in own.items()}
        pairs = {
            name: align(views[""], views[name], (enders[""], enders[name]), (name, options.tokenizer, tokenizer), place)
            for name, tokenizer in options.teachers.items()
        }
        numbers = {f"column:{name}": [_number(rows[number], name, place)] for name in options.numbers}
        for row in _pieces(views, pairs, options, place):
            for column, values in (row | numbers).items():
                out[column].append(values)
    return out


def _number(row: dict, name: str, place: str) -> float:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{place}: column {name!r} holds {value!r}: the loss reads it, give a number from 0 on")
    return float(value)


def _encode_all(rows: list[dict], tokenizer, places: list[str], options: Options) -> list[Encoded]:
    template = ChatTemplate(tokenizer)
    switches = {
        "completion_only_loss": options.completion_only_loss,
        "assistant_only_loss": options.assistant_only_loss,
    }
    return encode(
        [render(row, template, **switches, where=place) for row, place in zip(rows, places, strict=True)], tokenizer
    )


def _pieces(views: dict[str, Encoded], pairs: dict, options: Options, place: str) -> Iterator[dict[str, Any]]:
    """The rows that one source row becomes: none, one, or several windows."""
    lengths = {name: len(view.input_ids) for name, view in views.items()}
    limit = options.max_length
    over_long = limit is not None and max(lengths.values()) > limit
    if not over_long:
        whole = {name: (0, length) for name, length in lengths.items()}
        yield _row(views, pairs, whole, options) | {"over_long": False}
        return
    if options.over_long == "error":
        raise ValueError(
            f"{place} has {max(lengths.values())} tokens, more than max_length {limit}; raise train.max_length, or let "
            "train.over_long truncate, split or drop such rows"
        )
    if options.over_long == "drop":
        return
    if options.over_long == "split" and options.is_text:
        cuts = _windows(lengths, {name: int(t[0] - s[0]) if len(s) else 0 for name, (s, t) in pairs.items()}, limit)
    elif options.truncation_mode == "keep_end":
        cuts = [{name: (max(0, length - limit), length) for name, length in lengths.items()}]
    else:
        cuts = [{name: (0, min(limit, length)) for name, length in lengths.items()}]
    for number, cut in enumerate(cuts):
        yield _row(views, pairs, cut, options) | {"over_long": number == 0}


def _windows(lengths: dict[str, int], shifts: dict[str, int], limit: int) -> list[dict[str, tuple[int, int]]]:
    """Ranges of the same text in each rendering; a teacher's tokens stand `shifts[name]` further on."""
    size = max(2, limit - max([0, *shifts.values()]))
    windows = []
    for start in range(0, max(1, lengths[""] - 1), size - 1):
        end = min(start + size, lengths[""])
        window = {"": (start, end)}
        for name, shift in shifts.items():
            window[name] = (max(0, start + shift) if start else 0, min(end + shift, lengths[name]))
        windows.append(window)
    return windows


def _row(
    views: dict[str, Encoded], pairs: dict[str, tuple], cut: dict[str, tuple[int, int]], options: Options
) -> dict[str, Any]:
    start, end = cut[""]
    student = views[""]
    counted = student.counted(start, end)
    row = {
        "input_ids": student.input_ids[start:end],
        "counted": counted,
        "seq_lengths": [end - start],
        "domains": [options.domain_id],
        "n_bytes": int((student.n_bytes[start:end] * counted).sum()),
    }
    for name, (ours, theirs) in pairs.items():
        first, last = cut[name]
        # The first token of a row is not counted, on either side.
        kept = (ours > start) & (ours < end) & (theirs > first) & (theirs < last)
        shared, scored = np.zeros(end - start, np.int8), np.zeros(last - first, np.int8)
        shared[ours[kept] - start] = 1
        scored[theirs[kept] - first] = 1
        row |= {
            f"input_ids@{name}": views[name].input_ids[first:last],
            f"counted@{name}": scored,
            f"seq_lengths@{name}": [last - first],
            f"shared@{name}": shared,
        }
    return row


def _fingerprint(dataset: Dataset, options: Options) -> str:
    """A cache key from what the tokens depend on; pickling a tokenizer would not give the same one twice."""
    tokenizers = {
        name: _tokenizer_state(tokenizer) for name, tokenizer in {"": options.tokenizer, **options.teachers}.items()
    }
    settings = (
        options.domain_id, options.max_length, options.over_long, options.truncation_mode,
        options.completion_only_loss, options.assistant_only_loss, options.numbers,
    )  # fmt: skip
    return Hasher.hash(("tokenise", 1, dataset._fingerprint, tokenizers, settings))


def _tokenizer_state(tokenizer) -> tuple:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("truncation", None)
    state.pop("padding", None)
    special = sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items())
    return json.dumps(state, sort_keys=True), str(tokenizer.chat_template), special


def _report_over_long(dataset: Dataset, rows: Dataset, options: Options) -> None:
    flagged = pc.sum(rows.data.column("over_long")).as_py() or 0
    count = len(dataset) - len(rows) if options.over_long == "drop" else flagged
    if not count:
        return
    done = DONE[options.over_long]
    if options.over_long == "split" and not options.is_text:
        done = "were truncated (only plain text is split)"
    logger.warning(
        "%s: %d of %d rows are longer than max_length %d and %s",
        options.where, count, len(dataset), options.max_length, done,
    )  # fmt: skip


def _refuse_all_uncounted(rows: Dataset, where: str) -> None:
    if any(pc.max(chunk.flatten()).as_py() for chunk in rows.data.column("counted").chunks):
        return
    raise ValueError(
        f"{where}: none of the {len(rows)} rows has a counted token (an assistant's turn, a completion, or the text "
        "after its first token); check the format, train.max_length, train.over_long, and the *_only_loss switches"
    )
