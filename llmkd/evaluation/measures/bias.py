"""Bias of a causal language model: CrowS-Pairs on what it finds likelier, WEAT on its input embeddings.

The data are the user's: their paths are arguments.  Neither number says that a model is harmless; both say whether a
student leans further than its teacher.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, islice
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmkd.evaluation import intervals
from llmkd.evaluation.intervals import Estimate
from llmkd.evaluation.measures.calibration import predictions
from llmkd.evaluation.measures.found import Found
from llmkd.evaluation.results import Metric
from llmkd.types import Teacher

VERSION = "1"
COLUMNS = ("sent_more", "sent_less", "bias_type")
EXACT_UP_TO = 20_000
"""Partitions of the words up to which WEAT's p-value goes through all; beyond, this many are drawn."""

WEAT = {
    "flowers_insects": ("flowers", "insects", "pleasant_5", "unpleasant_5a"),
    "instruments_weapons": ("instruments", "weapons", "pleasant_5", "unpleasant_5a"),
    "names_5": ("european_american_names_5", "african_american_names_5", "pleasant_5", "unpleasant_5b"),
    "names_7": ("european_american_names_7", "african_american_names_7", "pleasant_5", "unpleasant_5b"),
    "names_9": ("european_american_names_7", "african_american_names_7", "pleasant_9", "unpleasant_9"),
    "career_family": ("male_names", "female_names", "career", "family"),
    "math_arts": ("math", "arts", "male_terms", "female_terms"),
    "science_arts": ("science", "arts_2", "male_terms_2", "female_terms_2"),
    "mental_physical": ("mental_disease", "physical_disease", "temporary", "permanent"),
    "young_old": ("young_people_names", "old_people_names", "pleasant_9", "unpleasant_9"),
}
"""The ten tests of Caliskan et al. 2017, table 1: targets X and Y, attributes A and B, as names of word lists."""


# -- CrowS-Pairs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in the group they speak of; ``more`` says the stereotype more than ``less``."""

    more: str
    less: str
    bias_type: str


def read_pairs(path: Path | str) -> list[Pair]:
    """CrowS-Pairs from ``.csv``, ``.jsonl`` or ``.jsonl.gz``.  Raises ValueError for a file without rows or without the
    columns sent_more, sent_less and bias_type."""
    pairs = []
    for number, row in enumerate(_rows(Path(path)), 1):
        missing = [column for column in COLUMNS if not isinstance(row, dict) or not row.get(column)]
        if missing:
            raise ValueError(
                f"{path}: row {number} has no {', '.join(missing)} (columns: {', '.join(row)}): CrowS-Pairs has "
                f"{', '.join(COLUMNS)}, give a file in its form"
            )
        pairs.append(Pair(row["sent_more"], row["sent_less"], row["bias_type"]))
    if not pairs:
        raise ValueError(f"{path}: holds no rows: give a file of CrowS-Pairs")
    return pairs


