"""A whole study: its arms checked, run or gone on with, measured, and written down."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from llmkd.config import TrainFields
from llmkd.evaluation.study import curves, showing, table
from llmkd.evaluation.study.arms import Arm, check_folder, find, resolve
from llmkd.evaluation.study.folder import locked, run_folder, write_commands, write_json, write_study
from llmkd.evaluation.study.loading import StudyError, load_study
from llmkd.evaluation.study.outcomes import Outcome, outcome
from llmkd.evaluation.study.progress import Shown
from llmkd.evaluation.study.running import Ended, Job, Slot, Stop, run_all, slots
from llmkd.evaluation.study.sections import Study
from llmkd.evaluation.study.space import find_space
from llmkd.trainers.checkpoints import write_whole
from llmkd.trainers.settings import train_fields

CPU_CONFIG = "recipes/accelerate/cpu.yaml"
ON_CPU = ["--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
ON_GPU = ON_CPU[1:]
FILE_WIDTH = 200


@dataclass
class Comparison:
    """A study at work.  arms: grows with the trials of a search; ended: the runs of this call, by arm and seed."""

    study: Study
    source: Path
    arms: list[Arm]
    fields: TrainFields
    places: Sequence[Slot]
    console: Console
    ended: dict[tuple[str, int], Ended] = field(default_factory=dict)
    order: list[str] | None = None

    @property
    def folder(self) -> Path:
        return Path(self.study.output_dir)

    @property
    def reference(self) -> str | None:
        return self.study.reference or next(iter(self.study.arms), None)


def compare(
    path: str, overrides: Sequence[str], jobs: int | None, gpus: Sequence[str], dry_run: bool, output_dir: str | None
) -> int:
    """0 when every run has ended and the arms saw the same tokens, 1 otherwise, 130 when stopped.  StudyError for a
    mistake in the study or its recipes."""
    study = load_study(path, overrides, output_dir)
    fields = train_fields
    source = Path(path)
    work = Comparison(study, source, resolve(study, source, fields), fields, slots(jobs, gpus), _console())
    if study.search is not None:
        from llmkd.evaluation.study import search

        search.check(work)
    problems = [line for arm in work.arms for seed in study.seeds
                for line in check_folder(arm, run_folder(study, arm.name, seed), source)]  # fmt: skip
    if problems:
        raise StudyError(problems)
    if dry_run:
        _print_plan(work)
        return 0
    with locked(work.folder, lambda text: work.console.print(text)) as lock, Stop().listening() as stop:
        write_study(_as_seen_from_here(study, source))
        jobs_left = jobs_of(work, work.arms)
        with Shown(work.console, len(work.arms) * len(study.seeds), _done(work, work.arms)) as shown:
            complete = run(work, jobs_left, stop, lock, shown)
            if complete and study.search is not None:
                complete = search.run(work, stop, lock, shown)
        return _finish(work, complete)


def _as_seen_from_here(study: Study, source: Path) -> Study:
    """The study that can be run from its own folder: with the paths that were found."""
    arms = {name: arm if arm.recipe is None else arm.model_copy(update={"recipe": str(find(arm.recipe, source))})
            for name, arm in study.arms.items()}  # fmt: skip
    search = study.search
    if search is not None and isinstance(search.space, str):
        search = search.model_copy(update={"space": str(find_space(search.space, source))})
    return study.model_copy(update={"recipe": str(find(study.recipe, source)), "arms": arms, "search": search})


def _console() -> Console:
    """As wide as the terminal; wide in a file, where lines need no breaks."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)


def run(work: Comparison, jobs: Sequence[Job], stop: Stop, lock: int, shown: Shown) -> bool:
    """Run some jobs, and write the tables after each.  False when stopped."""

    def ended(end: Ended) -> None:
        stopped = bool(stop.asked) and end.code != 0
        shown.ended(end, stopped)
        if not stopped:
            work.ended[end.job.arm, end.job.seed] = end
        evaluation = evaluation_command(work, end.job.folder)
        if end.code == 0 and evaluation:
            _mark(end.job.folder).parent.mkdir(exist_ok=True)
            write_whole(_mark(end.job.folder), shlex.join(evaluation))
        if end.code != 0 and not stopped:
            work.console.print(f"  {end.job.log}:", highlight=False)
            work.console.print("\n".join(f"  | {line}" for line in end.last_lines.splitlines()), style="dim",
                               markup=False, highlight=False)  # fmt: skip
        write(work)

    write(work)
    return run_all(jobs, work.places, stop, lock, ended, shown.tick, lambda: shown.stopping(stop.asked))


def jobs_of(work: Comparison, arms: Sequence[Arm]) -> list[Job]:
    """What is still to be run, seed after seed, so that what is there early can be compared."""
    found = []
    for seed in work.study.seeds:
        for arm in arms:
            folder = run_folder(work.study, arm.name, seed)
            commands = [] if (folder / "summary.json").is_file() else [train_command(work, arm, seed, str(work.folder))]
            evaluation = evaluation_command(work, folder)
            if evaluation and not _evaluated(work, folder):
                commands.append(evaluation)
            if commands:
                steps = arm.resolved.train.options.get("max_steps")
                found.append(Job(arm.name, seed, commands, folder, steps))
    return found


def train_command(work: Comparison, arm: Arm, seed: int, output_dir: str) -> list[str]:
    own = [f"run.seed={seed}", f"run.output_dir={output_dir}/arms/{arm.name}/seed-{seed}", "run.resume=auto"]
    return [*launcher(work), str(arm.recipe), *arm.overrides, *own]


