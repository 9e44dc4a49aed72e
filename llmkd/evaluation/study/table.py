"""What a study found, as numbers, as Markdown and on a terminal.

``table.json``::

    {"form": 1, "name": "divergences", "reference": "cross_entropy", "seeds": [0, 1, 2], "budget": {"steps": 150},
     "level": 0.95,                      # of every interval
     "measures": {"held_out.code.kl":    # in the order of the table
         {"label": "forward KL to the teacher: code", "better": "lower", "unit": "nats/token", "percent": false}},
     "arms": {"forward_kl": {            # in the order of the table
         "status": "complete",           # or failed, diverged, incomplete: the worst of its runs
         "overrides": {"objective.terms.kd.term": "forward_kl"},
         "runs": {"0": {"state": "finished", "folder": "arms/forward_kl/seed-0", "steps": 150, "tokens": 300123,
                        "seconds": 61.2, "diverged_at": null}},     # state: finished, failed, diverged, missing
         "measures": {"held_out.code.kl": {
             "values": {"0": 0.41, "1": 0.40, "2": null},           # by seed; null: not there, or not finite
             "mean": 0.405, "low": 0.40, "high": 0.41,              # the lowest and the highest of the seeds
             "interval": [0.34, 0.47],                              # of the mean, over seeds; null where withheld
             "difference": {                                        # to the reference; null for itself
                 "values": {"0": -0.2, "1": -0.21}, "mean": -0.205, "interval": [-0.27, -0.14],
                 "verdict": "better"}}}}},                          # worse, no difference; null where withheld
     "others": {"teacher": {"held_out.code.ce": 1.2}},              # teachers, of the first run that measured them
     "notes": ["..."]}                   # what a reader must know: withheld intervals, unequal token counts

Numbers that are not finite are null.  Folders are seen from the study's folder.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from llmkd.evaluation.intervals import LEVEL, Estimate, over_seeds
from llmkd.evaluation.labels import task_label
from llmkd.evaluation.study.outcomes import Outcome, Value

FORM = 1
_HELD_OUT = {
    "bits_per_byte": ("bits per byte", "lower", "bits/byte"),
    "ce": ("nats per token", "lower", "nats/token"),
    "kl": ("forward KL to the teacher", "lower", "nats/token"),
    "agreement": ("top-1 agreement", "higher", ""),
    "entropy": ("entropy of the student", None, "nats/token"),
    "teacher_entropy": ("entropy of the teacher", None, "nats/token"),
}
_ORDER = {"complete": 0, "incomplete": 1, "failed": 2, "diverged": 3}
_STATUS = {"finished": "complete", "missing": "incomplete", "failed": "failed", "diverged": "diverged"}

Outcomes = Mapping[str, Mapping[int, Outcome]]


def contents(
    study: Any, outcomes: Outcomes, overrides: Mapping[str, Mapping[str, Any]], reference: str | None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """The contents of ``table.json`` from what each run of each arm came to, in the order of ``outcomes``."""
    measures = _measures(outcomes, study.evaluations.measures)
    at_reference = outcomes.get(reference or "", {})
    arms = {}
    for name, runs in outcomes.items():
        cells = {path: _cell(path, runs, None if name == reference else at_reference, about["better"])
                 for path, about in measures.items()}  # fmt: skip
        status = max((_STATUS[run.state] for run in runs.values()), key=lambda s: _ORDER[s])
        arms[name] = {"status": status, "overrides": dict(overrides[name]),
                      "runs": {str(seed): run.facts() for seed, run in runs.items()}, "measures": cells}  # fmt: skip
    return {
        "form": FORM, "name": study.name, "reference": reference, "seeds": list(study.seeds),
        "budget": study.budget.model_dump(exclude_none=True), "level": LEVEL, "measures": measures, "arms": arms,
        "others": _others(outcomes, measures), "notes": [*_notes(study, arms, reference), *notes],
    }  # fmt: skip


def value_of(runs: Mapping[int, Outcome], path: str) -> float | None:
    """The mean of a measure over all seeds; None where a seed has none, or none that is finite."""
    values = [run.values[path].number if path in run.values else None for run in runs.values()]
    return None if None in values else over_seeds([v for v in values if v is not None]).value


def _measures(outcomes: Outcomes, patterns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Every measure that a run has and a pattern names: by pattern, then as the runs have them."""
    found: dict[str, Value] = {}
    for runs in outcomes.values():
        for run in runs.values():
            found = {**run.values, **found}
    paths = [path for pattern in patterns for path in found if fnmatch.fnmatchcase(path, pattern)]
    rank = {name: i for i, name in enumerate(_HELD_OUT)}
    measured = sorted(dict.fromkeys(paths), key=lambda path: _kind(path, rank))
    return {path: _about(path, found[path]) for path in measured}


