"""Turns what pydantic found into sentences for the writer of a recipe."""

import re
from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from llmkd.config.schema import bare, field_at, keys_of, section_class
from llmkd.config.unknown_keys import unknown_key
from llmkd.config.values import interval, one_of, shown, wrong_type

Path = Sequence[int | str]

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
}
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def sentences(error: ValidationError, train_names: Collection[str]) -> list[tuple[str, str]]:
    """Every problem as (dotted path, sentence)."""
    found = []
    for detail in error.errors():
        path = tuple(step for step in detail["loc"] if step not in ("[key]", "<number>", "<section>", "<name>"))
        if detail["loc"][-1:] == ("[key]",) or detail["type"] == "invalid_key":
            sentence = f"{shown(path[-1])} is not text: put the key in quotes"
        else:
            sentence = _sentence(detail["type"], path, detail["input"], detail.get("ctx", {}), train_names)
        found.append((".".join(map(str, path)), sentence))
    return found


def _sentence(kind: str, path: Path, given: Any, context: dict[str, Any], train_names: Collection[str]) -> str:
    annotation, field = field_at(path)
    if kind == "extra_forbidden":
        parent = section_class(field_at(path[:-1])[0])
        siblings = list(keys_of(parent)) if parent else []
        said = unknown_key(".".join(map(str, path[:-1])), str(path[-1]), siblings, train_names)
        return said or "is unknown"
    if kind == "missing":
        return f"is missing: give {_wanted_section(annotation) or (field and field.description) or 'it'}"
    unbuilt = _not_built(given, field)
    if unbuilt:
        return unbuilt
    if kind == "literal_error":
        plain = bare(annotation)
        names = get_args(plain) if get_origin(plain) is Literal else re.findall(r"'([^']*)'", context["expected"])
        return one_of(given, names)
    if kind == "model_type":
        return f"{shown(given)} is not a mapping: give {_wanted_section(annotation)}"
    if kind in _BOUNDS:
        return f"{shown(given)} is outside {_interval(annotation, field, context)}: give a number inside it"
    if kind == "finite_number":
        return f"{shown(given)} is not finite: give a finite number"
    if kind in ("string_too_short", "too_short"):
        return f"is empty: give {(field and field.description) or 'at least one entry'}, or leave the key out"
    if kind == "value_error":
        return str(context["error"])
    if kind in _WANTED:
        return wrong_type(given, _WANTED[kind])
    return f"{shown(given)} is not accepted ({kind.replace('_', ' ')}): see --help for what is"


def _wanted_section(annotation: Any) -> str | None:
    model = section_class(annotation)
    return f"a mapping with the keys {', '.join(keys_of(model))}" if model else None


def _not_built(given: Any, field: FieldInfo | None) -> str | None:
    """The sentence for a value that the design knows and the code does not, yet."""
    extra = field.json_schema_extra if field else None
    names = extra.get("not_built") if isinstance(extra, dict) else None
    if not isinstance(names, list):
        return None
    words = given if isinstance(given, dict) else [given]
    known = [word for word in words if word in names]
    if not known or field is None:
        return None
    choices = get_args(bare(field.annotation))
    wanted = " or ".join(choices) if choices else _wanted_section(field.annotation) or "a number"
    return f"{shown(known[0])} is not built yet: give {wanted}"


def _interval(annotation: Any, field: FieldInfo | None, context: dict[str, Any]) -> str:
    """The range from all bounds of the field, or of the list's entry; `context` holds the one that was broken."""
    bounds = dict(context)
    carriers = [field] if field else [item for item in get_args(annotation) if isinstance(item, FieldInfo)]
    for bound in [bound for carrier in carriers for bound in carrier.metadata]:
        bounds |= {name: getattr(bound, name) for name in ("gt", "ge", "lt", "le") if hasattr(bound, name)}
    low, high = bounds.get("gt", bounds.get("ge")), bounds.get("lt", bounds.get("le"))
    return interval(low, high, low_open="gt" in bounds, high_open="lt" in bounds)