def launcher(work: Comparison) -> list[str]:
    given = work.study.launcher
    if given is not None:
        return shlex.split(given) if isinstance(given, str) else list(given)
    start = ["accelerate", "launch", "--quiet"]
    import torch

    if torch.cuda.is_available():
        return [*start, *ON_GPU, "-m", "llmkd.train"]
    config = ["--config_file", CPU_CONFIG] if Path(CPU_CONFIG).is_file() else ON_CPU
    return [*start, *config, "-m", "llmkd.train"]


def evaluation_command(work: Comparison, run: Path) -> list[str]:
    """llmkd-eval on a finished run, [] where the study asks for nothing of it."""
    asked = work.study.evaluations
    return ["llmkd-eval", str(run), "--tasks", ",".join(asked.tasks), *asked.arguments] if asked.tasks else []


def _evaluated(work: Comparison, run: Path) -> bool:
    """Whether the same evaluation has ended well before; llmkd-eval itself repeats nothing, but it takes its time."""
    return _mark(run).is_file() and _mark(run).read_text() == shlex.join(evaluation_command(work, run))


def _mark(run: Path) -> Path:
    return run / "eval" / "asked.txt"


def _done(work: Comparison, arms: Sequence[Arm]) -> int:
    return len(arms) * len(work.study.seeds) - len(jobs_of(work, arms))


def outcomes_of(work: Comparison) -> dict[str, dict[int, Outcome]]:
    """What every run of every arm has come to, in the order of the table."""
    names = [arm.name for arm in work.arms]
    if work.order is not None:
        names.sort(key=work.order.index)
    found: dict[str, dict[int, Outcome]] = {}
    for name in names:
        found[name] = {}
        for seed in work.study.seeds:
            folder = run_folder(work.study, name, seed)
            end = work.ended.get((name, seed))
            found[name][seed] = outcome(folder, f"arms/{name}/seed-{seed}", failed=end is not None and end.code != 0)
    return found


def unequal_tokens(outcomes: Mapping[str, Mapping[int, Outcome]]) -> list[str]:
    """A line for every seed with which arms saw different numbers of tokens; of completions, where they wrote them
    themselves, since how long these are is their own doing."""
    lines = []
    for seed in next(iter(outcomes.values()), {}):
        ended = {name: runs[seed] for name, runs in outcomes.items()}
        wrote = {name: run.completions for name, run in ended.items() if run.completions is not None}
        read = {name: run.tokens for name, run in ended.items() if run.tokens is not None and name not in wrote}
        for what, counts in (("tokens", read), ("completions", wrote)):
            if len(set(counts.values())) > 1:
                said = ", ".join(f"{name} {count:,}" for name, count in counts.items())
                lines.append(f"UNEQUAL BUDGETS, seed {seed}: the arms saw different numbers of {what}: {said}.")
    return lines


def write(work: Comparison) -> dict[str, Any]:
    """Write all that is known: the tables, the curves, the commands."""
    outcomes = outcomes_of(work)
    changes = {arm.name: arm.changes for arm in work.arms}
    found = table.contents(work.study, outcomes, changes, work.reference, unequal_tokens(outcomes))
    write_commands(work.folder, [(work.places[0].environment(), train_command(work, arm, seed, "{OUT}"))
                                 for arm in work.arms for seed in work.study.seeds])  # fmt: skip
    write_json(work.folder / "curves.json", curves.contents(outcomes, work.folder), indent=None)
    write_json(work.folder / "table.json", found)
    write_whole(work.folder / "table.md", showing.markdown(found))
    return found


def _finish(work: Comparison, complete: bool) -> int:
    found = write(work)
    if not complete:
        work.console.print("stopped; what was running has saved a checkpoint where it could. The same command goes on.")
        return 130
    showing.print_tables(found, work.console)
    work.console.print(f"study folder: {work.folder.resolve()}", soft_wrap=True, highlight=False)
    outcomes = outcomes_of(work)
    failed = _failed(work, outcomes)
    for name in failed:
        work.console.print(f"[red]failed[/]: {name}; the same command tries it again", highlight=False)
    unequal = unequal_tokens(outcomes)
    for line in unequal:
        work.console.print(line, style="bold red", highlight=False)
    return 1 if failed or unequal else 0


def _failed(work: Comparison, outcomes: Mapping[str, Mapping[int, Outcome]]) -> list[str]:
    """Runs without a result, or whose evaluation failed.  One that diverged has told what there is to know."""
    found = []
    for arm, runs in outcomes.items():
        for seed, run in runs.items():
            end = work.ended.get((arm, seed))
            not_measured = run.state == "finished" and end is not None and end.code != 0
            if run.state in ("failed", "missing") or not_measured:
                found.append(f"{arm}, seed {seed}")
    return found


def _print_plan(work: Comparison) -> None:
    left = {(job.arm, job.seed): job for job in jobs_of(work, work.arms)}
    work.console.print(f"{len(left)} of {len(work.arms) * len(work.study.seeds)} runs are still to be made:",
                       highlight=False)  # fmt: skip
    for job in left.values():
        for command in job.commands:
            print(" ", shlex.join(command))
    if work.study.search is not None:
        count = work.study.search.n_trials
        work.console.print(f"then {count or 'all'} trials of the search, each with seeds {work.study.seeds}")
