"""Where a mathematical text says its final answer, and that answer in a plain form.

Everything here is linear in the text's length and reads text alone; what two answers are worth to each other is in
``math.py``.
"""

from __future__ import annotations

import re

from llmkd.rewards.units import without_unit

FORMS = ("boxed", "answer")
LONGEST = 400
"""Characters of an answer; a longer one is none. The longest of the MATH data set has 159."""
MOST_PARTS = 10
"""Parts of a list of answers; a longer list is none."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_JOINT = re.compile(r"(?:\\text|\\quad|\\[,;: ]|[\s${}~,;]|\band\b|\bor\b)*")
_SENTENCE = re.compile(r"(?i)\bthe (?:final |correct )?answer is\b:?")
_LINE = re.compile(r"(?im)^[ \t>*_#-]*(?:the )?(?:final )?answer[*_]*[ \t]*:|^[ \t]*####")
_WRAPPERS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_NOTHING = ("\\left", "\\right", "\\!", "\\%", "%", "^{\\circ}", "^\\circ", "\\$", "$", "€", "£", "\\(", "\\)")
_BOLD = re.compile(r"(?<![\w)}])\*\*|\*\*(?![\w({\\])")
_SPACES = ("\\,", "\\;", "\\:", "\\ ", "~", "\\quad", "\\qquad", "\n", "\t")


def final_answer(text: str, forms: tuple[str, ...] = FORMS) -> str | None:
    r"""The text's final answer by the first of ``forms`` that it holds, None where it holds none or nothing in it.

    boxed: the last ``\boxed{...}``; boxes before it that only ``and``, ``or`` or a comma parts from it are of the same
    answer, so that a row of guesses is a list and not its last member.  answer: what follows the last ``Answer:`` or
    ``####`` at the start of a line, or "the answer is" up to the sentence's end.
    """
    readers = {"boxed": _last_box, "answer": _last_statement}
    for form in forms:
        found = readers[form](text)
        if found is not None:
            return found if 0 < len(found) <= LONGEST else None
    return None


def normal(answer: str) -> str:
    """The answer without mark-up, currency, degree and percent signs, thousands' commas and a number's unit."""
    answer = answer.replace("\\[", "").replace("\\]", "") if answer.startswith("\\[") else answer
    answer = _BOLD.sub("", _unboxed(answer))
    for before, after in (("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("{,}", ","), (",\\!", ","), ("−", "-")):
        answer = answer.replace(before, after)
    for word in _NOTHING:
        answer = re.sub(r"(?<!\\)" + re.escape(word) + (r"(?![A-Za-z])" if word[-1].isalpha() else ""), "", answer)
    for word in _SPACES:
        answer = re.sub(r"(?<!\\)" + re.escape(word) + (r"(?![A-Za-z])" if word[-1].isalpha() else ""), " ", answer)
    answer = _WRAPPERS.sub(r" \1 ", answer)
    answer = " ".join(answer.split()).rstrip(".").strip()
    if not re.search(r"[(\[{]", answer):
        answer = _THOUSANDS.sub(lambda found: found.group().replace(",", ""), answer)
    if _GROUPED.fullmatch(answer):
        answer = answer.replace(" ", "")
    return without_unit(answer)


def parts(answer: str) -> list[str]:
    r"""The members of a list of answers: split at commas, semicolons, ``and`` and ``or`` outside of all brackets."""
    if answer.startswith("\\{") and answer.endswith("\\}") and answer.count("\\{") == 1:
        answer = answer[2:-2]
    found, depth = [""], 0
    for piece in re.split(r"([()\[\]{}]|[,;]|\s(?:and|or)\s)", answer):
        if piece in ("(", "[", "{", ")", "]", "}"):
            depth += 1 if piece in "([{" else -1
        if depth == 0 and piece.strip() in (",", ";", "and", "or"):
            found.append("")
        else:
            found[-1] += piece
    return [part.strip() for part in found if part.strip()]


def _last_box(text: str) -> str | None:
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    content, _ = _content(text, boxes[-1].end())
    members, start = [content], boxes[-1].start()
    for box in reversed(boxes[:-1]):
        content, end = _content(text, box.end())
        gap = text[end:start] if 0 <= start - end <= 40 else "no gap"
        if len(members) > MOST_PARTS or _JOINT.fullmatch(gap) is None:
            break
        members.append(content)
        start = box.start()
    if any(not member.strip() for member in members):
        return ""
    return ", ".join(reversed(members))


def _content(text: str, position: int) -> tuple[str, int]:
    """What the braces after a box hold and where they end; the box's one word where it has none (``\\boxed 5``)."""
    opening = re.compile(r"\s*\{").match(text, position)
    if opening is None:
        word = re.compile(r"[ \t]*([^\s${}]*)").match(text, position)
        assert word is not None
        return word.group(1).rstrip("."), word.end()
    depth, start = 1, opening.end()
    for index in range(start, min(len(text), start + LONGEST + 1)):
        if text[index] in "{}" and text[index - 1] != "\\":
            depth += 1 if text[index] == "{" else -1
        if depth == 0:
            return text[start:index], index + 1
    return "", len(text)


def _last_statement(text: str) -> str | None:
    found = max((match.end() for shape in (_SENTENCE, _LINE) for match in shape.finditer(text)), default=None)
    if found is None:
        return None
    rest = text[found : found + 4 * LONGEST].lstrip(" \t*_:\n\r")
    line = rest.splitlines()[0] if rest else ""
    line = re.split(r"[.!?](?=\s+[A-Z])", line)[0]
    return line.strip().rstrip(".").strip(" *_")


def _unboxed(answer: str) -> str:
    box = _BOX.search(answer)
    if box is None:
        return answer
    content, end = _content(answer, box.end())
    return answer[: box.start()] + content + answer[end:]
