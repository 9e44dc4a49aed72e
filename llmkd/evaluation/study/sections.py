"""The sections of a study and their keys.  Rules that need the recipes are in `arms.py`, those of a search in
`space.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llmkd.config.section import Section

MEASURES = ["held_out.*.bits_per_byte", "held_out.*.kl*", "held_out.*.agreement*", "tasks.*", "eval.*"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # it becomes a folder
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=1)]


class Arm(Section):
    recipe: str | None = Field(default=None, description="a base recipe of its own, in place of the study's")
    overrides: dict[str, Any] = Field(default_factory=dict, description="section.key: value, changes to its recipe")


class Budget(Section):
    steps: Count | None = Field(default=None, description="optimizer steps of every run")
    tokens: Count | None = Field(
        default=None, description="tokens: the fewest steps whose batches, of rows of max_length, have room for them"
    )


class Evaluations(Section):
    measures: list[str] = Field(
        default_factory=lambda: list(MEASURES),
        min_length=1,
        description="what the table shows: paths such as held_out.code.kl or tasks.arithmetic.1; * stands for anything",
    )
    tasks: list[str] = Field(default_factory=list, description="tasks or measures that llmkd-eval runs on every run")
    arguments: list[str] = Field(default_factory=list, description="further arguments of llmkd-eval")


class Distribution(Section):
    low: int | float | None = Field(default=None, description="lowest value; whole numbers where low and high are")
    high: int | float | None = Field(default=None, description="highest value, itself allowed")
    log: bool = Field(default=False, description="draw its logarithm evenly")
    step: int | float | None = Field(default=None, gt=0, description="distance between values")
    choices: list[Any] | None = Field(default=None, min_length=1, description="values to choose from")
    when: dict[str, list[Any]] = Field(
        default_factory=dict, description="only where an earlier entry of the space has one of these values"
    )
    keys: list[str] | None = Field(
        default=None, min_length=1, description="recipe keys that get the value; left out, the entry's own name"
    )


class Space(Section):
    """A search space in a file of its own."""

    overrides: dict[str, Any] = Field(default_factory=dict, description="changes to the recipe of every trial")
    space: dict[str, Distribution] = Field(min_length=1, description="recipe key: distribution")


class Search(Section):
    space: str | dict[str, Distribution] = Field(
        description="recipe key: distribution; or a file with a space, or its name (distiller)"
    )
    overrides: dict[str, Any] = Field(default_factory=dict, description="changes to the recipe of every trial")
    sampler: Literal["tpe", "random", "grid"] = Field(default="tpe", description="how the next trial is chosen")
    seed: Seed = Field(default=0, description="seed of the sampler")
    n_trials: Count | None = Field(default=None, description="number of trials; a grid may leave it out")
    metric: str = Field(description="the measure to improve, such as held_out.code.kl; the mean over the seeds counts")
    direction: Literal["minimize", "maximize"] = Field(description="which way is better")


class Study(Section):
    """Several arms, the same but for what the study is about."""

    name: Name = Field(description="name; left out, that of the file")
    output_dir: str = Field(description="the study's folder; left out, runs/NAME")
    recipe: str = Field(description="the base recipe, seen from the study's file or from here")
    overrides: dict[str, Any] = Field(default_factory=dict, description="section.key: value, changes to every arm")
    arms: dict[Name, Arm] = Field(default_factory=dict, description="what is compared: a name and its changes")
    reference: str | None = Field(default=None, description="arm that differences are taken to; left out, the first")
    varies: list[str] = Field(default_factory=list, description="recipe keys, or sections, in which arms may differ")
    seeds: list[Seed] = Field(default_factory=lambda: [0, 1, 2], min_length=1, description="every arm is run with each")
    budget: Budget = Field(default_factory=Budget, description="steps or tokens of every run; left out, the recipe's")
    evaluations: Evaluations = Field(default_factory=Evaluations, description="what is read and measured")
    launcher: str | list[str] | None = Field(
        default=None, description="how a run is started; left out, accelerate launch ... -m llmkd.train"
    )
    search: Search | None = Field(default=None, description="trials whose values an optimiser chooses, as further arms")

    def to_dict(self) -> dict[str, Any]:
        """The resolved study in the shape of its YAML."""
        return self.model_dump(exclude_none=True)
