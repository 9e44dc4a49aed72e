"""How faithfully a student follows its teacher: token by token on held-out rows, and answer by answer on problems.

A student may be as good as its teacher and still another model (Stanton et al., Does Knowledge Distillation Really
Work?, 2021, arXiv 2106.05945), so fidelity is measured apart from accuracy, and always beside two others:

* a baseline that learned the same rows without the teacher: what it agrees with the teacher by is the data's doing;
* the teacher against itself resampled, the floor of the noise: how often a token drawn from the teacher is the
  teacher's likeliest one (``resampled_teacher/agreement_with_argmax``, the mean of max_v p_v), how often two drawn
  tokens are the same (``resampled_teacher/agreement``, the mean of sum_v p_v^2), and how alike two sampled completions
  of the same problem are.  Its divergences are 0, its acceptance 1.

``forward_kl`` and the like are the student's; ``baseline/forward_kl`` the baseline's; ``difference/forward_kl`` is
student minus baseline, with a paired interval.  With several teachers each name ends in ``@teacher``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmkd.config import DatasetSource, EvalTask
from llmkd.evaluation import intervals
from llmkd.evaluation.intervals import Estimate
from llmkd.evaluation.measures import answers, excerpts
from llmkd.evaluation.measures.found import Found
from llmkd.evaluation.measures.subjects import Subjects, subjects_of_models, subjects_of_run
from llmkd.evaluation.measures.tallies import CONFIDENCE, POSITION, Signal, Tally, tally
from llmkd.evaluation.results import Better, Metric
from llmkd.trainers.held_out import HeldOut
from llmkd.types import Teacher

VERSION = "1"
"""Changes when the numbers would."""
K = 5
GAMMA = 4
EXCERPTS = 3
"""Rows of each domain that are shown token by token."""


@dataclass(frozen=True)
class Measure:
    """One number: the sum of ``column`` over the sum of ``per``."""

    label: str
    column: str
    better: Better | None
    unit: str = ""
    per: str = "tokens"


MEASURES = {
    "forward_kl": Measure("forward KL to the teacher", "forward_kl", "lower", "nats/token"),
    "reverse_kl": Measure("reverse KL to the teacher", "reverse_kl", "lower", "nats/token"),
    "jsd": Measure("Jensen-Shannon divergence", "jsd", "lower", "nats/token"),
    "total_variation": Measure("total variation", "total_variation", "lower"),
    "agreement": Measure("top-1 agreement", "agreement", "higher"),
    "agreement_teacher_right": Measure(
        "top-1 agreement where the teacher is right", "agreement_teacher_right", "higher", per="teacher_right"
    ),
    "agreement_teacher_wrong": Measure(
        "top-1 agreement where the teacher is wrong", "agreement_teacher_wrong", None, per="teacher_wrong"
    ),
    "top_k_overlap": Measure("overlap of the k likeliest tokens", "top_k_overlap", "higher"),
    "top_1_in_top_k": Measure("student's first among the teacher's k", "top_1_in_top_k", "higher"),
    "acceptance": Measure("speculative-decoding acceptance", "acceptance", "higher"),
    "cross_entropy": Measure("cross-entropy", "cross_entropy", "lower", "nats/token"),
    "accuracy": Measure("top-1 accuracy", "correct", "higher"),
}
OF_THE_TEACHER = {
    "teacher/cross_entropy": Measure("teacher's cross-entropy", "teacher_cross_entropy", None, "nats/token"),
    "teacher/accuracy": Measure("teacher's top-1 accuracy", "teacher_right", None),
    "resampled_teacher/agreement": Measure("two draws of the teacher agree", "teacher_collision", None),
    "resampled_teacher/agreement_with_argmax": Measure("a draw is the teacher's first", "teacher_top", None),
}


def fidelity_of_run(
    folder: Path,
    *,
    teacher: str | None = None,
    sources: Sequence[DatasetSource | str] = (),
    max_rows: int | None = None,
    k: int = K,
    gamma: int = GAMMA,
    device: str | None = None,
) -> Found:
    """The student of a finished run against its teachers, beside its baseline; arguments as in ``subjects_of_run``."""
    found = subjects_of_run(folder, teacher=teacher, sources=sources, max_rows=max_rows, device=device)
    return fidelity(found, k=k, gamma=gamma)


def fidelity_of_models(
    student: str,
    teacher: str,
    sources: Sequence[DatasetSource | str],
    *,
    baseline: str | None = None,
    max_rows: int | None = None,
    max_length: int | None = 1024,
    batch_size: int = 8,
    tasks: Sequence[EvalTask] = (),
    k: int = K,
    gamma: int = GAMMA,
    device: str | None = None,
) -> Found:
    """Any student against any teacher of the same tokenizer; arguments as in ``subjects_of_models``."""
    found = subjects_of_models(
        student, teacher, sources, baseline=baseline, max_rows=max_rows, max_length=max_length,
        batch_size=batch_size, tasks=tasks, device=device,
    )  # fmt: skip
    return fidelity(found, k=k, gamma=gamma)


def fidelity(subjects: Subjects, *, k: int = K, gamma: int = GAMMA) -> Found:
    """Tokens and answers of all models against each teacher."""
    models = {"student": subjects.student} | ({"baseline": subjects.baseline} if subjects.baseline else {})
    metrics: dict[str, Metric] = {}
    details: dict[str, Any] = {"names": subjects.names, "teachers": {}}
    items: list[dict[str, Any]] = []
    for name, teacher in subjects.teachers.items():
        at = "" if len(subjects.teachers) == 1 else f"@{name}"
        found = measure_fidelity(models, teacher, subjects.held_out, subjects.vocabulary, subjects.device, k, gamma)
        answered = answers.measure_answers(subjects, name)
        shown = excerpts.excerpts(
            models, teacher, subjects.held_out, subjects.vocabulary, subjects.tokenizer, EXCERPTS, subjects.device
        )
        metrics |= {f"{key}{at}": metric for part in (found, answered) for key, metric in part.metrics.items()}
        both = {part: found.details[part] | answered.details[part] for part in ("left_out", "labels")}
        details["teachers"][name] = {**found.details, **answered.details, **both, "excerpts": shown}
        items += [{"teacher": name, **item} for part in (found, answered) for item in part.items]
    return Found(metrics, details, items, {"k": k, "gamma": gamma})


def measure_fidelity(
    models: Mapping[str, Teacher], teacher: Teacher, held_out: Sequence[HeldOut], vocabulary: int,
    device: torch.device, k: int = K, gamma: int = GAMMA,
) -> Found:  # fmt: skip
    """``student`` and, where there is one, ``baseline`` of ``models`` against one teacher, over the counted tokens of
    all held-out rows; intervals by row.

    Formulas per token are in ``tokens.compared``; each metric is their mean over the tokens.  ``acceptance`` is the
    chance that a token which the student draws is accepted in speculative decoding, E_{x ~ q} min(1, p_x / q_x) =
    1 - TV(p, q), and ``tokens_per_block`` what a block of ``gamma`` drawn tokens then yields, (1 - a^(gamma + 1)) /
    (1 - a) at the mean acceptance a, as if tokens were accepted independently (Leviathan et al., Fast Inference from
    Transformers via Speculative Decoding, 2023, arXiv 2211.17192, equation 1).

    What is not finite, since a model gives probability 0 to a token, is left out, or None in bins and items.

    details: ``k``, ``gamma``, ``vocabulary``; ``labels`` of the measures; ``domains``: name -> rows, tokens, values of
    each model with their intervals; ``by_confidence`` and ``by_position``: for each domain the bins, and in them the
    tokens and mean values of each model; ``left_out`` and ``classes``: what the teacher's signal does not tell, or not
    exactly, and why.
    """
    tallies: dict[str, dict[str, Tally]] = {}
    signal = Signal({}, {})
    for part in held_out:
        tallies[part.domain], signal = tally(models, teacher, part, vocabulary, k, device)
    pooled = {name: _pooled([found[name].sums for found in tallies.values()]) for name in models}
    metrics, missing = _metrics(pooled, gamma)
    details = {
        "k": k, "gamma": gamma, "vocabulary": vocabulary,
        "labels": {name: measure.label for name, measure in (MEASURES | OF_THE_TEACHER).items()}
                  | {"tokens_per_block": f"tokens a block of {gamma} drafts"},
        "domains": {domain: _domain(found, gamma) for domain, found in tallies.items()},
        "by_confidence": {domain: _by_confidence(found) for domain, found in tallies.items()},
        "by_position": {domain: _by_position(found) for domain, found in tallies.items()},
        "left_out": missing | signal.left_out, "classes": signal.classes,
    }  # fmt: skip
    items = [item for domain, found in tallies.items() for item in _items(domain, found)]
    return Found(metrics, details, items, {"k": k, "gamma": gamma})


def tokens_per_block(acceptance: float, gamma: int) -> float:
    """``sum_{i <= gamma} a^i = (1 - a^(gamma + 1)) / (1 - a)``: from 1 to gamma + 1."""
    return sum(acceptance**i for i in range(gamma + 1))


Sums = Mapping[str, Sequence[float]]
"""Measure -> its sum in each row."""


def _pooled(parts: Sequence[Sums]) -> Sums:
    return {name: [x for part in parts for x in part[name]] for name in parts[0]} if parts else {}


def _metrics(models: Mapping[str, Sums], gamma: int) -> tuple[dict[str, Metric], dict[str, str]]:
    """By name; and what cannot be told of these rows, with the reason."""
    out: dict[str, Metric] = {}
    left_out: dict[str, str] = {}
    for model, sums in models.items():
        at = "" if model == "student" else f"{model}/"
        wanted = MEASURES | (OF_THE_TEACHER if model == "student" else {})
        for name, measure in wanted.items():
            if measure.column not in sums:
                continue
            if sum(sums[measure.per]) == 0:
                left_out[at + name] = f"there is no token to count: {measure.per} is 0"
                continue
            found = intervals.ratio(sums[measure.column], sums[measure.per])
            if not isfinite(found.value):
                rows = sum(not isfinite(x) for x in sums[measure.column])
                left_out[at + name] = f"not finite in {rows} of {len(sums['tokens'])} rows: a token has probability 0"
                continue
            out[at + name] = Metric(found, measure.better, measure.unit)
            if name == "acceptance":
                out[f"{at}tokens_per_block"] = Metric(_block(found, gamma), "higher", "tokens")
    if "baseline" in models:
        out |= _differences(models["student"], models["baseline"])
    return out, left_out


def _block(acceptance: Estimate, gamma: int) -> Estimate:
    """It rises with the acceptance, so the ends of the interval are those of the acceptance."""
    ends = [None if end is None else tokens_per_block(end, gamma) for end in (acceptance.low, acceptance.high)]
    return Estimate(tokens_per_block(acceptance.value, gamma), ends[0], ends[1], acceptance.n)


def _differences(student: Sums, baseline: Sums) -> dict[str, Metric]:
    told = {name: m for name, m in MEASURES.items() if m.column in student and sum(student[m.per])}
    found = {
        name: intervals.ratio_difference(student[m.column], baseline[m.column], student[m.per])
        for name, m in told.items()
        if isfinite(sum(student[m.column]) + sum(baseline[m.column]))
    }
    return {f"difference/{name}": Metric(e, MEASURES[name].better, MEASURES[name].unit) for name, e in found.items()}


def _domain(found: Mapping[str, Tally], gamma: int) -> dict[str, Any]:
    sums = {name: tally.sums for name, tally in found.items()}
    metrics, _ = _metrics(sums, gamma)
    counted = next(iter(sums.values()))["tokens"]
    values = {name: metric.estimate.as_json() for name, metric in metrics.items()}
    return {"rows": len(counted), "tokens": int(sum(counted)), "metrics": values}


def _by_confidence(found: Mapping[str, Tally]) -> dict[str, Any]:
    """Agreement by the teacher's largest probability; an empty bin has no mean."""
    some = next(iter(found.values())).by_confidence
    if not some:
        return {}
    return {
        "edges": list(CONFIDENCE), "tokens": some["tokens"].astype(int).tolist(),
        "confidence": _means(some["teacher_top"], some["tokens"]),
        "agreement": {name: _means(t.by_confidence["agreement"], some["tokens"]) for name, t in found.items()},
    }  # fmt: skip


