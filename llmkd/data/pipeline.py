"""The sources of a recipe as rows that a trainer draws from, and as held-out rows by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset, IterableDataset, concatenate_datasets

from llmkd.data.packing import pack
from llmkd.data.rows import tokenise
from llmkd.data.sampling import mix_streams
from llmkd.data.sources import load

if TYPE_CHECKING:
    from llmkd.config import Data, DatasetSource, Eval


@dataclass(frozen=True)
class Prepared:
    """Training rows: the sources one after the other, how many each gave, and their shares when drawing (None: by
    number).  A stream has no lengths: it is mixed already."""

    dataset: Dataset | IterableDataset
    lengths: list[int]
    weights: list[float] | None

    @property
    def streaming(self) -> bool:
        return isinstance(self.dataset, IterableDataset)


@dataclass(frozen=True)
class Rows:
    """All rows of a run.  held_out: by domain; own: the teachers whose own rendering the rows carry; numbers: the
    columns of numbers that the training rows carry."""

    training: Prepared
    held_out: dict[str, Dataset]
    own: tuple[str, ...]
    numbers: tuple[str, ...] = ()


def prepare(
    data: Data,
    evaluation: Eval,
    settings: Any,
    tokenizer: Any,
    own: Mapping[str, Any],
    domains: Sequence[str],
    *,
    seed: int,
    numbers: Sequence[str] = (),
) -> Rows:
    """Load, tokenise and pack everything that a run reads."""
    training = prepare_training(data, settings, tokenizer, own, domains, seed=seed, numbers=numbers)
    held_out = prepare_held_out(evaluation, settings, tokenizer, own, domains)
    return Rows(training, held_out, tuple(own), tuple(numbers))


def prepare_training(
    data: Data, settings: Any, tokenizer: Any, own: Mapping[str, Any], domains: Sequence[str], *, seed: int,
    numbers: Sequence[str] = (),
) -> Prepared:  # fmt: skip
    """Load, tokenise and pack every source.  ``settings``: max_length, packing, over_long, ... of the trainer;
    ``own``: tokenizers of the teachers with a rendering of their own; ``numbers``: columns that the loss reads."""
    streaming = {s.streaming for s in data.datasets}
    if len(streaming) > 1:
        raise ValueError("data.datasets: some are streaming and some are not: set streaming alike on all of them")
    parts = [
        _rows(source, f"data.datasets.{i}", settings, tokenizer, own, domains, bool(settings.packing), seed, numbers)
        for i, source in enumerate(data.datasets)
    ]
    weights = weights_of(data)
    if streaming == {True}:
        mixed = mix_streams(parts, weights, seed)
        # Without an end: to resume is to skip what was drawn, in whatever pass that was.
        return Prepared(mixed.shuffle(seed=seed, buffer_size=1000).repeat(None), [], weights)
    return Prepared(concatenate_datasets(parts), [len(p) for p in parts], weights)


def prepare_held_out(
    evaluation: Eval, settings: Any, tokenizer: Any, own: Mapping[str, Any], domains: Sequence[str]
) -> dict[str, Dataset]:
    """Domain -> its held-out rows, unpacked unless ``eval_packing`` says otherwise; two sources may share a domain."""
    by_domain: dict[str, list[Dataset]] = {}
    for i, source in enumerate(evaluation.datasets):
        where = f"eval.datasets.{i}"
        if source.streaming:
            raise ValueError(f"{where}.streaming: held-out rows are read whole: leave it out and use max_rows")
        rows = _rows(source, where, settings, tokenizer, own, domains, bool(settings.eval_packing), 0)
        if evaluation.max_rows is not None:
            rows = rows.select(range(min(evaluation.max_rows, len(rows))))
        by_domain.setdefault(source.domain, []).append(rows)
    return {domain: concatenate_datasets(parts) for domain, parts in by_domain.items()}


def _rows(
    source: DatasetSource, where: str, settings: Any, tokenizer: Any, own: Mapping[str, Any], domains: Sequence[str],
    packed: bool, seed: int, numbers: Sequence[str] = (),
) -> Any:  # fmt: skip
    rows = tokenise(
        load(source, where=where, numbers=numbers),
        tokenizer,
        max_length=settings.max_length,
        domain_id=list(domains).index(source.domain),
        over_long=settings.over_long,
        truncation_mode=settings.truncation_mode,
        completion_only_loss=settings.completion_only_loss,
        assistant_only_loss=settings.assistant_only_loss,
        teachers=own,
        numbers=numbers,
        num_proc=settings.dataset_num_proc,
        where=where,
    )
    if not packed:
        return rows
    if settings.max_length is None:
        raise ValueError("train.packing: needs train.max_length, the length of a packed row")
    return pack(rows, settings.max_length, seed=seed, teachers=tuple(own))


def weights_of(data: Data) -> list[float] | None:
    """Shares of the sources when drawing: None for in proportion to their rows."""
    if data.sampling.kind == "proportional":
        return None
    if data.sampling.kind == "uniform":
        return [1.0] * len(data.datasets)
    return [float(s.weight) for s in data.datasets]
