"""The sections and keys of a recipe as text for `--help`."""

from collections.abc import Mapping

from pydantic.fields import FieldInfo

from llmkd.config.schema import section_class, type_text, walk
from llmkd.config.sections import Recipe
from llmkd.config.train_options import TrainField
from llmkd.config.values import shown

_SEE_DATA = "eval.datasets.N."


def help_text(train_fields: Mapping[str, TrainField] | None = None) -> str:
    """Every section and key with its type, default and meaning; the fields of `train` by name where they are given."""
    lines = ["A recipe is one YAML file. N is an entry of a list, NAME a name of your own."]
    for path, field in walk():
        if path.startswith(_SEE_DATA):
            continue
        if path in Recipe.model_fields:
            lines += ["", f"{path}: {field.description}"]
            continue
        lines.append(f"  {path}  ({type_text(field.annotation)}{_default(field)})  {field.description}")
        if path == "eval.datasets":
            lines[-1] += "; the keys of data.datasets.N"
    lines += _train_lines(train_fields) if train_fields else []
    lines += ["", "Each can be set on the command line: section.key=value, such as data.datasets.0.max_rows=10."]
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ", required"
    value = field.get_default(call_default_factory=True)
    if section_class(type(value)) is not None or value in ({}, []):
        return ""
    return f", default {value if isinstance(value, str) else shown(value)}"


def _train_lines(train_fields: Mapping[str, TrainField]) -> list[str]:
    lines = [f"  train.{field.name}  ({_kinds(field)})" for field in train_fields.values()]
    return ["", "train, for this method:", *lines]


def _kinds(field: TrainField) -> str:
    if field.choices is not None:
        return " | ".join(field.choices)
    kinds = [type_text(kind) if kind is not list else "list" for kind in field.kind]
    return " | ".join([*kinds, *(["null"] if field.nullable else [])])
