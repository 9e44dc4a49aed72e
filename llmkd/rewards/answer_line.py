"""The final answer of a completion: the one line `Answer: ...` at its end, read strictly."""

from __future__ import annotations

LABEL = "Answer:"


def answer_line(completion: str, longest: int) -> str | None:
    """What follows `Answer:` in the last line of a completion, without the spaces around it, else None.

    None where the label stands more than once in the completion, in any case of letters; where the last line that is
    not blank does not begin with it; and where what follows is empty, longer than `longest` characters or not
    printable ASCII, so that no look-alike of a letter or digit and no control character gets through.
    """
    if not isinstance(completion, str) or completion.lower().count(LABEL.lower()) != 1:
        return None
    last = completion.rstrip().rpartition("\n")[2].strip(" \t")
    answer = last[len(LABEL) :].strip(" \t")
    if not last.lower().startswith(LABEL.lower()) or len(answer) > longest:
        return None
    printable = answer.isascii() and all(letter.isprintable() or letter == "\t" for letter in answer)
    return answer if answer and printable else None
