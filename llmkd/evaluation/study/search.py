"""A search: trials one after the other, each an arm whose values are chosen from how the trials before it went.

The values of trial n depend on the search's seed, on n and on the results of the trials that had ended when it was
chosen, not on what this process has done before: a search that was killed goes on as if it had not been.  What was
chosen is kept in ``search.json``; results are read from the run folders.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llmkd import config
from llmkd.evaluation.study import compare, table
from llmkd.evaluation.study.arms import Arm, arm_of, check_folder
from llmkd.evaluation.study.folder import run_folder, write_json
from llmkd.evaluation.study.loading import StudyError
from llmkd.evaluation.study.outcomes import Outcome
from llmkd.evaluation.study.progress import Shown
from llmkd.evaluation.study.running import Stop
from llmkd.evaluation.study.sections import Distribution, Search, Space
from llmkd.evaluation.study.space import active, changes, grid, is_whole, read_space

if TYPE_CHECKING:
    from optuna.study import Study as OptunaStudy

STATES = {"finished": "COMPLETE", "diverged": "PRUNED", "failed": "FAIL", "missing": "FAIL"}


def check(work: compare.Comparison) -> None:
    """StudyError for a space that makes no sense, recipes that no trial could have, or where Optuna is missing."""
    search = _search(work)
    if search.sampler != "grid" and find_spec("optuna") is None:
        said = "Optuna is not installed: pip install 'llmkd[eval]', or take sampler: grid"
        raise StudyError([f"{work.source}: search: {said}"])
    space = read_space(search, work.source)
    names = [arm.name for arm in work.arms if arm.name.startswith("trial-")]
    if names:
        raise StudyError([f"{work.source}: arms.{names[0]}: is the name of a trial: give it another"])
    for values in corners(space.space):
        _arm(work, "trial", values, space)  # most mistakes are found before anything runs


def run(work: compare.Comparison, stop: Stop, lock: int, shown: Shown) -> bool:
    """Run what is left of the trials.  False when stopped."""
    search, path = _search(work), work.folder / "search.json"
    space = read_space(search, work.source)
    combinations = grid(space.space) if search.sampler == "grid" else []
    count = search.n_trials if not combinations else min(search.n_trials or len(combinations), len(combinations))
    assert count is not None
    chosen: list[dict[str, Any]] = json.loads(path.read_text())["trials"] if path.is_file() else []
    at_once = max(1, len(work.places) // len(work.study.seeds))
    trials: list[Arm] = []
    shown.add(count * len(work.study.seeds))
    while len(trials) < count:
        batch = range(len(trials), min(len(trials) + at_once, count))
        if len(chosen) < batch.stop:
            before = {arm.name: arm for arm in trials}
            chosen = chosen[: batch.start] + (
                combinations[batch.start : batch.stop] if combinations
                else _suggested(work, search, space.space, chosen[: batch.start], list(before), batch)
            )  # fmt: skip
            write_json(path, {"sampler": search.sampler, "seed": search.seed, "trials": chosen})
        added = [_arm(work, f"trial-{n:03d}", chosen[n], space) for n in batch]
        _check_folders(work, added)
        trials += added
        work.arms += added
        work.order = None
        complete = compare.run(work, compare.jobs_of(work, added), stop, lock, shown)
        work.order = _best_first(work, search, [arm.name for arm in trials])
        if not complete:
            return False
    return True


def _arm(work: compare.Comparison, name: str, values: Mapping[str, Any], space: Space) -> Arm:
    try:
        return arm_of(work.study, work.source, name, changes(values, space.space), work.fields, common=space.overrides)
    except config.RecipeError as error:
        said = [f"{work.source}: search.space with {json.dumps(values)}: {problem}" for problem in error.problems]
        raise StudyError(said) from None


def _check_folders(work: compare.Comparison, arms: list[Arm]) -> None:
    problems = [line for arm in arms for seed in work.study.seeds
                for line in check_folder(arm, run_folder(work.study, arm.name, seed), work.source)]  # fmt: skip
    if problems:
        raise StudyError(problems)


def corners(space: Mapping[str, Distribution]) -> list[dict[str, Any]]:
    """Combinations in which every choice and every end of a range stands once, conditions kept."""
    ends = {name: list(d.choices or [d.low, d.high]) for name, d in space.items()}
    found = []
    for count in range(max(len(values) for values in ends.values())):
        values: dict[str, Any] = {}
        for name, distribution in space.items():
            if active(values, distribution):
                values[name] = ends[name][count % len(ends[name])]
        found.append(values)
    return found


def _suggested(
    work: compare.Comparison, search: Search, space: Mapping[str, Distribution], chosen: list[dict[str, Any]],
    names: list[str], batch: range,
) -> list[dict[str, Any]]:  # fmt: skip
    """The values of the next trials, from those of the trials before them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=search.direction)
    outcomes = compare.outcomes_of(work)
    for name, values in zip(names, chosen, strict=True):
        study.add_trial(_told(study, values, space, outcomes[name], search.metric))
    found = []
    for number in batch:
        seed = (search.seed * 1_000_003 + number) % 2**32
        study.sampler = (optuna.samplers.TPESampler(seed=seed) if search.sampler == "tpe"
                         else optuna.samplers.RandomSampler(seed=seed))  # fmt: skip
        trial = study.ask()
        values: dict[str, Any] = {}
        for name, distribution in space.items():
            if active(values, distribution):
                values[name] = _suggest(trial, name, distribution)
        found.append(values)
    return found


def _suggest(trial: Any, name: str, distribution: Distribution) -> Any:
    if distribution.choices is not None:
        return trial.suggest_categorical(name, distribution.choices)
    low, high, log, step = distribution.low, distribution.high, distribution.log, distribution.step
    if is_whole(distribution):
        return trial.suggest_int(name, low, high, log=log, step=1 if step is None else step)
    return trial.suggest_float(name, low, high, log=log, step=step)


def _told(
    study: OptunaStudy, values: Mapping[str, Any], space: Mapping[str, Distribution], runs: Mapping[int, Outcome],
    metric: str,
) -> Any:  # fmt: skip
    """A trial that has ended.  One that diverged counts as worse than every other; one that failed does not count."""
    import optuna

    value = table.value_of(runs, metric)
    states = [STATES[run.state] for run in runs.values()]
    state = next((s for s in ("FAIL", "PRUNED") if s in states), "COMPLETE" if value is not None else "FAIL")
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[state], value=value if state == "COMPLETE" else None, params=dict(values),
        distributions={name: _range(space[name]) for name in values},
    )  # fmt: skip


def _range(distribution: Distribution) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if distribution.choices is not None:
        return CategoricalDistribution(distribution.choices)
    low, high, log, step = distribution.low, distribution.high, distribution.log, distribution.step
    if is_whole(distribution):
        return IntDistribution(low, high, log=log, step=1 if step is None else step)
    return FloatDistribution(float(low or 0), float(high or 0), log=log, step=step)


def _best_first(work: compare.Comparison, search: Search, trials: list[str]) -> list[str]:
    """The study's own arms, then the trials from the best to those without a result."""
    outcomes = compare.outcomes_of(work)
    sign = 1 if search.direction == "minimize" else -1
    values = {name: table.value_of(outcomes[name], search.metric) for name in trials}
    ranked = sorted(trials, key=lambda name: math.inf if values[name] is None else sign * values[name])
    return [arm.name for arm in work.arms if arm.name not in trials] + ranked


def _search(work: compare.Comparison) -> Search:
    assert work.study.search is not None
    return work.study.search
