"""One recipe from start to end: claim the folder, train the baseline, train the student, measure, write it all down."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

from llmkd import run
from llmkd.build import Job, build, build_yardstick
from llmkd.config import Objective, Recipe, Term, Train
from llmkd.evaluation.card import write_card
from llmkd.evaluation.samples import Samples
from llmkd.evaluation.table import student_result, table, teacher_results
from llmkd.export import push, save_final
from llmkd.trainers.callbacks import MetricsFile, ProgressBar, Stop, cut_metrics
from llmkd.trainers.checkpoints import newest_complete, read_mark, remove_incomplete

logger = logging.getLogger("llmkd")


def run_recipe(recipe: Recipe, source: str) -> int:
    """Run a recipe to its end, or go on with it.  Returns the exit code: 0, or 130 when stopped by a signal."""
    state = PartialState(cpu=bool(recipe.train.options.get("use_cpu")))
    _quiet(state.is_main_process)
    _warn_world_size(recipe, state.num_processes, source)
    console = Console(quiet=not state.is_main_process)
    parts = [("baseline", baseline_of(recipe))] if recipe.eval.baseline else []
    summary: dict[str, Any] | None = None
    baseline: dict[str, Any] | None = None
    for role, part in [*parts, ("student", recipe)]:
        _on_main(state, lambda part=part: run.claim(part, source))
        summary = run.finished(Path(part.run.output_dir))
        if summary is None:
            console.print(f"[bold]{role}[/]: {part.train.method}, {Path(part.run.output_dir)}")
            summary = _train(part, role, baseline)
        if summary is None:
            console.print("stopped; run the same command with run.resume=auto to go on")
            return 130
        baseline = summary
    assert summary is not None
    console.print(table(summary["results"]))
    console.print(f"run folder: {Path(recipe.run.output_dir).resolve()}", soft_wrap=True)
    return 0


def baseline_of(recipe: Recipe) -> Recipe:
    """The same student, rows, seed and steps, trained on cross-entropy alone."""
    folder = str(Path(recipe.run.output_dir) / "baseline")
    changes: dict[str, Any] = {
        "run": recipe.run.model_copy(update={"output_dir": folder, "name": f"{recipe.run.name}-baseline", "hub": None}),
        "objective": Objective(terms={"ce": Term(term="cross_entropy")}),
        "train": Train(method="sft", options=recipe.train.options),
        "eval": recipe.eval.model_copy(update={"baseline": False}),
    }
    return recipe.model_copy(update=changes)


def _train(recipe: Recipe, role: str, baseline: dict[str, Any] | None) -> dict[str, Any] | None:
    """Train, save and measure; the summary, or None when a signal stopped the training."""
    folder = Path(recipe.run.output_dir)
    state = PartialState()
    checkpoint = _prepare_resume(folder, state)
    clock = MetricsFile(folder / "metrics.jsonl", read_mark(checkpoint)["seconds"] if checkpoint else 0.0)
    stop = Stop(alone=state.num_processes == 1)
    job = build(recipe, callbacks=[clock, stop])
    _tune_callbacks(job, folder)
    job.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if job.trainer.state.global_step < job.trainer.state.max_steps and stop.asked:
        return None
    seconds = clock.seconds
    save_final(job)
    results = _results(job, role, baseline, seconds)
    summary = {
        "name": recipe.run.name, "results": results, "steps": job.trainer.state.global_step,
        "processes": state.num_processes, "notes": _notes(recipe),
    }  # fmt: skip
    if state.is_main_process:
        write_card(job, summary)
        failure = push(job)
        if failure:
            logger.warning(failure)
            summary["notes"].append(failure)
        run.write_json(folder / "summary.json", summary)
    state.wait_for_everyone()
    job.trainer.accelerator.free_memory()
    return run.finished(folder)


def _prepare_resume(folder: Path, state: PartialState) -> Path | None:
    """Clear what a kill left half-written; the checkpoint to go on from."""
    if state.is_main_process:
        for name in remove_incomplete(folder):
            logger.warning("%s was not complete and has been removed", folder / name)
    state.wait_for_everyone()
    checkpoint = newest_complete(folder)
    if state.is_main_process:
        cut_metrics(folder / "metrics.jsonl", read_mark(checkpoint)["step"] if checkpoint else -1)
    return checkpoint


def _tune_callbacks(job: Job, folder: Path) -> None:
    trainer, recipe = job.trainer, job.recipe
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ProgressBar())
    if trainer.args.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(trainer.args.early_stopping_patience))
    if recipe.eval.samples:
        trainer.add_callback(
            Samples(trainer, job.held_out, job.tokenizer, recipe.eval.samples, folder / "samples.jsonl")
        )


def _results(job: Job, role: str, baseline: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    """Teachers, then the baseline, then the student.  A baseline's own folder holds its own row alone."""
    own = {role: student_result(job, seconds)}
    if role == "baseline":
        return own
    yardstick = build_yardstick(job.recipe, job.trainer.yardstick.domains, job.trainer.yardstick.vocabulary, [])
    return {**teacher_results(job, yardstick), **(baseline["results"] if baseline else {}), **own}


def _notes(recipe: Recipe) -> list[str]:
    if not any(s.path == "llmkd/quickstart" for s in [*recipe.data.datasets, *recipe.eval.datasets]):
        return []
    from llmkd.data.quickstart.corpus import version_note

    note = version_note()
    return [note] if note else []


def _warn_world_size(recipe: Recipe, processes: int, source: str) -> None:
    asked = recipe.run.world_size
    if asked is not None and asked != processes:
        logger.warning(
            "%s: run.world_size: the recipe is meant for %d processes, this is a run of %d: launch it with accelerate "
            "launch --num_processes %d", source, asked, processes, asked,
        )  # fmt: skip


def _on_main(state: PartialState, action: Any) -> None:
    """Do something on the main process; a ValueError there is raised on every process."""
    said: list[str | None] = [None]
    if state.is_main_process:
        try:
            action()
        except (ValueError, OSError) as error:
            said = [str(error)]
    if state.num_processes > 1:
        broadcast_object_list(said)
    if said[0] is not None:
        raise ValueError(said[0])


def _quiet(main: bool) -> None:
    """One voice: warnings of ours from the main process, of the libraries below only errors."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING if main else logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
