"""The same words in two renderings: which of the student's counted tokens a teacher with its own template scores."""

from __future__ import annotations

import numpy as np

from llmkd.data.encode import Encoded


def align(
    student: Encoded, teacher: Encoded, enders: tuple[np.ndarray, np.ndarray], names: tuple, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the counted tokens that both renderings have, in order: `(of the student, of the teacher)`.

    Turn by turn the counted ids must be the same, up to the special tokens that end the turn: where those differ they
    are left out of both.

    Args:
        student: the row in the student's rendering.
        teacher: the row in the teacher's rendering.
        enders: ids of the special tokens of the student's and the teacher's tokenizer.
        names: the teacher's name, then the student's and the teacher's tokenizer, for the message.
        where: the place of the row, for the message.

    Raises:
        ValueError: the turns differ in number or in their words.
    """
    name, *tokenizers = names
    if len(student.turns) != len(teacher.turns):
        raise ValueError(
            f"{where}: {len(student.turns)} counted turns in the student's rendering, {len(teacher.turns)} in the one "
            f"of teacher {name!r}; set template: student for it"
        )
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for turn, (a, b) in enumerate(zip(student.turns, teacher.turns, strict=True)):
        words = _words(student, a, enders[0]), _words(teacher, b, enders[1])
        _refuse_difference(student, teacher, words, f"{where}: turn {turn}", name, tokenizers)
        pairs.append(tuple(np.arange(*part) for part in words))
        ends = [np.arange(part[1], whole[1]) for part, whole in zip(words, (a, b), strict=True)]
        if np.array_equal(student.input_ids[ends[0]], teacher.input_ids[ends[1]]):
            pairs.append(tuple(ends))
    empty = np.zeros(0, dtype=np.int64)
    return tuple(np.concatenate([empty, *(pair[side] for pair in pairs)]) for side in (0, 1))


def _words(row: Encoded, turn: tuple[int, int], enders: np.ndarray) -> tuple[int, int]:
    """The turn without the special tokens at either side of it (a beginning of sequence, an end of turn)."""
    is_special = np.isin(row.input_ids, enders)
    start, end = turn
    while end > start and is_special[end - 1]:
        end -= 1
    if start == 0 and start < end and is_special[start]:
        start += 1
    return start, end


def _refuse_difference(
    student: Encoded, teacher: Encoded, words: tuple, place: str, name: str, tokenizers: list
) -> None:
    rows = [row.input_ids[start:end] for row, (start, end) in zip((student, teacher), words, strict=True)]
    if np.array_equal(*rows):
        return
    shorter = min(map(len, rows))
    differing = np.flatnonzero(rows[0][:shorter] != rows[1][:shorter])
    at = int(differing[0]) if len(differing) else shorter
    shown = [
        f"{tokenizer.convert_ids_to_tokens(int(row[at]))!r} (id {row[at]})" if at < len(row) else "the end of the turn"
        for row, tokenizer in zip(rows, tokenizers, strict=True)
    ]
    raise ValueError(
        f"{place}: counted token {at} is {shown[0]} in the student's rendering and {shown[1]} in the one of teacher "
        f"{name!r}; its own template must leave the counted words as they are: set template: student for it"
    )
