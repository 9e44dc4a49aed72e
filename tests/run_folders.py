"""Run folders and study folders as a training leaves them, written by hand for what reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llmkd.evaluation.intervals import Estimate
from llmkd.evaluation.results import Metric, Record, Store

DOMAINS = ("code", "prose")


def line(step: int, faster: float = 1.0) -> dict[str, Any]:
    loss = 1.5 + 6 * math.exp(-faster * step / 20)
    return {"step": step, "seconds": 0.4 * step, "loss": loss, "learning_rate": 1e-3 / step, "kd/value": loss - 0.5,
            "kd/value/code": loss - 0.4, "kd/weight": 1 - step / 100, "tokens": 900 * step,
            "peak_memory": 10**9 + step}  # fmt: skip


def evaluation(step: int, faster: float = 1.0) -> dict[str, Any]:
    kl = 0.5 + 3 * math.exp(-faster * step / 30)
    return {"step": step, "seconds": 0.4 * step + 0.1, "eval/mean/kl": kl} | {
        f"eval/{domain}/{measure}": kl + i + j
        for i, domain in enumerate(DOMAINS)
        for j, measure in enumerate(("kl", "bits_per_byte"))
    }


def result(kl: float | None, parameters: int = 1000) -> dict[str, Any]:
    measures = {"bits_per_byte": 1.25} | ({} if kl is None else {"kl": kl})
    return {"parameters": parameters, "held_out": {d: dict(measures) for d in DOMAINS},
            "tasks": {"arithmetic": {"1": 0.75}}, "tokens": 54000, "seconds": 24.0}  # fmt: skip


def write_run(
    folder: Path, name: str = "first", steps: int = 60, every: int = 2, faster: float = 1.0, ended: bool = True,
    completion: str = "a completion", baseline: bool = True,
) -> Path:  # fmt: skip
    """A run with one term under a schedule, two domains, two samples, and a baseline."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {
        "run": {"name": name}, "train": {"max_steps": 60, "method": "offpolicy"},
        "objective": {"terms": {"kd": {"term": "forward_kl", "weight": {"schedule": "linear"}}}},
        "eval": {"samples": 2, "baseline": baseline, "tasks": [{"task": "arithmetic"}], "datasets": [{"path": "x"}]},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = {"llmkd": "0.1.0", "commit": "0123456789abcdef", "python": "3.11.7", "platform": "Linux",
                   "device": "cpu x1", "packages": {"torch": "2.13.0"}, "command": ["train.py"]}  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment))
    lines = [line(step, faster) for step in range(every, steps + 1, every)]
    lines += [evaluation(step, faster) for step in range(20, steps + 1, 20)]
    write_lines(folder / "metrics.jsonl", sorted(lines, key=lambda row: row["step"]))
    samples = [{"step": step, "domain": domain, "prompt": f"prompt of {domain}", "reference": "a reference",
                "completion": f"{completion} {step}"} for step in (20, 60) for domain in DOMAINS]  # fmt: skip
    write_lines(folder / "samples.jsonl", samples)
    if ended:
        results = {"teacher": result(None, 9000), "student": result(0.61)}
        if baseline:
            results["baseline"] = result(0.9)
            results["student"] = results.pop("student")
        summary = {"name": name, "results": results, "steps": steps, "processes": 1, "notes": ["a note of the run"]}
        (folder / "summary.json").write_text(json.dumps(summary))
    if baseline:
        write_run(folder / "baseline", f"{name}-baseline", steps, every, 0.5, True, "a baseline's", baseline=False)
    return folder


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


