"""The result of a run as numbers and as a table: teacher, baseline and student side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from llmkd.build import Job
from llmkd.config import EvalTask
from llmkd.data.tasks.arithmetic import LEVELS
from llmkd.evaluation import intervals
from llmkd.evaluation.exact_match import solved_by_level
from llmkd.evaluation.labels import task_label
from llmkd.evaluation.pass_at import pass_at, solved
from llmkd.modelling import parameter_count
from llmkd.trainers.held_out import HeldOut, measure
from llmkd.trl_compat import whole_for_generation

Result = dict[str, Any]
"""``parameters``, ``held_out`` {domain: {measure: value}}, ``tasks`` {name: {level or pass@k: share}},
``task_intervals`` {name: {level or pass@k: {value, low, high, n}}} of 95% over the n problems, ``tokens``,
``seconds``"""


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
        **tasks,
        "tokens": int(trainer.tokens_seen),
        **({"completions": trainer.completions_seen} if hasattr(trainer, "completions_seen") else {}),
        "seconds": round(seconds, 1),
    }


def teacher_results(job: Job, yardstick: Any) -> dict[str, Result]:
    """What each teacher is worth on the same rows; ``yardstick`` asks no teacher."""
    out = {}
    for name, teacher in job.teachers.items():
        wrapped = teacher.wrapped or teacher.model
        with teacher.itself():
            held = {h.domain: measure(wrapped, h, {}, yardstick, job.trainer.accelerator) for h in _plain(job, name)}
            with whole_for_generation(wrapped, job.trainer.accelerator) as model:
                tasks = run_tasks(model, job.tokenizer, job.recipe.eval.tasks)
        out[name] = {"parameters": parameter_count(teacher.model), "held_out": held, **tasks}
    return out


def _plain(job: Job, name: str) -> Sequence[HeldOut]:
    """Held-out rows as the student reads them: a teacher with a rendering of its own is not measured on them."""
    return [] if job.teachers[name].own_rendering else job.held_out


def run_tasks(model: Any, tokenizer: Any, tasks: Sequence[EvalTask]) -> Result:
    """``tasks`` and ``task_intervals`` of a result."""
    found = {task.label: _run_task(model, tokenizer, task) for task in tasks}
    return {
        "tasks": {name: {measure: share.value for measure, share in of.items()} for name, of in found.items()},
        "task_intervals": {name: {m: share.as_json() for m, share in of.items()} for name, of in found.items()},
    }


def _run_task(model: Any, tokenizer: Any, task: EvalTask) -> dict[str, intervals.Estimate]:
    if task.by_level:
        levels = solved_by_level(model, tokenizer, task.levels or LEVELS, task.n, task.max_new_tokens)
        return {level: intervals.mean(right) for level, right in levels.items()}
    right = solved(model, tokenizer, task.task, task.n, samples=task.samples, max_new_tokens=task.max_new_tokens,
                   options=task.difficulty)  # fmt: skip
    return {f"pass@{k}": intervals.mean(pass_at(k, right)) for k in task.k or [1]}


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
        for key in dict.fromkeys(key for m in models for key in m["tasks"].get(task, {})):
            shares = [m["tasks"].get(task, {}).get(key) for m in models]
            out.append((task_label(task, key), [_percent(share, key) for share in shares]))
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


def _percent(share: float | None, measure: str) -> str:
    """A mean over samples moves in smaller steps than a share of answers."""
    return "-" if share is None else f"{100 * share:.{int(measure.startswith('pass@'))}f}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
