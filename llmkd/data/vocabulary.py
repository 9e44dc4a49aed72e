"""Whether student and teacher speak of the same tokens, and how many rows of their heads they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def compare(
    student: PreTrainedTokenizerFast,
    teacher: PreTrainedTokenizerFast,
    student_rows: int,
    teacher_rows: int,
    names: tuple[str, str] = ("student", "teacher"),
) -> tuple[int, str]:
    """The number of common rows of two heads, and what there is to say about it ("" where they are alike).

    The tokenizers must be the same: every id that both have is the same token, and every token of the base vocabulary
    is in both. Tokens added to one of them only, other choices of EOS, and heads padded to different sizes are fine:
    the first `min(student_rows, teacher_rows)` rows are common.

    Args:
        student, teacher: the tokenizers.
        student_rows, teacher_rows: rows of the heads, at least one for each token of the tokenizer's base vocabulary.
        names: the student's and the teacher's name.

    Raises:
        ValueError: the tokenizers differ (the first differing id is named), or a head is too small for its tokenizer.
    """
    ours, theirs = _tokens(student), _tokens(teacher)
    _refuse_small_head(student, student_rows, names[0])
    _refuse_small_head(teacher, teacher_rows, names[1])
    must = set(_base_ids(student)) | set(_base_ids(teacher)) | (ours.keys() & theirs.keys())
    common = min(student_rows, teacher_rows)
    differing = [index for index in must if ours.get(index) != theirs.get(index)]
    if differing:
        first = min(differing)
        raise ValueError(
            f"student {names[0]!r} and teacher {names[1]!r} have different tokenizers: id {first} is "
            f"{_shown(ours, first)} for the student and {_shown(theirs, first)} for the teacher ({len(differing)} ids "
            "differ). Take a teacher and a student of one family"
        )
    return common, "; ".join(_notes(student, teacher, ours, theirs, (student_rows, teacher_rows), names))


def _tokens(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _base_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    base = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values()
    return [index for index in base if index not in tokenizer.added_tokens_decoder]


def _refuse_small_head(tokenizer: PreTrainedTokenizerFast, rows: int, name: str) -> None:
    largest = max(_base_ids(tokenizer))
    if largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise ValueError(
            f"{name!r} has {rows} rows in its head, but its tokenizer goes up to id {largest} ({token!r}); the "
            "model and the tokenizer do not belong together"
        )


def _shown(tokens: dict[int, str], index: int) -> str:
    return repr(tokens[index]) if index in tokens else "no token"


def _notes(student, teacher, ours: dict, theirs: dict, rows: tuple[int, int], names: tuple[str, str]) -> list[str]:
    notes = []
    common = min(rows)
    if rows[0] != rows[1]:
        notes.append(
            f"same tokenizer, but the head of {names[0]!r} has {rows[0]} rows and that of {names[1]!r} {rows[1]}: "
            f"trains on the {common} common rows, the rest has probability 0"
        )
    only = [sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())]
    for name, tokens, added in zip(names, (ours, theirs), only, strict=True):
        if added:
            first = f"{tokens[added[0]]!r}, id {added[0]}"
            notes.append(f"{len(added)} added tokens are only in the tokenizer of {name!r} (first: {first})")
    beyond = sorted(index for index in ours if index >= common)
    if beyond:
        first = f"{ours[beyond[0]]!r}, id {beyond[0]}"
        notes.append(
            f"{len(beyond)} tokens of {names[0]!r} lie beyond the common rows (first: {first}) and have no target"
        )
    if student.eos_token != teacher.eos_token:
        notes.append(f"{names[0]!r} ends with {student.eos_token!r}, {names[1]!r} with {teacher.eos_token!r}")
    return notes
