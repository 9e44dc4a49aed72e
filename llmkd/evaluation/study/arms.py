"""The arms of a study as whole recipes, and the proof that they differ in what the study says and in nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from llmkd import config
from llmkd.config.schema import field_at, keys_of, section_class
from llmkd.config.sections import Recipe
from llmkd.config.values import closest, shown
from llmkd.config.yaml_text import YamlProblem, parse
from llmkd.evaluation import pass_at
from llmkd.evaluation.study.loading import StudyError
from llmkd.evaluation.study.sections import Study
from llmkd.run import FREE_TO_CHANGE, flat, trace_of_run

THE_STUDYS_OWN = ("run.output_dir", "run.name", "run.seed", "run.resume")
LENGTH = ("train.max_steps", "train.num_train_epochs")
"""What a budget is made of: it may not differ, whatever ``varies`` says."""


@dataclass(frozen=True)
class Arm:
    """recipe: the base's path; overrides: all changes to it, the study's own among them; changes: the arm's alone."""

    name: str
    recipe: Path
    overrides: tuple[str, ...]
    resolved: Recipe
    changes: Mapping[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        return flat(self.resolved.to_dict())


def resolve(study: Study, source: Path, fields: config.TrainFields) -> list[Arm]:
    """Every arm as a recipe; fields: what ``train`` may hold.  StudyError with every arm's every problem, and where
    arms differ in more than ``varies`` says."""
    arms, problems = [], list(_varies_problems(study.varies, source, fields))
    for name, given in study.arms.items():
        where = f"{source}: arms.{name}"
        problems += _not_an_arms(where, given.overrides, study)
        try:
            arms.append(arm_of(study, source, name, given.overrides, fields, given.recipe))
        except config.RecipeError as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
        except StudyError as error:
            problems += error.problems
    problems += _task_problems(arms, source)
    if problems:
        raise StudyError(list(dict.fromkeys(problems)))
    if arms:
        reference = next(arm for arm in arms if arm.name == (study.reference or arms[0].name))
        problems = [line for arm in arms for line in differences(arm, reference, study, source)]
    if problems:
        raise StudyError(problems)
    return arms


def _task_problems(arms: Sequence[Arm], source: Path) -> Iterator[str]:
    """A line for each arm with a task that cannot be asked; tasks that arms share are looked at once."""
    told: dict[str, str] = {}
    for arm in arms:
        tasks = arm.resolved.eval.tasks
        if repr(tasks) not in told:
            told[repr(tasks)] = ""
            try:
                pass_at.check(tasks)
            except ValueError as error:
                told[repr(tasks)] = str(error)
        if told[repr(tasks)]:
            yield f"{source}: arms.{arm.name}: {told[repr(tasks)]}"


def arm_of(
    study: Study, source: Path, name: str, changes: Mapping[str, Any], fields: config.TrainFields,
    recipe: str | None = None, common: Mapping[str, Any] | None = None,
) -> Arm:  # fmt: skip
    """One arm, its budget filled in; common: changes before its own.  RecipeError for a recipe that is wrong."""
    path = find(recipe or study.recipe, source)
    overrides = [override(key, value) for key, value in {**study.overrides, **(common or {}), **changes}.items()]
    overrides.append(override("run.name", f"{study.name}-{name}"))
    if study.budget.steps is not None:
        overrides.append(override("train.max_steps", study.budget.steps))
    resolved = config.load(path, overrides, train_fields=fields)
    if study.budget.tokens is not None:
        steps = steps_for(study.budget.tokens, resolved, f"{source}: arms.{name}")
        overrides.append(override("train.max_steps", steps))
        resolved = config.load(path, overrides, train_fields=fields)
    return Arm(name, path, tuple(overrides), resolved, dict(changes))


def find(recipe: str, source: Path) -> Path:
    """The recipe's file, seen from the study's folder, or from the current one."""
    for path in (source.parent / recipe, Path(recipe)):
        if path.is_file():
            absolute, here = path.resolve(), Path.cwd()
            return absolute.relative_to(here) if absolute.is_relative_to(here) else absolute
    raise StudyError([f"{source}: recipe: {recipe} is neither in {source.parent} nor in {Path.cwd()}: give its path"])


def override(key: str, value: Any) -> str:
    """``key=value`` that reads back as the value: bare where that is enough, JSON, which is YAML, otherwise."""
    if isinstance(value, str):
        try:
            if value == value.strip() and parse(value) == value:
                return f"{key}={value}"
        except YamlProblem:
            pass
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def steps_for(tokens: int, recipe: Recipe, where: str) -> int:
    """The fewest steps whose batches have room for so many tokens: rows of ``max_length`` each."""
    options = recipe.train.options
    length = options.get("max_length", 1024)
    if not length:
        raise StudyError([f"{where}: train.max_length: is null, so nobody knows how many tokens fit into a step: give "
                          "it, or a budget of steps"])  # fmt: skip
    rows = options.get("per_device_train_batch_size", 8) * options.get("gradient_accumulation_steps", 1)
    return ceil(tokens / (rows * length * (recipe.run.world_size or 1)))


def differences(arm: Arm, reference: Arm, study: Study, source: Path) -> Iterator[str]:
    """A line for every key in which two arms may not differ and do."""
    ours, theirs = arm.flat(), reference.flat()
    free = (*THE_STUDYS_OWN, *(LENGTH if study.budget.tokens is not None else ()))
    for key in sorted(ours.keys() | theirs.keys()):
        varied = key not in LENGTH and _under(key, study.varies)
        if ours.get(key) == theirs.get(key) or key in free or varied:
            continue
        said = f"{source}: arms.{arm.name}: {key}: {_given(ours, key)}, but {_given(theirs, key)} in {reference.name}"
        if key in LENGTH:
            yield f"{said}: arms have one budget: give budget.steps, or the same in all arms"
        else:
            yield f"{said}: name it in varies if that is what the study is about, or give the arms the same"


def _given(values: Mapping[str, Any], key: str) -> str:
    return shown(values[key]) if key in values else "not given"


def _under(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _not_an_arms(where: str, overrides: Mapping[str, Any], study: Study) -> Iterator[str]:
    """A line for each key that the study sets itself, for all arms alike."""
    for key in THE_STUDYS_OWN:
        if key in overrides:
            yield f"{where}: {key}: belongs to the study, which gives every run its own: leave it out"
    budget = study.budget.model_dump(exclude_none=True)
    for key in LENGTH:
        if budget and key in overrides:
            yield f"{where}: {key}: {shown(overrides[key])} is given beside a budget of {shown(budget)}: leave it out"


def _varies_problems(varies: Sequence[str], source: Path, fields: config.TrainFields) -> Iterator[str]:
    """A line for each entry that is no key of a recipe."""
    for entry in varies:
        steps = entry.split(".")
        if steps[0] == "train":
            names: Sequence[str] = ["method", *_train_names(fields)]
            if len(steps) == 1 or steps[1] in names:
                continue
        else:
            path = [int(step) if step.isdecimal() else step for step in steps]
            if field_at(path)[0] is not None:
                continue
            model = section_class(field_at(path[:-1])[0])
            names = list(keys_of(model)) if model else list(keys_of(Recipe))
        near = closest(steps[-1], names)
        prefix = ".".join([*steps[:-1], ""]) if len(steps) > 1 else ""
        advice = f"did you mean {prefix}{near}?" if near else "give a section or a key, such as objective"
        yield f"{source}: varies: {shown(entry)} is not a key of a recipe: {advice}"


def _train_names(fields: config.TrainFields) -> list[str]:
    """Of every method, where the fields depend on it."""
    parts = [fields(method) for method in ("offpolicy", "onpolicy", "rl")] if callable(fields) else [fields]
    return list(dict.fromkeys(name for part in parts for name in part))


def check_folder(arm: Arm, run: Path, source: Path) -> Iterator[str]:
    """A line for each key in which a run that is there already was trained otherwise."""
    written = run / "recipe.yaml"
    if trace_of_run(run) is None or not written.is_file():
        return
    before, now = flat(yaml.safe_load(written.read_text()) or {}), arm.flat()
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and key not in THE_STUDYS_OWN and not key.startswith(FREE_TO_CHANGE):
            yield (
                f"{source}: arms.{arm.name}: {key}: {_given(now, key)}, but the run in {run} was started with "
                f"{_given(before, key)}: put it back, remove that folder, or give another --output-dir"
            )