def _kind(path: str, rank: Mapping[str, int]) -> tuple[int, int]:
    """Held-out measures stand by measure, not by domain; the sort leaves the order of domains as it is."""
    section = ("held_out", "tasks", "eval").index(path.split(".")[0])
    return section, rank.get(path.rpartition(".")[2].split("@")[0], len(rank)) if section == 0 else 0


def _about(path: str, value: Value) -> dict[str, Any]:
    section, name, measure = path.split(".", 2)
    if section == "tasks":
        return {"label": task_label(name, measure), "better": "higher", "unit": "", "percent": True}
    if section == "eval":
        return {"label": f"{name}: {measure}", "better": value.better, "unit": value.unit, "percent": False}
    base, _, teacher = measure.partition("@")
    label, better, unit = _HELD_OUT.get(base, (measure, None, ""))
    label += f" ({teacher})" if teacher else ""
    return {"label": f"{label}: {name}", "better": better, "unit": unit, "percent": False}


def _cell(path: str, runs: Mapping[int, Outcome], reference: Mapping[int, Outcome] | None, better: str | None
          ) -> dict[str, Any]:  # fmt: skip
    values = {seed: run.values[path].number if path in run.values else None for seed, run in runs.items()}
    there = [v for v in values.values() if v is not None]
    mean = over_seeds(there) if there else None
    return {
        "values": {str(seed): v for seed, v in values.items()},
        "mean": mean.value if mean else None,
        "low": min(there, default=None), "high": max(there, default=None),
        "interval": _interval(mean),
        "difference": None if reference is None else _difference(path, values, reference, better),
    }  # fmt: skip


def _difference(
    path: str, values: Mapping[int, float | None], reference: Mapping[int, Outcome], better: str | None
) -> dict[str, Any] | None:
    """Paired by seed: both runs saw the same rows in the same order."""
    theirs = {seed: run.values[path].number for seed, run in reference.items() if path in run.values}
    pairs = {seed: ours - other for seed, ours in values.items()
             if ours is not None and (other := theirs.get(seed)) is not None}  # fmt: skip
    if not pairs:
        return None
    estimate = over_seeds(list(pairs.values()))
    if estimate.low == estimate.high and estimate.value != 0:
        # A coarse measure, such as a share of 50 answers, may differ alike with every seed. That is no certainty.
        estimate = Estimate(estimate.value, None, None, estimate.n)
    verdict = None
    if estimate.low is not None and estimate.high is not None:
        verdict = "no difference"
        if estimate.excludes(0.0):
            verdict = _direction(estimate.value, better)
    return {"values": {str(seed): d for seed, d in pairs.items()}, "mean": estimate.value,
            "interval": _interval(estimate), "verdict": verdict}  # fmt: skip


def _direction(difference: float, better: str | None) -> str:
    if better is None:
        return "higher" if difference > 0 else "lower"
    return "better" if (difference > 0) == (better == "higher") else "worse"


def _interval(estimate: Estimate | None) -> list[float] | None:
    if estimate is None or estimate.low is None or estimate.high is None:
        return None
    return [estimate.low, estimate.high]


def _others(outcomes: Outcomes, measures: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    first = next((run for runs in outcomes.values() for run in runs.values() if run.others), None)
    if first is None:
        return {}
    return {name: {path: values[path] for path in measures if path in values} for name, values in first.others.items()}


def _notes(study: Any, arms: Mapping[str, Any], reference: str | None) -> list[str]:
    notes = []
    if len(study.seeds) == 1:
        notes.append("One seed: intervals and verdicts are withheld. A difference between two single runs may be the "
                     "seed's; give at least two seeds, three or more to see small ones.")  # fmt: skip
    differences = [cell["difference"] for arm in arms.values() for cell in arm["measures"].values()]
    judged = sum(d is not None and d["verdict"] is not None and d["interval"] != [0, 0] for d in differences)
    if judged:
        notes.append(f"{judged} differences to {reference} are judged, each at {LEVEL:.0%}: if there were none at all, "
                     f"about {judged * (1 - LEVEL):.0f} would still be called one.")  # fmt: skip
    for name, arm in arms.items():
        for seed, run in arm["runs"].items():
            if run["state"] == "diverged":
                at = "in its final measures" if run["diverged_at"] is None else f"at step {run['diverged_at']}"
                notes.append(f"{name}, seed {seed}: diverged {at}; what it ended with that is not finite is left out.")
            elif run["state"] != "finished":
                notes.append(f"{name}, seed {seed}: {run['state']}; its numbers are not in the table.")
    return notes
