"""The grader of the sequence-program task: does the program print the sequence, and how short is it?

The language, its interpreter and its bounds: `llmkd.rewards.program_language`. After the KoLMogorov Test
(arXiv:2503.13992), which asks for the shortest Python program; this task asks for one in a language of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkd.rewards.answer_line import answer_line
from llmkd.rewards.program_language import LONGEST_TEXT, ProgramError, parse, run

FLOOR = 0.05  # what a correct program earns under `compression` that is no shorter than the plain list
SPARE = 64  # a sequence in the middle of a program may have this many numbers more than the one asked for


def programs(
    prompt: Any,
    completion: str,
    reference: Mapping[str, Any],
    *,
    compression: bool = False,
    allow_literal: bool = False,
) -> float:
    """Grade the program in the last line `Answer: PROGRAM`; 0.0 unless it prints exactly the reference's sequence.

    The reference is {"sequence": [n integers], "literal_length": n, "program_length": the task's own program's length
    P}. Lengths are counted as `program_language` says, so that the plain list has length n. For a correct program of
    length L:

    - by default 1.0 if L < n, else 0.0: listing the sequence is no solution. `allow_literal` takes any length.
    - `compression`: FLOOR + (1 - FLOOR) * min(1, max(0, (n - L) / (n - P))), from 0.05 for the plain list, and for
      whatever is no shorter, to 1.0 for a program no longer than the task's own; `allow_literal` changes nothing then.

    Raises ValueError for a reference of another form.
    """
    sequence, literal, shortest = _checked(reference)
    text = answer_line(completion, LONGEST_TEXT)
    if text is None:
        return 0.0
    try:
        tree = parse(text)
        if tree.length >= literal and not (compression or allow_literal):
            return 0.0
        printed = run(tree, len(sequence) + SPARE)
    except ProgramError:
        return 0.0
    if printed != sequence:
        return 0.0
    if not compression:
        return 1.0
    saved = (literal - tree.length) / (literal - shortest)
    return FLOOR + (1.0 - FLOOR) * min(1.0, max(0.0, saved))


def _checked(reference: Any) -> tuple[list[int], int, int]:
    """The reference's three parts."""
    held = dict(reference) if isinstance(reference, Mapping) else {}
    sequence, literal, shortest = held.get("sequence"), held.get("literal_length"), held.get("program_length")
    good = isinstance(sequence, list) and all(type(value) is int for value in sequence)
    if not good or type(shortest) is not int or literal != len(sequence) or not 0 < shortest < literal:
        raise ValueError(
            f"programs: {str(reference)[:200]} is no reference: give the column `answer` of llmkd.data.tasks.programs, "
            'which holds "sequence", "literal_length" (of the sequence) and "program_length" (less than that)'
        )
    return sequence, literal, shortest