def _rows(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise ValueError(f"{path}: does not exist: give a .csv, .jsonl or .jsonl.gz file")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        if ".csv" in path.suffixes:
            yield from csv.DictReader(file)
            return
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is not JSON ({error}): give one object a line") from None


def crows_pairs(
    model: Teacher, tokenizer: Any, pairs: Sequence[Pair], *, vocabulary: int | None = None, batch_size: int = 32,
    seed: int = 0,
) -> Found:  # fmt: skip
    """The share of pairs whose stereotyping sentence the model finds likelier, of all and by type of bias.

    ``stereotype = mean_i [log q(more_i) > log q(less_i)]``, a tie counts half; 0.5 is what a model without a leaning
    would have.  ``log_likelihood_difference = mean_i (log q(more_i) - log q(less_i))``, in nats.

    Differs from the paper: 1. ``log q`` is the log-likelihood of the whole sentence, from the left, the first token
    after the tokenizer's BOS (its EOS where it has none).  The paper's pseudo-likelihood of a masked model leaves out
    the words in which the two sentences differ, and with them how frequent the groups' names are; here they count, as
    in lm-evaluation-harness's ``crows_pairs_english``.  2. Ties count 0 there.

    Nangia, Vania, Bhalerao, Bowman 2020.
    """
    scores = log_likelihoods(
        model, tokenizer, [text for p in pairs for text in (p.more, p.less)], vocabulary, batch_size
    )
    more, less = scores[0::2], scores[1::2]
    preferred = (more > less) + 0.5 * (more == less)
    items = [
        {"pair": i, "bias_type": pair.bias_type, "stereotype": float(preferred[i]), "more": float(more[i]),
         "less": float(less[i])} for i, pair in enumerate(pairs)
    ]  # fmt: skip
    metrics = {name: Metric(intervals.mean(values, seed)) for name, values in _by_type(items).items()}
    metrics["log_likelihood_difference"] = Metric(intervals.mean(more - less, seed), unit="nats")
    counts = {name.partition("/")[2] or "all": m.estimate.n for name, m in metrics.items() if "stereotype" in name}
    return Found(metrics, {"pairs": counts, "ties": int((more == less).sum())}, items)


def group_gaps(student: Found, teacher: Found, seed: int = 0) -> dict[str, Metric]:
    """``gap`` and ``gap/<type>``: the student's share less the teacher's over the same pairs, with paired intervals.

    Raises ValueError where the pairs are not the same.
    """
    if [(i["pair"], i["bias_type"]) for i in student.items] != [(i["pair"], i["bias_type"]) for i in teacher.items]:
        raise ValueError("bias: student and teacher were not measured on the same pairs: measure both on one file")
    ours, theirs = _by_type(student.items), _by_type(teacher.items)
    return {
        name.replace("stereotype", "gap"): Metric(intervals.difference(ours[name], theirs[name], seed)) for name in ours
    }


def _by_type(items: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    out: dict[str, list[float]] = {"stereotype": []}
    for item in items:
        out["stereotype"].append(item["stereotype"])
        out.setdefault(f"stereotype/{item['bias_type']}", []).append(item["stereotype"])
    return out


def log_likelihoods(
    model: Teacher, tokenizer: Any, texts: Sequence[str], vocabulary: int | None = None, batch_size: int = 32
) -> np.ndarray:
    """Total log-likelihood of each text in nats, ``[len(texts)]``, without its end of text."""
    prefix = next((t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None), None)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows = [[prefix, *row] for row in rows] if prefix is not None else rows
    # Long ones first: what does not fit into memory fails at once.
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    out = np.zeros(len(rows))
    device = _device(model)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = len(rows[chosen[0]])
        ids = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in chosen], device=device)
        counted = torch.tensor([[0 < t < len(rows[i]) for t in range(width)] for i in chosen], device=device)
        found = predictions(model, [{"input_ids": ids, "counted": counted}], vocabulary)
        out[chosen] = -np.bincount(found.row, found.nll, len(chosen))
    if np.isnan(out).any():
        raise ValueError("bias: the model computes NaN for a sentence: are its weights damaged?")
    return out


def _device(model: Any) -> torch.device:
    inner = getattr(model, "model", None)
    return next(inner.parameters()).device if isinstance(inner, torch.nn.Module) else torch.device("cpu")


# -- WEAT --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Association:
    """effect_size: d; p_value: one-sided; partitions: how many it was counted over; exact: whether those were all."""

    effect_size: float
    p_value: float
    partitions: int
    exact: bool


def association(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, seed: int = 0) -> Association:
    """WEAT of target vectors X, Y and attribute vectors A, B, each ``[words, H]``.

        s(w) = mean_a cos(w, a) - mean_b cos(w, b)
        d    = (mean_x s(x) - mean_y s(y)) / std_{w in X u Y} s(w)          in [-2, 2]; std with n - 1
        p    = share of the partitions of X u Y into |X| and |Y| whose mean_x s - mean_y s is at least the observed one

    All partitions where they are at most ``EXACT_UP_TO``; else that many random ones and the observed one.

    Differs from the paper: 1. "at least" in place of "greater", so that p is never 0.  2. means in place of sums, the
    same for |X| = |Y| and right otherwise.

    Raises ValueError for fewer than two words in a list, a zero vector, or targets that cannot be told apart.

    Caliskan, Bryson, Narayanan 2017.
    """
    for name, vectors in {"X": x, "Y": y, "A": a, "B": b}.items():
        if len(vectors) < 2:
            raise ValueError(f"WEAT: {name} has {len(vectors)} known words: at least 2 are needed")
    units = [_units(np.asarray(vectors, dtype=np.float64)) for vectors in (x, y, a, b)]
    words = np.concatenate(units[:2])
    s = (words @ units[2].T).mean(1) - (words @ units[3].T).mean(1)
    n, total = len(x), len(s)
    spread = s.std(ddof=1)
    if spread < 1e-12:
        raise ValueError("WEAT: every target word has the same association: there is nothing to compare")
    observed = s[:n].mean() - s[n:].mean()
    exact = comb(total, n) <= EXACT_UP_TO
    sums = np.concatenate(list(_sums_of_partitions(s, n, exact, seed)))
    means = sums / n - (s.sum() - sums) / (total - n)
    above, tried = int((means >= observed - 1e-12).sum()), len(means)
    p = above / tried if exact else (above + 1) / (tried + 1)
    return Association(float(observed / spread), p, tried, exact)


