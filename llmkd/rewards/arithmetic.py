"""The grader of the arithmetic word problems."""

from __future__ import annotations

import re
from typing import Any

_LAST_LINE = re.compile(r"(?:\A|\n)Answer: (0|-?[1-9][0-9]*)\s*\Z")


def arithmetic(prompt: Any, completion: str, reference: Any) -> float:
    """1.0 where the completion ends in its one line ``Answer: N`` and N is the reference, else 0.0.

    Strict on purpose: two answers, a decimal, a leading zero, or words after the number are no answer.
    reference: the integer, as a text or a number.

    Raises: ValueError where the reference is no integer.
    """
    wanted = str(reference)
    if isinstance(reference, bool) or re.fullmatch(r"0|-?[1-9][0-9]*", wanted) is None:
        raise ValueError(f"arithmetic: the reference {reference!r:.80} is no integer: name the right column")
    if completion.count("Answer:") != 1:
        return 0.0
    found = _LAST_LINE.search(completion)
    return float(found is not None and found.group(1) == wanted)
