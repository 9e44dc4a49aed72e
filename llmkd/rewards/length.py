"""A penalty for what is too long."""

from __future__ import annotations

from typing import Any

UNITS = ("tokens", "words", "characters")


def length(
    prompt: Any, completion: str, reference: Any = None, *, max_tokens: int | None = None, max_words: int | None = None,
    max_characters: int | None = None, buffer: int | None = None, tokens: int | None = None,
) -> float:  # fmt: skip
    """The soft overlong punishment: 0 up to ``max - buffer``, then linear, -1 from ``max`` on.

        0 for L <= max - buffer;  (max - buffer - L) / buffer for max - buffer < L <= max;  -1 for L > max

    L counts what the one given maximum names.  max_tokens: ``tokens``, which the trainer passes (the completion's
    tokens, its end-of-sequence token included); max_words: runs without white space, which a text that leaves out its
    spaces keeps low; max_characters: Unicode code points.  buffer: in the same unit, by default a fifth of the maximum
    as in the paper (4096 of 20480), at least 1.

    Yu et al., DAPO, 2025 (arXiv 2503.14476), overlong reward shaping.

    Raises: ValueError unless exactly one maximum is given, it is at least 1 and the buffer within [1, max]; with
    max_tokens and no ``tokens``.
    """
    limits = {unit: limit for unit, limit in zip(UNITS, (max_tokens, max_words, max_characters), strict=True)
              if limit is not None}  # fmt: skip
    if len(limits) != 1:
        given = " and ".join(f"max_{unit}" for unit in limits) or "no maximum"
        raise ValueError(f"length: {given} given: give one of {', '.join(f'max_{unit}' for unit in UNITS)}")
    ((unit, limit),) = limits.items()
    if limit < 1:
        raise ValueError(f"length: max_{unit} is {limit}: give at least 1")
    soft = buffer if buffer is not None else max(1, limit // 5)
    if not 1 <= soft <= limit:
        raise ValueError(f"length: buffer is {soft}: give a number within [1, max_{unit}], here {limit}")
    count = _count(unit, completion, tokens)
    return -1.0 if count > limit else min(0.0, (limit - soft - count) / soft)


def _count(unit: str, completion: str, tokens: int | None) -> int:
    if unit == "characters":
        return len(completion)
    if unit == "words":
        return len(completion.split())
    if tokens is None:
        raise ValueError("length: max_tokens needs the number of tokens, which a trainer passes: give max_words here")
    return tokens