def write_records(folder: Path, agreement: float = 0.75, token: str = " the") -> None:
    """A benchmark, fidelity and calibration, with details in the form of the measures."""
    store = Store(folder / "eval")
    accuracy = Metric(Estimate(0.4251, 0.3851, 0.4651, 200), "higher")
    store.write(Record("sst2", "1", "model", {"limit": 200}, {"acc": accuracy}))
    excerpt = {
        "domain": "code", "row": 0, "prompt": "def ", "tokens": [" a", token, "\n"],
        "teacher": {"top": [[[" a", 0.9]], [[token, 0.8]], [["\n", 0.7]]]},
        "student": {"forward_kl": [0.01, 0.7341, 4.5], "agreement": [1, 0, 0], "top": [[[" b", 0.5]]] * 3},
    }  # fmt: skip
    teacher = {
        "labels": {"forward_kl": "forward KL to the teacher"},
        "by_confidence": {"code": {"edges": [0, 0.5, 1], "tokens": [4, 6], "confidence": [0.3, 0.8],
                                   "agreement": {"student": [0.2, agreement]}}},
        "by_position": {"code": {"from": [0, 1, 2], "tokens": [1, 1, 1], "forward_kl": {"student": [0.3, 0.4, 0.5]}}},
        "excerpts": [excerpt],
        "answers": {"samples": [{"task": "arithmetic", "level": 1, "question": "What is 2 + 2?", "answer": "4",
                                 "completions": {"student": "It is 5.", "teacher": "It is 4."}}]},
    }  # fmt: skip
    metrics = {
        "forward_kl": Metric(Estimate(0.6125, 0.5, 0.7, 20), "lower", "nats/token"),
        "baseline/forward_kl": Metric(Estimate(0.9375, 0.8, 1.1, 20), "lower", "nats/token"),
    }
    store.write(Record("fidelity", "1", "model", {}, metrics, {"teachers": {"big": teacher}}))
    bins = [{"low": 0, "high": 0.5, "confidence": 0.25, "accuracy": 0.125, "count": 5},
            {"low": 0.5, "high": 1, "confidence": 0.875, "accuracy": 0.625, "count": 9}]  # fmt: skip
    ece = {"ece": Metric(Estimate(0.2041, 0.1, 0.3, 20), "lower")}
    store.write(Record("calibration", "1", "model", {"bins": 2}, ece, {"code": {"reliability": bins}}))


def write_study(folder: Path, seeds: Sequence[int] = (0, 1), status: str = "complete") -> Path:
    """A study of two arms: what ``llmkd compare`` writes, and the runs."""
    folder.mkdir(parents=True, exist_ok=True)
    path = "held_out.code.kl"
    arms: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for i, arm in enumerate(("forward_kl", "jsd")):
        values = {str(seed): 0.5 + i / 4 + seed / 100 for seed in seeds}
        mean = sum(values.values()) / len(values)
        withheld = len(seeds) < 2
        difference = {"values": {}, "mean": 0.25, "interval": None if withheld else [0.2, 0.3],
                      "verdict": None if withheld else "worse"}  # fmt: skip
        interval = None if withheld else [mean - 0.1, mean + 0.1]
        measure = {"values": values, "mean": mean, "low": min(values.values()), "high": max(values.values()),
                   "interval": interval, "difference": difference if i else None}  # fmt: skip
        runs = {str(s): {"state": "finished", "folder": f"arms/{arm}/seed-{s}", "steps": 60, "tokens": 54000,
                         "seconds": 24.0, "diverged_at": None} for s in seeds}  # fmt: skip
        arms[arm] = {"status": status, "overrides": {"objective.terms.kd.term": arm}, "runs": runs,
                     "measures": {path: measure}}  # fmt: skip
        curves[arm] = {str(s): {"loss": [[20, 3 + i + s / 10], [40, 2 + i + s / 10]],
                                "reward": [[20, 0.25], [40, 0.25 + i / 4]],
                                path: [[20, 1.0 + i], [40, values[str(s)]]]} for s in seeds}  # fmt: skip
        write_run(folder / "arms" / arm / f"seed-{seeds[0]}", arm, completion=f"said by {arm}", baseline=False)
    about = {"label": "forward KL to the teacher: code", "better": "lower", "unit": "nats/token", "percent": False}
    table = {"form": 1, "name": "tiny", "reference": "forward_kl", "seeds": list(seeds), "budget": {"steps": 60},
             "level": 0.95, "measures": {path: about}, "arms": arms, "others": {}, "notes": ["a note"]}  # fmt: skip
    (folder / "table.json").write_text(json.dumps(table))
    (folder / "curves.json").write_text(json.dumps({"form": 1, "arms": curves}))
    (folder / "study.yaml").write_text("name: tiny\n")
    (folder / "commands.sh").write_text("accelerate launch ...\n")
    return folder
