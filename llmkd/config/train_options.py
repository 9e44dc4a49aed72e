"""The `train` section: which fields it may hold, their types, choices and ranges."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmkd.config.unknown_keys import owner, unknown_key
from llmkd.config.values import interval, is_number, number_from_text, one_of, shown, wrong_type


@dataclass(frozen=True)
class TrainField:
    """One allowed field of a trainer's config: the Python types a value may have, whether null is one, its choices."""

    name: str
    kind: tuple[type, ...]
    nullable: bool
    choices: tuple[str, ...] | None


@dataclass(frozen=True)
class Range:
    """The allowed numbers of a well-known field; `also` is a number outside the range with a meaning of its own."""

    low: float
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    whole: bool = False
    also: int | None = None

    def holds(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = self.high is None or (value < self.high if self.high_open else value <= self.high)
        return (above and below) or value == self.also

    def __str__(self) -> str:
        text = interval(self.low, self.high, low_open=self.low_open, high_open=self.high_open)
        return text if self.also is None else f"{text} or {self.also}"


_COUNT = Range(1, whole=True)
_POSITIVE = Range(0, low_open=True)
_NOT_NEGATIVE = Range(0)

RANGES: dict[str, Range] = {
    "learning_rate": _POSITIVE,
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "num_train_epochs": _POSITIVE,
    "max_steps": Range(1, whole=True, also=-1),
    "max_length": Range(2, whole=True),
    "lmbda": Range(0, 1),
    "replay_capacity": Range(0, whole=True),
    "teacher_mixture": Range(0, 1, high_open=True),
    "warmup_ratio": Range(0, 1),
    "warmup_steps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "adam_beta1": Range(0, 1, high_open=True),
    "adam_beta2": Range(0, 1, high_open=True),
    "adam_epsilon": _POSITIVE,
    "logging_steps": _POSITIVE,
    "eval_steps": _POSITIVE,
    "save_steps": _POSITIVE,
    "save_total_limit": _COUNT,
    "early_stopping_patience": _COUNT,
    "dataloader_num_workers": Range(0, whole=True),
}

# Fields of a method's own that mean something else, or nothing, in the others.
OF_METHOD: dict[str, tuple[str, ...]] = {
    "onpolicy": ("temperature", "lmbda", "lmbda_schedule", "replay_capacity", "pairs"),
    "rl": ("temperature", "loss_type", "beta"),
}

_WORDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
}


def check_options(
    options: Mapping[str, Any], train_fields: Mapping[str, TrainField] | None, method: str = ""
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Convert the options of `train`.

    Without `train_fields` a name nobody owns is let through. Returns the converted options and the problems, each as
    (key, sentence).
    """
    converted: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for key, value in options.items():
        misplaced = _misplaced(key, train_fields, method)
        if misplaced is not None:
            problems.append((str(key), misplaced))
            continue
        value = _converted(key, value, train_fields)
        converted[key] = value
        problems += [(key, problem) for problem in _value_problems(key, value, train_fields)]
    return converted, problems


def _misplaced(key: object, train_fields: Mapping[str, TrainField] | None, method: str) -> str | None:
    """Why the key may not stand in `train`, None where it may."""
    if not isinstance(key, str):
        return f"{shown(key)} is not text: put the key in quotes"
    if key == "hub_token":  # a field of every trainer's config, but a secret
        return unknown_key("train", key, (), train_names=None)
    if key in OF_METHOD.get(method, ()):
        return None
    place = owner(key)
    if place is not None:
        return f"belongs to {place}: write it there"
    if train_fields is None:
        # Nobody can tell an unknown option from a known one here; a key of another section can be told.
        return unknown_key("train", key, (), train_names=None, guess=False) if key not in RANGES else None
    if key in train_fields:
        return None
    return unknown_key("train", key, ["method", *train_fields], train_names=None)


def _converted(key: str, value: Any, train_fields: Mapping[str, TrainField] | None) -> Any:
    field = train_fields.get(key) if train_fields else None
    kind = field.kind if field else ((float,) if key in RANGES and not RANGES[key].whole else (str,))
    if float in kind and str not in kind:
        return number_from_text(value)
    if value is False and field and bool not in field.kind and "no" in (field.choices or ()):
        return "no"  # YAML 1.1 reads a bare `no` as false; here it is the name of a choice
    return value


def _value_problems(key: str, value: Any, train_fields: Mapping[str, TrainField] | None) -> Iterator[str]:
    field = train_fields.get(key) if train_fields else None
    if field is not None:
        problem = _kind_problem(value, field)
        if problem is not None:
            yield problem
            return
    allowed = RANGES.get(key)
    if allowed is None or value is None or (isinstance(value, str) and field is not None):
        return
    if not is_number(value) or (allowed.whole and not isinstance(value, int)):
        yield wrong_type(value, "a whole number" if allowed.whole else "a number")
    elif not allowed.holds(value):
        yield f"{shown(value)} is outside {allowed}: give a number inside it"


def _kind_problem(value: Any, field: TrainField) -> str | None:
    if value is None:
        wanted = _wanted(field)
        return None if field.nullable else f"null is not {wanted}: give {wanted}, or leave the key out"
    # An int may stand for a float, but a bool, which Python counts as an int, for nothing but itself.
    accepted = (*field.kind, int) if float in field.kind else field.kind
    if type(value) not in accepted:
        return wrong_type(value, _wanted(field))
    if isinstance(value, float) and not math.isfinite(value):
        return f"{shown(value)} is not finite: give a finite number"
    if field.choices is None:
        return None
    entries = value if isinstance(value, list) else [value]
    wrong = [entry for entry in entries if isinstance(entry, str) and entry not in field.choices]
    return one_of(wrong[0], field.choices) if wrong else None


def _wanted(field: TrainField) -> str:
    if field.choices is not None and field.kind == (str,):
        return f"one of {', '.join(field.choices)}"
    return " or ".join(_WORDS.get(kind, kind.__name__) for kind in field.kind)
