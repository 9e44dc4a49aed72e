"""The space of a search: which values there are, and what the values of a trial are to its recipe."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmkd.config.values import is_number, shown
from llmkd.evaluation.study.loading import StudyError, load_space
from llmkd.evaluation.study.sections import Distribution, Search, Space

NAMES_FOR_SEARCHERS = (str, int, float, bool, type(None))


def read_space(search: Search, source: Path) -> Space:
    """The space and what every trial changes.  StudyError where it is not found or makes no sense."""
    if isinstance(search.space, str):
        found = load_space(find_space(search.space, source))
        space = Space(overrides={**found.overrides, **search.overrides}, space=found.space)
    else:
        space = Space(overrides=search.overrides, space=search.space)
    problems = [f"{source}: search.space.{name}: {sentence}" for name, sentence in _problems(space.space, search)]
    if problems:
        raise StudyError(problems)
    return space


def active(values: Mapping[str, Any], distribution: Distribution) -> bool:
    """Whether an entry counts, from the values chosen before it."""
    return all(name in values and values[name] in wanted for name, wanted in distribution.when.items())


def changes(values: Mapping[str, Any], space: Mapping[str, Distribution]) -> dict[str, Any]:
    """Recipe keys and their values, from the values of a trial."""
    return {key: value for name, value in values.items() for key in keys_of(name, space[name])}


def keys_of(name: str, distribution: Distribution) -> list[str]:
    return distribution.keys or [name]


def grid(space: Mapping[str, Distribution]) -> list[dict[str, Any]]:
    """Every combination of values, each once: what a condition leaves out is not told apart."""
    found: list[dict[str, Any]] = [{}]
    for name, distribution in space.items():
        steps = list(_values(distribution))
        found = [values if step is None else {**values, name: step[0]} for values in found
                 for step in ([(v,) for v in steps] if active(values, distribution) else [None])]  # fmt: skip
    return found


def _values(distribution: Distribution) -> Iterator[Any]:
    if distribution.choices is not None:
        yield from distribution.choices
        return
    low, high = distribution.low, distribution.high
    assert low is not None and high is not None
    step = distribution.step or 1
    for count in itertools.count():
        value = low + count * step
        if value > high + 1e-9 * abs(high):
            return
        yield value


def is_whole(distribution: Distribution) -> bool:
    step = distribution.step
    return all(isinstance(v, int) for v in (distribution.low, distribution.high, 1 if step is None else step))


def find_space(name: str, source: Path) -> Path:
    places = [source.parent / name, Path(name), source.parent / f"{name}_space.yaml"]
    for path in places:
        if path.is_file():
            return path
    said = ", ".join(str(path) for path in places)
    raise StudyError([f"{source}: search.space: {name} is none of {said}: give the file of a space"])


def _problems(space: Mapping[str, Distribution], search: Search) -> Iterator[tuple[str, str]]:
    seen: list[str] = []
    for name, distribution in space.items():
        yield from ((name, sentence) for sentence in _own_problems(distribution, search.sampler))
        for other in distribution.when:
            if other not in seen:
                yield name, f"when: {other} does not stand before it in the space: give an earlier entry"
        seen.append(name)


def _own_problems(distribution: Distribution, sampler: str) -> Iterator[str]:
    low, high = distribution.low, distribution.high
    if distribution.choices is not None:
        if low is not None or high is not None or distribution.log or distribution.step is not None:
            yield "both choices and a range are given: give one of them"
        wrong = [choice for choice in distribution.choices if not isinstance(choice, NAMES_FOR_SEARCHERS)]
        if wrong and sampler != "grid":
            yield f"{shown(wrong[0])} is a choice that only sampler: grid takes: give texts, numbers, true or false"
        return
    if not is_number(low) or not is_number(high):
        yield "give low and high, or choices"
        return
    assert low is not None and high is not None
    if low > high:
        yield f"low {low:g} is above high {high:g}: swap them"
    if distribution.log and (low <= 0 or distribution.step is not None):
        yield "log: true needs low above 0 and no step"
    if sampler == "grid" and (distribution.log or (distribution.step is None and not is_whole(distribution))):
        yield "sampler: grid needs choices, or a range with a step"