def _by_position(found: Mapping[str, Tally]) -> dict[str, Any]:
    """By the place of a token among the counted ones of its row; bins beyond the longest row are left out."""
    counts = next(iter(found.values())).by_position["tokens"]
    used = int(np.flatnonzero(counts).max(initial=-1)) + 1
    shown = [name for name in ("forward_kl", "agreement") if name in next(iter(found.values())).by_position]
    return {
        "from": list(POSITION[:used]), "tokens": counts[:used].astype(int).tolist(),
        **{measure: {name: _means(t.by_position[measure][:used], counts[:used]) for name, t in found.items()}
           for measure in shown},
    }  # fmt: skip


def _means(sums: np.ndarray, counts: np.ndarray) -> list[float | None]:
    return [float(s / n) if n and isfinite(s) else None for s, n in zip(sums, counts, strict=True)]


def _finite(value: float) -> float | None:
    """JSON has no word for infinity."""
    return value if isfinite(value) else None


def _items(domain: str, found: Mapping[str, Tally]) -> list[dict[str, Any]]:
    """One a row: its counted tokens and the sums over them, of each model."""
    student = found["student"].sums
    return [
        {"domain": domain, "row": i, "tokens": int(student["tokens"][i]),
         **{name: {measure: _finite(sums[i]) for measure, sums in t.sums.items() if measure != "tokens"}
            for name, t in found.items()}}
        for i in range(len(student["tokens"]))
    ]  # fmt: skip
