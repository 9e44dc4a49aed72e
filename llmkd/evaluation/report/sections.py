"""The sections of the page, in their order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from llmkd.evaluation.report import curves, excerpts, facts, fidelity, markup, measured, samples, studies
from llmkd.evaluation.report.charts import Draw
from llmkd.evaluation.report.reading import Run, read_runs
from llmkd.evaluation.report.studies import Study, is_study, read_study


def read(folders: Sequence[Path]) -> tuple[list[Run], list[Study]]:
    """The runs and the studies among the folders; ValueError where one holds neither."""
    found = [read_study(folder) for folder in folders if is_study(folder)]
    return read_runs([folder for folder in folders if not is_study(folder)]), found


def sections(runs: Sequence[Run], found: Sequence[Study], draw: Draw) -> str:
    """HTML of everything that was found; each chart goes through ``draw``."""
    body = [part for study in found for part in _of_study(study, draw)]
    return "".join(body + (_of_runs(runs, draw) if runs else []))


def _of_runs(runs: Sequence[Run], draw: Draw) -> list[str]:
    return [
        markup.section("glance", "At a glance", facts.glance(runs), facts.remarks(runs)),
        markup.section("results", "Results", facts.results(runs)),
        markup.section("benchmarks", "Benchmarks", measured.benchmarks(runs, draw)),
        markup.section("loss", "Training", curves.training(runs, draw)),
        markup.section("held", "Held-out domains", curves.held_out(runs, draw)),
        markup.section("schedules", "Schedules", curves.schedules(runs, draw)),
        markup.section("fidelity", "Fidelity", fidelity.fidelity(runs, draw)),
        markup.section("calibration", "Calibration", fidelity.calibration(runs, draw)),
        markup.section("tokens", "Token by token", excerpts.excerpts(runs)),
        markup.section("answers", "Answers", excerpts.answers(runs)),
        markup.section("samples", "Samples", samples.samples(runs)),
        markup.section("speed", "Speed", curves.throughput(runs, draw)),
        markup.section("recipe", "Asked and reached", facts.asked_and_reached(runs), facts.recipes(runs)),
    ]


def _of_study(study: Study, draw: Draw) -> list[str]:
    key = hashlib.blake2b(str(study.folder).encode(), digest_size=3).hexdigest()
    name = study.name
    return [
        markup.section(f"arms-{key}", f"Arms of {name}", studies.arms_table(study), studies.notes(study)),
        markup.section(f"measures-{key}", f"Measures of {name}", studies.intervals(study, draw)),
        markup.section(f"curves-{key}", f"Curves of {name}", studies.curves(study, draw)),
        markup.section(f"samples-{key}", f"Samples of {name}", samples.samples(study.runs)),
        markup.section(f"runs-{key}", f"Runs of {name}", studies.runs_table(study), studies.sources(study)),
    ]
