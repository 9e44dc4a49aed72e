"""Walks over the sections' fields, for messages and for the help text."""

import functools
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmkd.config.sections import Recipe


def bare(annotation: Any) -> Any:
    """The annotation without `| None` and `Annotated`."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        return bare(members[0]) if len(members) == 1 else annotation
    return annotation


def section_class(annotation: Any) -> type[BaseModel] | None:
    """The section an annotation stands for, beside a number or alone; None where there is none."""
    kind = bare(annotation)
    if get_origin(kind) in (Union, types.UnionType):
        return next((found for member in get_args(kind) if (found := section_class(member))), None)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by the name that a recipe writes."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def field_at(path: Sequence[int | str]) -> tuple[Any, FieldInfo | None]:
    """The annotation at a path such as ("teachers", 0, "dtype"), and its field where the last step names one."""
    annotation: Any = Recipe
    field: FieldInfo | None = None
    for step in path:
        model, kind = section_class(annotation), bare(annotation)
        field = keys_of(model).get(str(step)) if model else None
        if field is not None:
            annotation = field.annotation
        elif get_origin(kind) in (list, dict):
            annotation = get_args(kind)[-1]
        else:
            return None, None
    return annotation, field


def walk(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a section and of those inside it, as (path, field); an entry of a list is N, of a mapping NAME."""
    for name, field in keys_of(model).items():
        path = f"{prefix}{name}"
        if path == "train.options":
            continue
        yield path, field
        kind = bare(field.annotation)
        step = {list: ".N", dict: ".NAME"}.get(get_origin(kind), "")
        inner = section_class(get_args(kind)[-1] if step else kind)
        if inner is not None:
            yield from walk(inner, f"{path}{step}.")


@functools.cache
def places() -> dict[str, list[str]]:
    """Where each key stands. A held-out source has the keys of a training source; only the latter are named."""
    found: dict[str, list[str]] = {}
    for path, _ in walk():
        if not path.startswith("eval.datasets."):
            found.setdefault(path.rpartition(".")[2], []).append(path)
    return found


def type_text(annotation: Any) -> str:
    """The type in words a user of YAML knows."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if section_class(annotation) and origin is None:
        return "mapping"
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " | ".join(arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(type_text(member) for member in arguments)
    if origin is list:
        entries = type_text(arguments[0])
        return f"list of ({entries})" if "|" in entries else f"list of {entries}"
    names = {str: "text", bool: "true | false", int: "int", float: "number", type(None): "null", Any: "anything"}
    return names.get(annotation, "mapping")
