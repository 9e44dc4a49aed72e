"""A mathematical answer, equal to the reference or not, judged by math-verify (extra ``[math]``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

from llmkd.rewards import bounded
from llmkd.rewards.answers import FORMS, LONGEST, MOST_PARTS, final_answer, normal, parts

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")
_MIXED = re.compile(r"([+-]?\d+) (\d+) */ *([1-9]\d*)")
_FRACTION = re.compile(r"([+-]?)(?:\\frac\{(\d+)\}\{(\d+)\}|\\frac(\d)(\d)|(\d+) */ *(\d+))")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z, ]{1,9}\))?")
_EQUALS = re.compile(r"(?<![<>!:\\=])=(?!=)")
# Numbers that would only be made to keep the processor busy: a^b^c, exponents of five digits, factorials of four.
_DIGITS_APART = re.compile(r"[+-]?[\d.]+(?: [\d.]+)+")
_BASED = re.compile(r"(\d[\dA-Za-z]*)_\{?(\d+)\}?")
DEEPEST = 20
"""Brackets in each other; in the answers of MATH there are 3."""
_TOO_LARGE = re.compile(r"\^\s*\{?\s*-?\d{5}|\d\s*\}?\s*\^\s*\{?\s*\d+\s*\}?\s*\^|\d{4}\s*!|!\s*!")


def math(prompt: Any, completion: str, reference: Any, *, forms: Sequence[str] = FORMS) -> float:
    r"""1.0 where the completion's final answer equals the reference, else 0.0.

    The final answer is found by the first of ``forms`` that the completion holds: ``boxed``, the last ``\boxed{...}``;
    ``answer``, the last ``Answer: ...`` or ``#### ...`` line or "the answer is ...".  The whole of it is the answer: a
    list equals a list of as many members, each equal to one of the other, or one answer that each member is equal to,
    so naming several candidates earns nothing; in a chain ``a = b = c`` each side must be right, but a name at its
    head.  Numbers are compared exactly where both are written as integers and decimals, or both as fractions; all else
    by math-verify, whole expression against whole expression, a rounded number to six digits.  A number's unit may be
    left out, and its base (``101_2``) too; another base is wrong.  Wrong are, too, an answer of over 400 characters, a
    list of over ten, brackets over 20 deep, and what takes over two seconds of the processor to judge.

    reference: an answer (text or number), or a whole solution of GSM8K or MATH that holds one.

    Raises: ValueError where math-verify is missing, a form is unknown, or the reference holds no answer.
    """
    require()
    wrong = [form for form in forms if form not in FORMS]
    if wrong or not forms or isinstance(forms, str):
        raise ValueError(f"math: forms is {forms!r}: give a list of some of {', '.join(FORMS)}")
    gold = _reference(reference)
    given = final_answer(completion, tuple(forms))
    return float(given is not None and _same(normal(given), gold))


@cache
def require() -> None:
    """ValueError where math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise ValueError(
            "reward math: math-verify is not installed: install the extra [math] (pip install llmkd[math])"
        )


def _reference(reference: Any) -> str:
    if isinstance(reference, int | float) and not isinstance(reference, bool):
        return normal(repr(reference))
    if not isinstance(reference, str):
        raise ValueError(f"math: the reference {reference!r:.80} is neither text nor a number: name the right column")
    answer = final_answer(reference)
    if answer is None and len(reference) <= LONGEST:
        answer = reference
    gold = normal(answer or "")
    if not gold:
        raise ValueError(f"math: the reference {reference!r:.80} holds no answer: name the right column")
    return gold


def _same(given: str, gold: str) -> bool:
    if _text(given) == _text(gold):
        return bool(given)
    ours, theirs = parts(given), parts(gold)
    if len(theirs) == 1 < len(ours) <= MOST_PARTS:  # one answer in several spellings; a guess among them is no spelling
        return all(_one_same(part, theirs[0]) for part in ours)
    if len(ours) != len(theirs) or len(ours) > MOST_PARTS:
        return False
    for part in ours:  # each of ours takes one of theirs away
        match = next((other for other in theirs if _one_same(part, other)), None)
        if match is None:
            return False
        theirs.remove(match)
    return bool(ours)


