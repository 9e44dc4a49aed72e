"""How single values are read and shown."""

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any

_NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?")


def number_from_text(value: object) -> object:
    """Turn text that spells a number ("5e-7", which YAML 1.1 reads as text) into a float; leave all else alone."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value.replace("_", ""))
    return value


def is_number(value: object) -> bool:
    """True for an int or a float; a bool is no number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number_or(value: object, default: float) -> float:
    """The value if it is a number; the default for another, of which the message is another rule's."""
    return float(value) if is_number(value) else default  # type: ignore[arg-type]


def shown(value: object) -> str:
    """The value as the user may have written it in YAML, cut to 60 characters."""
    if isinstance(value, str):
        text = repr(value)
    else:
        try:
            text = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError):
            text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def interval(low: float | None, high: float | None, *, low_open: bool = False, high_open: bool = False) -> str:
    """The allowed range in the notation of intervals: `[0, inf)`, `(0, 1]`."""
    left = "(-inf" if low is None else f"{'(' if low_open else '['}{low:g}"
    right = "inf)" if high is None else f"{_exact(high)}{')' if high_open else ']'}"
    return f"{left}, {right}"


def _exact(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def closest(word: object, candidates: Iterable[str]) -> str | None:
    """The candidate most like `word`, or None when nothing is like it."""
    matches = difflib.get_close_matches(str(word), list(candidates), n=1, cutoff=0.6)
    return matches[0] if matches else None


def one_of(value: object, allowed: Iterable[str]) -> str:
    """The sentence for a value outside a list of choices."""
    names = list(allowed)
    near = closest(value, names) if isinstance(value, str) else None
    advice = f"did you mean {near}?" if near else "give one of them"
    return f"{shown(value)} is not one of {', '.join(names)}: {advice}"


def wrong_type(value: object, wanted: str) -> str:
    """The sentence for a value of another type than `wanted`, such as "a whole number"."""
    problem = f"{shown(value)} is not {wanted}"
    if wanted == "text" and isinstance(value, bool | int | float):
        return f"{problem}: put it in quotes"
    if wanted == "a whole number" and isinstance(value, float) and value.is_integer():
        return f"{problem}: write {int(value)}"
    if "number" in wanted and number_from_text(value) is not value:
        return f"{problem}: write it without quotes"
    return f"{problem}: give {wanted}"


def plain(value: Any) -> Any:
    """A copy of nested dicts and lists in which no part is shared (YAML aliases share theirs)."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value
