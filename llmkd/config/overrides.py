"""`section.key=value` on the command line, applied to the plain values before anything is validated."""

from typing import Any

from llmkd.config.values import shown
from llmkd.config.yaml_text import YamlProblem, parse


class OverrideProblem(ValueError):
    """An override that cannot be applied; its str says why."""


def apply(data: dict[str, Any], override: str) -> None:
    """Set one value in place; mappings on the way are made where they are missing, list entries are not.

    The value is read as YAML; nothing after the `=` is null. Raises OverrideProblem.
    """
    path, equals, text = override.partition("=")
    steps = path.split(".")
    if not equals or not all(steps) or path.startswith("-"):
        raise OverrideProblem(f"{shown(override)} is not an override: write section.key=value, without dashes")
    try:
        value = parse(text)
    except YamlProblem as problem:
        raise OverrideProblem(f"the value {shown(text)} cannot be read: {problem}") from problem
    container: Any = data
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        key = _key(container, step, steps[:depth])
        if last:
            container[key] = value
        else:
            if isinstance(container, dict) and container.get(key) is None:
                container[key] = _made(steps[depth + 1], steps[: depth + 1])
            container = container[key]


def _key(container: Any, step: str, above: list[str]) -> str | int:
    """The key or index that a step means in its container."""
    where = ".".join(above)
    if isinstance(container, dict):
        return step
    if not isinstance(container, list):
        raise OverrideProblem(f"{where} is {shown(container)}, which has no key {step}: give {where} a whole new value")
    if not step.isdecimal() or int(step) >= len(container):
        allowed = f"0 to {len(container) - 1}" if container else "none, the list is empty"
        raise OverrideProblem(f"{where} is a list and has no entry {step}: its entries are {allowed}")
    return int(step)


def _made(next_step: str, above: list[str]) -> dict[str, Any]:
    if next_step.isdecimal():
        where = ".".join(above)
        raise OverrideProblem(f"{where} is not given, so it has no entry {next_step}: give {where} a whole list")
    return {}