def _text(answer: str) -> str:
    """The answer to compare as text: no spaces but between digits; words in small letters; a choice without its
    brackets."""
    plain = re.sub(r"(?<!\d)\s|\s(?!\d)", "", answer)
    choice = re.fullmatch(r"\(([A-Za-z])\)", plain)
    plain = choice.group(1) if choice else plain
    return plain.casefold() if plain.isalpha() and len(plain) > 1 else plain


def _one_same(given: str, gold: str) -> bool:
    """Whether two answers that are no lists are equal, an equation's sides each for itself."""
    if _text(given) == _text(gold):
        return True
    if (_words(given) and _words(gold)) or _nested(given) or _DIGITS_APART.fullmatch(given):
        return (
            False  # as math-verify would not have it: it takes words for products, and digits in a row for one number
        )
    based, asked = _BASED.fullmatch(given), _BASED.fullmatch(gold)
    if based or asked:  # where the question names the base, the answer may leave it out
        return asked is not None and (based.groups() == asked.groups() if based else given == asked.group(1))
    ours, theirs = _EQUALS.split(given), _EQUALS.split(gold)
    if len(ours) > 1 and len(theirs) == 1:
        sides = ours[1:] if _NAME.fullmatch(ours[0].strip()) else ours
        return len(sides) <= MOST_PARTS and all(_one_same(side.strip(), gold) for side in sides)
    if len(ours) == 1 and len(theirs) == 2 and _NAME.fullmatch(theirs[0].strip()):
        return _one_same(given, theirs[1].strip())
    ours_exact, theirs_exact = _exact(given), _exact(gold)
    rounded = ("." in given) != ("." in gold) and ("/" in given + gold or "frac" in given + gold)
    if ours_exact is not None and theirs_exact is not None and (ours_exact == theirs_exact or not rounded):
        return ours_exact == theirs_exact
    if _TOO_LARGE.search(given) or _TOO_LARGE.search(given.replace("**", "^")):
        return False
    return _judged(_latex(given), _latex(gold))


def _words(answer: str) -> bool:
    """Whether an answer is words and no product of variables: nothing but letters, and a word of four."""
    return re.fullmatch(r"[A-Za-z ]*[A-Za-z]{4}[A-Za-z ]*", answer) is not None


def _nested(answer: str) -> bool:
    """Whether brackets stand in each other so deep that they would only be made to keep the processor busy."""
    depth = 0
    for sign in answer:
        depth += (sign in "([{") - (sign in ")]}")
        if depth > DEEPEST:
            return True
    return False


def _exact(answer: str) -> Fraction | None:
    """The number that an integer, a decimal or a fraction of integers stands for."""
    if _NUMBER.fullmatch(answer):
        return Fraction(answer)
    if mixed := _MIXED.fullmatch(answer):
        whole, above, below = mixed.groups()
        return int(whole) + Fraction(int(above), int(below)) * (-1 if whole.startswith("-") else 1)
    found = _FRACTION.fullmatch(answer)
    if found is None:
        return None
    above, below = (int(number) for number in found.groups()[1:] if number is not None)
    return None if below == 0 else Fraction(-above if found.group(1) == "-" else above, below)


def _latex(answer: str) -> str:
    """Plain notation, such as ``2*sqrt(3)`` or ``x**10``, as LaTeX; LaTeX as it is."""
    answer = answer.replace("**", "^")
    if "\\" in answer:
        return answer
    answer = re.sub(r"\bsqrt\(([^()]*)\)", r"\\sqrt{\1}", answer)
    answer = re.sub(r"\^\(?(-?\d+)\)?", r"^{\1}", answer)
    return re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", answer).replace("π", "\\pi ").replace("*", " \\cdot ")


@lru_cache(maxsize=2**14)
def _judged(given: str, gold: str) -> bool:
    return bool(bounded.ask("equal", given, gold))
