"""Rules inside a term: its schedules and its token weights."""

import itertools
from collections.abc import Iterator

from llmkd.config.objective_section import TEACHERLESS_TERMS, Schedule, Term
from llmkd.config.values import shown
from llmkd.terms import Knob, interval

Problem = tuple[str, str]  # (dotted path, sentence)

NOT_NEGATIVE = Knob(None, 0)
UNIT = Knob(None, 0, 1)

# The keys that each schedule needs, and those that it may have.
KEYS = {
    "constant": (("from",), ()),
    "linear": (("from", "to"), ("steps",)),
    "cosine": (("from", "to"), ("steps",)),
    "switch_at": (("from", "to", "steps"), ()),
    "piecewise": (("points",), ()),
    "adaptive": ((), ("from", "to", "steps", "alpha", "beta")),
}


def schedule_problems(path: str, schedule: Schedule, allowed: Knob) -> Iterator[Problem]:
    """Missing and superfluous keys, and values outside what the scheduled number may be."""
    kind = schedule.schedule
    if kind == "adaptive" and not path.endswith(".t"):
        yield f"{path}.schedule", "adaptive is the schedule of taid's t: give linear, cosine, switch_at or piecewise"
        return
    needs, may = KEYS[kind]
    given = set(schedule.model_dump(by_alias=True, exclude_none=True)) - {"schedule"}
    for key in needs:
        if key not in given:
            yield f"{path}.{key}", f"is missing: {kind} needs {', '.join(needs)}"
    for key in sorted(given - {*needs, *may}):
        yield f"{path}.{key}", f"is not read by {kind}, which takes {', '.join((*needs, *may))}: leave it out"
    for key, value in (("from", schedule.start), ("to", schedule.stop)):
        if value is not None and not allowed.holds(value):
            yield f"{path}.{key}", f"{value:g} is outside {interval(allowed)}: give a number inside it"
    if kind == "adaptive" and schedule.start is not None and schedule.stop is not None and (
        schedule.stop < schedule.start
    ):  # fmt: skip
        yield f"{path}.to", f"{schedule.stop:g} is below from, {schedule.start:g}: an adaptive t only rises"
    if schedule.points is not None:
        yield from _points(f"{path}.points", schedule.points, allowed)


def _points(path: str, points: list[list[float]], allowed: Knob) -> Iterator[Problem]:
    if any(len(point) != 2 for point in points):
        yield path, f"{shown(points)} are not pairs: give [[step, value], ...]"
        return
    steps = [step for step, _ in points]
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        yield path, f"the steps {shown(steps)} do not rise: give them in order, each once"
    for _, value in points:
        if not allowed.holds(value):
            yield path, f"{value:g} is outside {interval(allowed)}: give a number inside it"


def token_weight_problems(path: str, term: Term) -> Iterator[Problem]:
    """Keys that the chosen way of weighting needs or does not read."""
    how = term.token_weight
    assert how is not None
    if how.by.startswith("teacher_") and term.term in TEACHERLESS_TERMS:
        yield f"{path}.by", f"{how.by}, but {term.term} reads no teacher: give student_entropy, position or column"
    for key, needed_by in (("column", "column"), ("half_life", "position")):
        value = getattr(how, key)
        if how.by == needed_by and value is None:
            yield f"{path}.{key}", f"is missing: by: {how.by} needs it"
        if how.by != needed_by and value is not None:
            yield f"{path}.{key}", f"is not read with by: {how.by}: leave it out"
    if how.by in ("column", "importance") and (how.floor, how.power) != (0.0, 1.0):
        said = f"floor and power are not read with by: {how.by}, whose values are taken as they are: leave them out"
        yield path, said
