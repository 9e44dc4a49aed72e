"""Suites: YAML files that name tasks with their settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from llmkd.config.section import Section
from llmkd.config.values import closest, shown
from llmkd.config.yaml_text import YamlProblem, parse
from llmkd.evaluation.harness.options import Settings

FOLDER = Path(__file__).parents[3] / "eval" / "suites"


class Shared(Section):
    """What may stand in ``settings``, for all tasks, and at a task, where it comes first."""

    num_fewshot: int | None = Field(default=None, ge=0, description="examples in front of each question")
    limit: int | float | None = Field(default=None, gt=0, description="questions, or below 1 a share of them")
    gen_kwargs: dict[str, Any] | None = Field(default=None, description="how to generate")
    apply_chat_template: bool | str | None = Field(default=None, description="true, a template's name, or if_present")
    where_missing: Literal["skip", "fail"] | None = Field(
        default=None, description="skip: a task whose local file is not there is left out"
    )

    def settings(self) -> Settings:
        return Settings(self.num_fewshot, self.limit, self.gen_kwargs, self.apply_chat_template)


class Entry(Shared):
    task: str = Field(description="a task's name")


class Suite(Section):
    name: str = Field(description="the suite's name")
    description: str = Field(description="what it is for")
    settings: Shared = Field(default_factory=Shared, description="for all its tasks")
    tasks: list[Entry] = Field(min_length=1, description="names, or mappings with task: and its settings")

    @field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        return [{"task": item} if isinstance(item, str) else item for item in value]


@dataclass(frozen=True)
class Wanted:
    """One task that was asked for.  optional: it is left out where its file is missing."""

    name: str
    settings: Settings
    optional: bool = False


def wanted(suite: Suite, given: Settings) -> list[Wanted]:
    """The suite's tasks; the command line comes before the task, and the task before the suite."""
    shared = suite.settings
    return [
        Wanted(
            entry.task,
            given.over(entry.settings().over(shared.settings())),
            (entry.where_missing or shared.where_missing) == "skip",
        )
        for entry in suite.tasks
    ]


def load(name: str) -> Suite:
    """A suite by its path, or one of eval/suites by its name; ValueError with every problem."""
    path = Path(name)
    if not path.is_file() and (FOLDER / f"{name}.yaml").is_file():
        path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
        near = closest(path.stem, known)
        advice = f"did you mean {near}?" if near else f"give a YAML file, or one of {', '.join(known)}"
        raise ValueError(f"--suite: {name}: no such file: {advice}")
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except (YamlProblem, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: {shown(data)} is not a mapping: give the keys {', '.join(Suite.model_fields)}")
    try:
        return Suite.model_validate(data)
    except ValidationError as error:
        raise ValueError("\n".join(f"{path}: {_sentence(dict(problem))}" for problem in error.errors())) from None


def _sentence(problem: dict[str, Any]) -> str:
    """Where, what was given, what is allowed."""
    path: Sequence[Any] = problem["loc"]
    kind, given = problem["type"], shown(problem["input"])
    keys = list((Suite if len(path) < 2 else Entry if path[0] == "tasks" else Shared).model_fields)
    where = ".".join(str(step) for step in path if step not in ("int", "float", "bool", "str"))
    if kind == "extra_forbidden":
        near = closest(path[-1], keys)
        return f"{where}: is not a key here: " + (f"did you mean {near}?" if near else f"allowed are {', '.join(keys)}")
    if kind == "missing":
        return f"{where}: is missing: allowed are {', '.join(keys)}"
    return f"{where}: {given} is not accepted: {problem['msg'][0].lower()}{problem['msg'][1:]}"
