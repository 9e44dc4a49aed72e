"""What lm_eval returns, as metrics with intervals and as items."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llmkd.evaluation import intervals
from llmkd.evaluation.intervals import Estimate
from llmkd.evaluation.results import Better, Metric

SHOWN = 400
"""Letters that an item keeps of a response."""
OVER_ITEMS = "bootstrap over items"
BY_DOCUMENT = "bootstrap over documents, as a ratio of sums"
BY_STDERR = "value +- 1.96 times lm_eval's standard error"
WITHHELD = "withheld: lm_eval gives no standard error for it"
UNITS = {"bits_per_byte": "bits/byte", "likelihood_diff": "nats"}
Found = Mapping[str, Any]
"""lm_eval's results of one call, with ``samples``."""


def metrics(found: Found, task: str) -> tuple[dict[str, Metric], dict[str, str], dict[str, str]]:
    """Metrics by name, how each interval came about, and those that are missing with the reason.

    A group that lm_eval averages is one task; where it does not, each member's metrics stand as ``member:metric``.
    """
    out: dict[str, Metric] = {}
    how: dict[str, str] = {}
    missing: dict[str, str] = {}
    broken = _not_a_number(found)
    for owner, prefix in _owners(found, task):
        members = _members(found, owner)
        for key, value in found["results"][owner].items():
            name, _, chosen = key.partition(",")
            if not chosen or name.endswith("_stderr"):
                continue
            label = prefix + metric_name(name, chosen)
            if broken & set(members):
                missing[label] = "the model gives NaN"
            elif not isinstance(value, int | float) or not math.isfinite(value):
                missing[label] = str(value)
            else:
                values = [s[name] for m in members for s in found["samples"][m] if s["filter"] == chosen and name in s]
                stderr = found["results"][owner].get(f"{name}_stderr,{chosen}")
                estimate, how[label] = interval(float(value), values, stderr)
                out[label] = Metric(estimate, _better(found, owner, name), UNITS.get(name, ""))
    return out, how, missing


def metric_name(name: str, chosen: str) -> str:
    """lm_eval's ``metric,filter``, without the filter where there is none."""
    return name if chosen == "none" else f"{name},{chosen}"


def interval(value: float, values: Sequence[Any], stderr: Any) -> tuple[Estimate, str]:
    """The interval of lm_eval's ``value`` over the ``values`` of its items, and how it came about.

    A value that is the mean of its items, or a perplexity or bits per byte of them, is resampled over the items; of
    another one (F1, corpus BLEU, ...) lm_eval's own standard error is taken.
    """
    for base, function, said, resampled in _statistics(values):
        if math.isclose(function(base), value, rel_tol=1e-9, abs_tol=1e-12):
            found = resampled()
            low, high = (None if bound is None else function(bound) for bound in (found.low, found.high))
            return Estimate(value, low, high, len(values)), said
    if isinstance(stderr, int | float) and math.isfinite(stderr):
        return Estimate(value, value - 1.96 * stderr, value + 1.96 * stderr, len(values)), BY_STDERR
    return Estimate(value, None, None, len(values)), WITHHELD


Statistic = tuple[float, Callable[[float], float], str, Callable[[], Estimate]]


def _statistics(values: Sequence[Any]) -> Iterator[Statistic]:
    """What a number may be of its items: a rising function of their mean or of a ratio of their sums; how that is
    called, and how it is resampled."""
    if values and all(_is_number(v) for v in values):
        plain = [float(v) for v in values]
        minus = [-v for v in plain]
        yield sum(plain) / len(plain), lambda x: x, OVER_ITEMS, lambda: intervals.mean(plain)
        yield sum(minus) / len(minus), _exp, BY_DOCUMENT, lambda: intervals.mean(minus)
    elif values and all(isinstance(v, list | tuple) and len(v) == 2 and all(map(_is_number, v)) for v in values):
        sums, counts = [-float(a) for a, _ in values], [float(b) for _, b in values]
        if sum(counts) > 0:
            base = sum(sums) / sum(counts)
            yield base, _exp, BY_DOCUMENT, lambda: intervals.ratio(sums, counts)
            yield base, lambda x: x / math.log(2), BY_DOCUMENT, lambda: intervals.ratio(sums, counts)


def items(found: Found) -> list[dict[str, Any]]:
    """A line a document, in lm_eval's order: ``task``, ``doc_id``, ``scores`` by metric name, ``target``, and the
    response after each filter, cut to ``SHOWN`` letters."""
    out: dict[tuple[str, Any], dict[str, Any]] = {}
    for task, samples in found["samples"].items():
        for sample in samples:
            item = out.setdefault(
                (task, sample["doc_id"]),
                {"task": task, "doc_id": sample["doc_id"], "scores": {}, "target": _short(sample["target"]),
                 "response": {}},
            )  # fmt: skip
            item["response"][sample["filter"]] = _short(sample["filtered_resps"])
            for name in sample["metrics"]:
                item["scores"][metric_name(name, sample["filter"])] = as_json(sample[name])
    return list(out.values())


def as_json(value: Any) -> Any:
    """The value as JSON has it: what is not finite becomes null, what JSON does not know as lm_eval writes it."""
    from lm_eval.utils import handle_non_serializable

    return _finite(json.loads(json.dumps(value, default=handle_non_serializable, ensure_ascii=False)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _owners(found: Found, task: str) -> list[tuple[str, str]]:
    """The entries of lm_eval's results that hold a task's metrics, and what stands before their names."""
    own = found["results"].get(task, {})
    if any("," in key for key in own) or task not in found["results"]:
        return [(task, "")] if own else [(name, "") for name in found["results"]]
    return [(member, f"{member}:") for member in _members(found, task)]


def _members(found: Found, owner: str) -> list[str]:
    """The tasks whose samples an entry is made of: itself, or all below a group."""
    if owner in found["samples"]:
        return [owner]
    below = found.get("group_subtasks", {}).get(owner, [])
    return [task for member in below for task in _members(found, member)]


def _better(found: Found, owner: str, name: str) -> Better | None:
    higher = (found.get("higher_is_better", {}).get(owner) or {}).get(name)
    return None if higher is None else "higher" if higher else "lower"


def _not_a_number(found: Found) -> set[str]:
    """Tasks of which a log-likelihood is NaN: what lm_eval makes of it may look like a number."""
    return {task for task, samples in found["samples"].items() if any(_has_nan(s["resps"]) for s in samples)}


def _has_nan(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_nan(item) for item in value)
    return isinstance(value, float) and math.isnan(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _short(value: Any) -> Any:
    text = value if isinstance(value, str) else json.dumps(as_json(value), ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
