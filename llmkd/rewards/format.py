"""The form of a completion, whatever it says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llmkd.rewards import bounded

TAGS = ("think", "answer")
LONGEST = 200_000
"""Characters of a completion that a pattern is tried on; a longer one has the wrong form."""


def format(
    prompt: Any, completion: str, reference: Any = None, *, pattern: str | None = None, tags: Sequence[str] = TAGS
) -> float:
    """1.0 where the whole completion has the asked form, else 0.0.

    Without ``pattern``: one section for each of ``tags`` in their order, ``<think>...</think> <answer>...</answer>``,
    each opened and closed once, none of them empty, with nothing but white space between and around them.  With
    ``pattern``: Python's regular expression, which must match from the first character to the last (a dot matches line
    ends too); it is tried in a process of its own, and one that takes over two seconds of the processor does not match.

    Raises: ValueError where the pattern is no regular expression, or the tags are none.
    """
    if pattern is not None:
        check_pattern(pattern)
        return float(len(completion) <= LONGEST and bounded.ask("match", pattern, completion) is True)
    if isinstance(tags, str) or not tags or any(re.fullmatch(r"[\w-]+", tag) is None for tag in tags):
        raise ValueError(f"format: tags is {tags!r}: give a list of names of letters, digits, _ and -")
    if len(set(tags)) < len(tags):
        raise ValueError(f"format: tags is {tags!r}: give each name once")
    return float(_sections(completion, tags))


def check_pattern(pattern: str) -> None:
    """ValueError where the pattern is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"format: pattern {pattern!r:.80} is no regular expression ({error}): mend it") from None


def _sections(completion: str, tags: Sequence[str]) -> bool:
    rest = completion
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if completion.count(opening) != 1 or completion.count(closing) != 1:
            return False
        before, _, rest = rest.partition(opening)
        inside, closed, rest = rest.partition(closing)
        if before.strip() or not closed or not inside.strip():
            return False
    return not rest.strip()
