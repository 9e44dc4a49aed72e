"""The result of a run as numbers and as a table: teacher, baseline and student side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from llmkd.build import Job
from llmkd.data.tasks.arithmetic import LEVELS
from llmkd.evaluation.exact_match import TASKS
from llmkd.modelling import parameter_count
from llmkd.trainers.held_out import HeldOut, measure
from llmkd.trl_compat import whole_for_generation

Result = dict[str, Any]
"""``parameters``, ``held_out`` {domain: {measure: value}}, ``tasks`` {task: {level: share}}, ``tokens``, ``seconds``"""


def student_result(job: Job, seconds: float) -> Result:
    """What the trained student is worth."""
    trainer = job.trainer
    trainer.model.eval()
    held = {h.domain: measure(trainer.model_wrapped, h, trainer.teachers, trainer.yardstick, trainer.accelerator)
            for h in job.held_out}  # fmt: skip
    with trainer.whole() as model:
        tasks = run_tasks(model, job.tokenizer, job.recipe.eval.tasks)
    return {
        "parameters": parameter_count(trainer.model),
        "held_out": held,
        "tasks": tasks,
        "tokens": int(trainer.tokens_seen),
        "seconds": round(seconds, 1),
    }


def teacher_results(job: Job, yardstick: Any) -> dict[str, Result]:
    """What each teacher is worth on the same rows; ``yardstick`` asks no teacher."""
    out = {}
    for name, teacher in job.teachers.items():
        wrapped = teacher.wrapped or teacher.model
        held = {h.domain: measure(wrapped, h, {}, yardstick, job.trainer.accelerator) for h in _plain(job, name)}
        with whole_for_generation(wrapped, job.trainer.accelerator) as model:
            tasks = run_tasks(model, job.tokenizer, job.recipe.eval.tasks)
        out[name] = {"parameters": parameter_count(teacher.model), "held_out": held, "tasks": tasks}
    return out


def _plain(job: Job, name: str) -> Sequence[HeldOut]:
    """Held-out rows as the student reads them: a teacher with a rendering of its own is not measured on them."""
    return [] if job.teachers[name].own_rendering else job.held_out


def run_tasks(model: Any, tokenizer: Any, tasks: Sequence[Any]) -> dict[str, dict[str, float]]:
    return {t.task: TASKS[t.task](model, tokenizer, t.levels or LEVELS, t.n, t.max_new_tokens) for t in tasks}


def table(results: Mapping[str, Result]) -> Table:
    """One column a model, one row a measure; a measure that a model does not have is a dash."""
    out = Table(title="Held-out results", title_justify="left")
    out.add_column("")
    for name in results:
        out.add_column(name, justify="right")
    for label, cells in rows(results):
        out.add_row(label, *cells)
    return out


def rows(results: Mapping[str, Result]) -> list[tuple[str, list[str]]]:
    """The table's rows as text, for the terminal, the model card and the README alike."""
    models = list(results.values())
    domains = list(dict.fromkeys(d for m in models for d in m["held_out"]))
    out = [("parameters", [f"{m['parameters']:,}" for m in models])]
    for measure_name, label in _measures(models):
        for domain in domains:
            cells = [_number(m["held_out"].get(domain, {}).get(measure_name)) for m in models]
            if any(c != "-" for c in cells):
                out.append((f"{label}: {domain}", cells))
    for task in dict.fromkeys(t for m in models for t in m["tasks"]):
        for level in dict.fromkeys(level for m in models for level in m["tasks"].get(task, {})):
            shares = [m["tasks"].get(task, {}).get(level) for m in models]
            out.append(
                (f"{task} level {level}: exact match", ["-" if s is None else f"{100 * s:.0f}%" for s in shares])
            )
    out.append(("tokens seen", [f"{m['tokens']:,}" if m.get("tokens") else "-" for m in models]))
    out.append(("seconds", [f"{m['seconds']:.0f}" if m.get("seconds") else "-" for m in models]))
    return out


def _measures(models: Sequence[Result]) -> list[tuple[str, str]]:
    """Keys and labels of the held-out measures; with several teachers ``kl`` and ``agreement`` are one for each."""
    found = list(dict.fromkeys(k for m in models for measures in m["held_out"].values() for k in measures))
    out = [("bits_per_byte", "bits per byte"), ("ce", "nats per token")]
    for base, alone, named in (("kl", "forward KL to the teacher", "forward KL to"),
                               ("agreement", "top-1 agreement", "top-1 agreement with")):  # fmt: skip
        out.append((base, alone))
        out += [(key, f"{named} {key.split('@')[1]}") for key in found if key.startswith(f"{base}@")]
    return out


def markdown(results: Mapping[str, Result]) -> str:
    lines = ["| | " + " | ".join(results) + " |", "|---|" + "---:|" * len(results)]
    return "\n".join(lines + [f"| {label} | " + " | ".join(cells) + " |" for label, cells in rows(results)])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
