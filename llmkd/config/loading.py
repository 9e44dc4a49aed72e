"""A recipe from a file, or from plain values."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmkd.config import overrides as command_line
from llmkd.config import rules
from llmkd.config.errors import RecipeError
from llmkd.config.messages import sentences
from llmkd.config.sections import Recipe
from llmkd.config.train_options import RANGES, TrainField, check_options
from llmkd.config.values import plain, shown
from llmkd.config.yaml_text import YamlProblem, parse

TrainFields = Callable[[str], Mapping[str, TrainField]] | Mapping[str, TrainField]
"""The fields that `train` may hold: of a method, or of all."""


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    train_fields: TrainFields | None = None,
) -> Recipe:
    """Read a recipe file, apply overrides such as `data.datasets.0.max_rows=10`, and validate the whole.

    `train_fields` are the fields that `train` may hold, or tell them of a method; without them unknown names in `train`
    are let through.
    Raises RecipeError with every problem.
    """
    source = str(path)
    data = _mapping(_read(Path(path)), source)
    problems = []
    for override in overrides:
        try:
            command_line.apply(data, override)
        except command_line.OverrideProblem as problem:
            problems.append(f"{source}: override {override}: {problem}")
    if problems:
        raise RecipeError(problems)
    return _validated(data, source, train_fields)


def from_dict(
    data: Mapping[str, Any],
    *,
    source: str = "<dict>",
    train_fields: TrainFields | None = None,
) -> Recipe:
    """Validate a recipe given as plain values in the shape of the YAML; `source` stands in front of each problem."""
    return _validated(plain(_mapping(data, source)), source, train_fields)


def _read(path: Path) -> Any:
    """The plain values in a YAML file; RecipeError, with the line, where it cannot be read."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise RecipeError([f"{path}: no such file: give the path of a recipe (.yaml)"]) from None
    except IsADirectoryError:
        raise RecipeError([f"{path}: a folder, not a file: give the path of a recipe (.yaml) in it"]) from None
    except OSError as error:
        raise RecipeError([f"{path}: cannot be read ({error.strerror}): give a file you may read"]) from None
    try:
        return parse(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError([f"{path}: line {line}: not UTF-8 text: save the recipe as UTF-8"]) from None
    except YamlProblem as problem:
        raise RecipeError([f"{path}: {problem}"]) from None


def _mapping(data: Any, source: str) -> dict[str, Any]:
    sections = ", ".join(Recipe.model_fields)
    if data is None:
        raise RecipeError([f"{source}: the recipe is empty: give the sections {sections}"])
    if not isinstance(data, Mapping):
        raise RecipeError([f"{source}: {shown(data)} is not a mapping: give the sections {sections}"])
    return dict(data)


def _validated(data: dict[str, Any], source: str, given: TrainFields | None) -> Recipe:
    """The Recipe of plain values, which are used up; RecipeError with every problem."""
    problems: list[tuple[str, str]] = []
    _fill_in(data, source)
    train_fields = given(_method(data)) if callable(given) else given
    if isinstance(data.get("train"), dict):
        options = {key: value for key, value in data["train"].items() if key != "method"}
        converted, wrong = check_options(options, train_fields, _method(data))
        method = {"method": data["train"]["method"]} if "method" in data["train"] else {}
        data["train"] = {**method, "options": converted}
        problems = [(f"train.{key}", sentence) for key, sentence in wrong]
    recipe = None
    try:
        recipe = _resolved(Recipe.model_validate(data))
        problems += rules.problems(recipe)
    except ValidationError as error:
        problems = sentences(error, RANGES if train_fields is None else train_fields) + problems
    if recipe is None or problems:
        raise RecipeError([f"{source}: {path}: {sentence}" for path, sentence in problems])
    return recipe


def _method(data: Mapping[str, Any]) -> str:
    """What stands as the method, whatever it is: a wrong one is refused elsewhere."""
    train = data.get("train")
    return str(train.get("method")) if isinstance(train, dict) else ""


def _fill_in(data: dict[str, Any], source: str) -> None:
    """The defaults that come from elsewhere: the run's name from the file's, the one objective of method sft."""
    run, train = data.get("run"), data.get("train")
    if isinstance(run, dict) and Path(source).suffix in (".yaml", ".yml"):
        run.setdefault("name", Path(source).stem)
    if isinstance(train, dict) and train.get("method") == "sft" and data.get("objective") is None:
        data["objective"] = {"terms": {"cross_entropy": {"term": "cross_entropy"}}}


def _resolved(recipe: Recipe) -> Recipe:
    """The recipe with sampling.kind said: any weight, and no kind, means weighted."""
    data = recipe.data
    if "kind" in data.sampling.model_fields_set or not any(source.weight for source in data.datasets):
        return recipe
    weighted = data.sampling.model_copy(update={"kind": "weighted"})
    return recipe.model_copy(update={"data": data.model_copy(update={"sampling": weighted})})
