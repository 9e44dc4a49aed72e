"""A study from its YAML file, and what is said when it is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from llmkd.config.overrides import OverrideProblem, apply
from llmkd.config.schema import bare, keys_of, section_class
from llmkd.config.values import closest, one_of, shown, wrong_type
from llmkd.config.yaml_text import YamlProblem, parse
from llmkd.evaluation.study.sections import Space, Study

_WANTED = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number", "string_type": "text",
    "bool_type": "true or false", "list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping",
}  # fmt: skip
_OPEN = ("overrides",)  # mappings whose keys hold dots themselves


class StudyError(ValueError):
    """Every problem found in one study, a line each: where, what was given, what is allowed, what to do."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def load_study(path: str | Path, overrides: Sequence[str] = (), output_dir: str | None = None) -> Study:
    """The study in a file, with overrides such as ``seeds=[0]`` or ``overrides.train.max_steps=20`` applied.

    Raises StudyError with every problem.
    """
    source = str(path)
    data = _mapping(read_yaml(Path(path)), source, Study)
    problems = []
    for override in overrides:
        try:
            _override(data, override)
        except OverrideProblem as problem:
            problems.append(f"{source}: override {override}: {problem}")
    if problems:
        raise StudyError(problems)
    data.setdefault("name", Path(path).stem)
    data.setdefault("output_dir", f"runs/{data['name']}")
    if output_dir is not None:
        data["output_dir"] = output_dir
    study = validated(Study, data, source)
    problems = [f"{source}: {where}: {sentence}" for where, sentence in _broken_rules(study)]
    if problems:
        raise StudyError(problems)
    return study


def load_space(path: Path) -> Space:
    return validated(Space, _mapping(read_yaml(path), str(path), Space), str(path))


def read_yaml(path: Path) -> Any:
    """The plain values in a YAML file; StudyError where it cannot be read."""
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise StudyError([f"{path}: no such file: give the path of a study (.yaml)"]) from None
    except IsADirectoryError:
        raise StudyError([f"{path}: a folder, not a file: give the path of a study (.yaml) in it"]) from None
    except UnicodeDecodeError:
        raise StudyError([f"{path}: not UTF-8 text: save the study as UTF-8"]) from None
    except OSError as error:
        raise StudyError([f"{path}: cannot be read ({error.strerror}): give a file you may read"]) from None
    except YamlProblem as problem:
        raise StudyError([f"{path}: {problem}"]) from None


def validated(model: type[Any], data: dict[str, Any], source: str) -> Any:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise StudyError([f"{source}: {line}" for line in _sentences(error, model)]) from None


def _mapping(data: Any, source: str, model: type[BaseModel]) -> dict[str, Any]:
    keys = ", ".join(model.model_fields)
    if data is None:
        raise StudyError([f"{source}: the file is empty: give {keys}"])
    if not isinstance(data, dict):
        raise StudyError([f"{source}: {shown(data)} is not a mapping: give {keys}"])
    return dict(data)


def _override(data: dict[str, Any], override: str) -> None:
    """Set one value.  What follows ``overrides.`` is one key, dots and all."""
    path, equals, text = override.partition("=")
    steps = path.split(".")
    at = next((i for i, step in enumerate(steps[:-1]) if step in _OPEN), None)
    if not equals or at is None:
        apply(data, override)
        return
    found: dict[str, Any] = {}
    apply(found, f"value={text}")
    place: Any = data
    for step in steps[: at + 1]:
        if not isinstance(place, dict):
            raise OverrideProblem(f"there is no mapping in front of {step}: write the study's key first")
        if place.get(step) is None:
            place[step] = {}
        place = place[step]
    place[".".join(steps[at + 1 :])] = found["value"]


def _broken_rules(study: Study) -> Iterator[tuple[str, str]]:
    """Rules between keys, as (path, sentence)."""
    if not study.arms and study.search is None:
        yield "arms", "is missing: give at least one arm, such as {sft: {overrides: {train.method: sft}}}, or a search"
    if study.reference is not None and study.reference not in study.arms:
        yield "reference", one_of(study.reference, study.arms) if study.arms else "there are no arms: leave it out"
    if len(set(study.seeds)) != len(study.seeds):
        yield "seeds", f"{shown(study.seeds)} names a seed twice: give each once"
    if study.budget.steps is not None and study.budget.tokens is not None:
        yield "budget", "both steps and tokens are given: give one of them"
    if study.launcher is not None and not study.launcher:
        yield "launcher", "is empty: give the words that start a run, or leave it out"
    search = study.search
    if search is not None and search.n_trials is None and search.sampler != "grid":
        yield "search.n_trials", f"is missing: give the number of trials of sampler {search.sampler}"


def _sentences(error: ValidationError, root: type[BaseModel]) -> list[str]:
    found: dict[str, str] = {}
    for detail in error.errors():
        path = [step for step in detail["loc"] if _is_step(step)]
        where = ".".join(map(str, path))
        found.setdefault(where, f"{where}: {_sentence(detail, path, root)}")
    return list(found.values())


def _is_step(step: int | str) -> bool:
    """Pydantic names the members of a union in its paths; a writer of YAML does not know them."""
    return step not in ("[key]", "str", "int", "float") and "[" not in str(step)


def _sentence(detail: Any, path: list[int | str], root: type[BaseModel]) -> str:
    kind, given = detail["type"], detail["input"]
    annotation, description = _at(path, root)
    if kind == "extra_forbidden":
        model = section_class(_at(path[:-1], root)[0]) or root
        near = closest(path[-1], keys_of(model))
        allowed = f"did you mean {near}?" if near else f"allowed are {', '.join(sorted(keys_of(model)))}"
        return f"is not a key of {'.'.join(map(str, path[:-1])) or 'a study'}: {allowed}"
    if kind == "missing":
        return f"is missing: give {description or 'it'}"
    if kind == "literal_error" and get_origin(bare(annotation)) is Literal:
        return one_of(given, get_args(bare(annotation)))
    if kind == "string_pattern_mismatch":
        return f"{shown(given)} is not a name: use letters, digits, _, . and -, a letter or digit first"
    if kind in ("string_too_short", "too_short"):
        return f"is empty: give {description or 'at least one entry'}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"):
        return f"{shown(given)} is out of range: {detail['msg'][0].lower()}{detail['msg'][1:]}"
    if kind in _WANTED and section_class(annotation) is None and "|" in str(annotation):
        return f"{shown(given)} is not accepted: give {description or 'another value'}"
    if kind in _WANTED:
        return wrong_type(given, _WANTED[kind])
    return f"{shown(given)} is not accepted ({kind.replace('_', ' ')}): give {description or 'another value'}"


def _at(path: Sequence[int | str], root: type[BaseModel]) -> tuple[Any, str | None]:
    """The annotation at a path, and the description of the field that holds it."""
    annotation: Any = root
    description = None
    for step in path:
        model, kind = section_class(annotation), bare(annotation)
        field = keys_of(model).get(str(step)) if model else None
        if field is not None:
            annotation, description = field.annotation, field.description
        elif get_origin(kind) in (list, dict):
            annotation = get_args(kind)[-1]
        else:
            return None, None
    return annotation, description
