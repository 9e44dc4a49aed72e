"""A number with its unit, told apart from a number times a variable."""

from __future__ import annotations

import re

_NUMBER = r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)"
_WITH_LETTERS = re.compile(rf"({_NUMBER})( *)(°?[A-Za-z][A-Za-z ./]{{0,60}}|°)(\^\{{?[23]\}}?)?")
_SHORT = frozenset(
    {
        *("mm", "cm", "dm", "m", "km", "in", "ft", "yd", "mi", "inch", "foot", "feet", "yard", "yards", "mile"),
        *("mg", "g", "kg", "lb", "lbs", "oz", "ml", "cl", "dl", "l", "L", "gal", "qt", "pt", "sq", "cu", "unit"),
        *("ms", "s", "sec", "min", "h", "hr", "hrs", "hour", "hours", "am", "pm", "d", "day", "days", "yr", "yrs"),
        *("mph", "kph", "rpm", "Hz", "kHz", "J", "kJ", "N", "W", "kW", "V", "A", "K", "C", "F", "mol", "deg", "rad"),
        *("kB", "MB", "GB", "USD", "EUR", "cent", "cents", "man", "men", "way", "ways", "row", "rows", "set", "sets"),
        *("cup", "cups", "egg", "eggs", "pen", "pens", "box", "bag", "bags", "bus", "car", "cars", "cat", "cats"),
        *("units", "miles", "wk", "Pa"),
        *("dog", "dogs", "hat", "hats", "toy", "toys", "pie", "pies", "bit", "bits", "year", "years"),
    }
)  # fmt: skip
"""Units and things that are too short to be told from a product of variables, or stand right behind a number."""
_BETWEEN = frozenset({"per", "of", "the", "a", "an", "to", "for", "on", "at", "by", "each", "in"})
_NO_UNITS = frozenset(
    {
        *("pi", "sqrt", "sin", "cos", "tan", "log", "exp", "times", "over", "plus", "minus", "squared", "cubed"),
        *("factorial", "half", "halves", "dozen", "hundred", "thousand", "million", "billion", "trillion"),
        *("modulo", "choose"),
    }
)  # fmt: skip


def without_unit(answer: str) -> str:
    """The number of an answer that is one with a unit (``5 cm``, ``18 dollars per day``, ``3 m^2``); else the answer.

    Letters that are no known unit are one where they are words of four letters and more behind a space: ``12xy`` and
    ``5 x^2`` are products, and stay.
    """
    found = _WITH_LETTERS.fullmatch(answer)
    if found is None:
        return answer
    number, space, phrase, power = found.groups()
    words = [word for word in re.split(r"[ /°]+", phrase.replace(".", "")) if word]
    if any(word.lower() in _NO_UNITS for word in words):
        return answer
    if not space and words and len(words[0]) == 1 and not phrase.startswith("°"):
        return answer  # 2m is 2 times m
    if power and words[-1] not in _SHORT:
        return answer
    known = all(_is_word(word, bool(space) or i > 0) or word in _BETWEEN for i, word in enumerate(words))
    return number if known and (not words or words[-1] not in _BETWEEN - _SHORT) else answer


def _is_word(word: str, apart: bool) -> bool:
    if word in _SHORT or (len(word) > 1 and word.lower() in _SHORT):
        return True
    return apart and len(word) > 3 and re.search(r"[aeiouy]", word.lower()) is not None
