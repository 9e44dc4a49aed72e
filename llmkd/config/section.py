"""What every section of a recipe is, and the kinds of values that several have."""

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, PlainValidator, Tag, ValidationInfo, field_validator

from llmkd.config.values import number_from_text, shown


def _text_or_list(value: object) -> object:
    entries = value if isinstance(value, list) else [value]
    if all(isinstance(entry, str) and entry for entry in entries):
        return value
    raise ValueError(f"{shown(value)} is neither text nor a list of texts: give one of the two")


def _files(value: object) -> object:
    return value if isinstance(value, dict) else _text_or_list(value)


TextOrList = Annotated[str | list[str], PlainValidator(_text_or_list)]
Files = Annotated[str | list[str] | dict[str, Any], PlainValidator(_files)]


class Section(BaseModel):
    """Unknown keys are refused, nothing is converted (but an int may stand for a float), nothing can be set later."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        str_min_length=1,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_number(cls, value: object, info: ValidationInfo) -> object:
        wants_float = info.field_name and _takes_float(cls.model_fields[info.field_name].annotation)
        return number_from_text(value) if wants_float else value


def _takes_float(annotation: Any) -> bool:
    return annotation is float or any(_takes_float(member) for member in get_args(annotation))


def number_or_section(value: object) -> str:
    return "<section>" if isinstance(value, dict | BaseModel) else "<number>"


# A number, or a mapping with keys of its own. The tags stand in pydantic's paths and are taken out of messages.
Number = Annotated[float, Tag("<number>")]