def _units(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("WEAT: a word's vector is zero or not finite: its direction is unknown")
    return vectors / lengths


def _sums_of_partitions(s: np.ndarray, n: int, exact: bool, seed: int) -> Iterator[np.ndarray]:
    if exact:
        every = combinations(range(len(s)), n)
        while chosen := list(islice(every, 4096)):
            yield s[np.array(chosen)].sum(1)
        return
    generator = np.random.default_rng(seed)
    for _ in range(0, EXACT_UP_TO, 1000):
        yield generator.permuted(np.tile(s, (1000, 1)), axis=1)[:, :n].sum(1)


def read_words(path: Path | str) -> dict[str, list[str]]:
    """Word lists by name, from a JSON object of lists of texts; ValueError for anything else."""
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error}): give an object of word lists") from None
    if not isinstance(found, dict) or not all(
        isinstance(words, list) and all(isinstance(w, str) for w in words) for words in found.values()
    ):
        raise ValueError(f'{path}: is not an object of word lists such as {{"flowers": ["aster", ...], ...}}')
    return found


def weat(
    embeddings: torch.Tensor, tokenizer: Any, words: Mapping[str, Sequence[str]],
    tests: Mapping[str, tuple[str, str, str, str]] | None = None, seed: int = 0,
) -> Found:  # fmt: skip
    """``effect_size/<test>`` and ``p_value/<test>`` on input embeddings ``[V, H]``.

    tests: names of the lists X, Y, A, B; left out, those of ``WEAT`` whose lists are there.  A word's vector is the
    mean of its tokens' embeddings, tokenised as it stands inside a sentence.  A word with an unknown token is left
    out; ``details`` names it.

    A student and a teacher with different embeddings are compared by d; d has no interval, its words are no sample.
    Raises ValueError for a list that is missing or, without its unknown words, too short.
    """
    chosen = tests or {name: lists for name, lists in WEAT.items() if all(part in words for part in lists)}
    if not chosen:
        raise ValueError(f"WEAT: no test has its lists among {', '.join(words)}: it needs such as {WEAT['math_arts']}")
    table = embeddings.detach().float().cpu().numpy()
    metrics, details = {}, {}
    for name, lists in chosen.items():
        missing = [part for part in lists if part not in words]
        if missing:
            raise ValueError(f"WEAT: {name}: there is no word list {', '.join(missing)} among {', '.join(words)}")
        vectors = [_vectors(table, tokenizer, words[part]) for part in lists]
        try:
            found = association(*(v for v, _ in vectors), seed=seed)
        except ValueError as error:
            raise ValueError(f"{error} (test {name}: {', '.join(lists)})") from None
        n = len(vectors[0][0]) + len(vectors[1][0])
        metrics[f"effect_size/{name}"] = Metric(Estimate(found.effect_size, None, None, n))
        metrics[f"p_value/{name}"] = Metric(Estimate(found.p_value, None, None, n))
        details[name] = asdict(found) | {"lists": list(lists), "unknown": [w for _, left in vectors for w in left]}
    return Found(
        metrics, {"tests": details}, (), {"words": {part: list(words[part]) for c in chosen.values() for part in c}}
    )


def _vectors(table: np.ndarray, tokenizer: Any, words: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """One vector a known word, and the unknown words."""
    found, unknown = [], []
    for word in words:
        ids = word_ids(tokenizer, word)
        if not ids or tokenizer.unk_token_id in ids or max(ids) >= len(table):
            unknown.append(word)
        else:
            found.append(table[ids].mean(0))
    return np.array(found).reshape(len(found), table.shape[1]), unknown


def word_ids(tokenizer: Any, word: str) -> list[int]:
    """A word's tokens as they are after another word, with the space that leads them where it is part of a token."""
    before = tokenizer("the", add_special_tokens=False)["input_ids"]
    both = tokenizer(f"the {word}", add_special_tokens=False)["input_ids"]
    return list(both[len(before) :]) if both[: len(before)] == before else tokenizer(
        word, add_special_tokens=False
    )["input_ids"]  # fmt: skip
