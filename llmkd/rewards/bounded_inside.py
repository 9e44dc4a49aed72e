"""The helper process of ``bounded``: reads a job a line, answers ``true``, ``false`` or ``null`` a line.

Started as a file of its own, with the folders of its parent's packages as arguments.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import resource
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

MEMORY = 4 * 2**30
"""Bytes of address space; what asks for more is answered with null."""
DIGITS = 6
"""Digits after which a rounded number is equal: 0.333333 is 1/3, 0.33 is not."""


def main() -> None:
    sys.path += [folder for folder in sys.argv[1:] if folder not in sys.path]
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    logging.disable(logging.CRITICAL)
    for kind, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, MEMORY)):
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    for line in sys.stdin:
        job, seconds, *values = json.loads(line)
        work = {"equal": equal, "match": match}[job]
        if job == "equal":
            import math_verify  # noqa: F401  its start is not counted
        _allow(seconds)
        try:
            answer = work(*values)
        except (Exception, RecursionError, MemoryError):  # whatever a text brought a library to: it has no value
            answer = None
        _allow(None)
        os.write(answers, json.dumps(answer).encode() + b"\n")


def _allow(seconds: int | None) -> None:
    """Processor time from here on; past it the kernel ends this process, in the middle of a product of integers too."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if seconds is None:
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def match(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def equal(answer: str, reference: str) -> bool:
    """math-verify's verdict on two whole expressions: nothing is searched for in them, both are parsed from end to end.

    Its own time limits are signals of the main thread and off; ours hold.
    """
    from math_verify import verify

    gold, given = _expression(reference), _expression(answer)
    if gold is None or given is None:
        return False
    return verify(gold, given, float_rounding=_rounding(gold), strict=True, timeout_seconds=None)


def _expression(latex: str) -> Any:
    """The expression of LaTeX without dollar signs, None where it is none."""
    from math_verify import LatexExtractionConfig, parse

    reading = LatexExtractionConfig(boxed_match_priority=-1)  # units are our caller's affair: to it 4ab is a product
    reading = replace(reading, normalization_config=replace(reading.normalization_config, units=False))
    found = parse(f"${latex}$", [reading], fallback_mode="no_fallback", extraction_mode="first_match",
                  parsing_timeout=None)  # fmt: skip
    return found[0] if found else None


def _rounding(gold: Any) -> int:
    """Places to round to: six digits of the reference, also of one near 0, to which 0 must not be equal."""
    with suppress(Exception):
        size = abs(float(gold.evalf(6)))
        if 0 < size < 1:
            return DIGITS + int(-math.log10(size))
    return DIGITS


if __name__ == "__main__":
    main()
