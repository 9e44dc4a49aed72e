"""One recipe from start to end: claim the folder, train the baseline, train the student, measure, write it all down."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback

from llmkd import run
from llmkd.build import Job, build, build_yardstick
from llmkd.config import Objective, Recipe, Term, Train
from llmkd.data.pipeline import Rows
from llmkd.evaluation import pass_at
from llmkd.evaluation.card import write_card
from llmkd.evaluation.samples import Samples
from llmkd.evaluation.table import student_result, table, teacher_results
from llmkd.export import push, save_final
from llmkd.trainers.callbacks import MetricsFile, Patience, ProgressBar, Stop, cut_metrics
from llmkd.trainers.checkpoints import newest_complete, read_mark, remove_incomplete, saving

logger = logging.getLogger("llmkd")


def run_recipe(recipe: Recipe, source: str) -> int:
    """Run a recipe to its end, or go on with it.  Returns the exit code: 0, or 130 when stopped by a signal."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, where it is installed, warns while it guesses
    state = PartialState(cpu=bool(recipe.train.options.get("use_cpu")))
    _quiet(state.is_main_process)
    _warn_world_size(recipe, state.num_processes, source)
    _check_fsdp(state, source)
    pass_at.check(recipe.eval.tasks)
    console = Console(quiet=not state.is_main_process)
    parts = [("student", recipe)]
    if recipe.eval.baseline:
        parts.insert(0, ("baseline", baseline_of(recipe)))
    for _, part in reversed(parts):  # the outer folder first: nothing is written into another run's
        _on_main(state, lambda part=part: run.claim(part, source))
    summary: dict[str, Any] | None = None
    baseline: dict[str, Any] | None = None
    rows: Rows | None = None
    for role, part in parts:
        summary = run.finished(Path(part.run.output_dir))
        if summary is None:
            console.print(f"[bold]{role}[/]: {part.train.method}, {Path(part.run.output_dir)}")
            summary, rows = _train(part, role, baseline, rows)
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


def _train(
    recipe: Recipe, role: str, baseline: dict[str, Any] | None, rows: Rows | None
) -> tuple[dict[str, Any] | None, Rows]:
    """Train, save and measure.  The summary, or None when a signal stopped the training; and the rows, prepared."""
    folder = Path(recipe.run.output_dir)
    state = PartialState()
    checkpoint = _prepare_resume(folder, state)
    clock = MetricsFile(folder / "metrics.jsonl", read_mark(checkpoint)["seconds"] if checkpoint else 0.0)
    stop = Stop(alone=state.num_processes == 1)
    job = build(recipe, callbacks=[clock, stop], rows=rows)
    _tune_callbacks(job, folder)
    job.trainer.args.eval_on_start &= checkpoint is None
    with saving(folder, folder):
        try:
            job.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            stop.restore()
        if job.trainer.state.global_step < job.trainer.state.max_steps and stop.asked:
            return None, job.rows
        _finish(job, role, baseline, clock.seconds)
    state.wait_for_everyone()
    job.trainer.accelerator.free_memory()
    return run.finished(folder), job.rows


def _finish(job: Job, role: str, baseline: dict[str, Any] | None, seconds: float) -> None:
    """Save the final model, measure it, and write the model card and, last of all, the summary."""
    save_final(job)
    results = _results(job, role, baseline, seconds)
    state = PartialState()
    summary = {
        "name": job.recipe.run.name, "results": results, "steps": job.trainer.state.global_step,
        "processes": state.num_processes, "notes": _notes(job.recipe),
    }  # fmt: skip
    if state.is_main_process:
        write_card(job, summary)
        failure = push(job)
        if failure:
            logger.warning(failure)
            summary["notes"].append(failure)
        run.write_json(Path(job.recipe.run.output_dir) / "summary.json", summary)


def _prepare_resume(folder: Path, state: PartialState) -> Path | None:
    """Clear what a kill left half-written; the checkpoint to go on from."""
    if state.is_main_process:
        for name in remove_incomplete(folder):
            logger.warning("%s was not complete and has been removed", folder / name)
    state.wait_for_everyone()
    checkpoint = newest_complete(folder)
    if state.is_main_process:
        for name in ("metrics.jsonl", "samples.jsonl"):
            cut_metrics(folder / name, read_mark(checkpoint)["step"] if checkpoint else -1)
    return checkpoint


def _tune_callbacks(job: Job, folder: Path) -> None:
    trainer, recipe = job.trainer, job.recipe
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ProgressBar())
    if trainer.args.early_stopping_patience:
        trainer.add_callback(Patience(trainer.args.early_stopping_patience))
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


def _check_fsdp(state: PartialState, source: str) -> None:
    """Refuse what accelerate would otherwise do without a word, ValueError."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if state.device.type == "cpu":
        raise ValueError(
            f"{source}: accelerate shards with FSDP on GPUs alone and would train whole copies of the model here: take "
            "recipes/accelerate/zero3.yaml, or a configuration without FSDP"
        )
    if os.environ.get("FSDP_VERSION") != "2" or os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "").lower() == "true":
        raise ValueError(
            f"{source}: FSDP needs fsdp_version: 2 and fsdp_cpu_ram_efficient_loading: false in the configuration of "
            "accelerate, as in recipes/accelerate/fsdp2.yaml"
        )


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
    """One voice: warnings and bars from the main process alone, of the libraries below only errors."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING if main else logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # a bar each time a file of weights is read or written
    if not main:
        datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
