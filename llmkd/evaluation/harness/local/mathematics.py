"""MATH-500 (Lightman et al. 2024): the answers of lm_eval's minerva_math.

Differs from it: answers are compared as strings, normalised as lm_eval's hendrycks_math does, since its own comparison
needs packages that are not among ours; ``math_verify`` is added where the package of this name is installed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

END = "I hope it is correct."


def grade(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """exact_match: of the answer in the closing sentence; boxed_match: of the last ``\\boxed{}``; math_verify: where it
    is installed, of whatever answer it finds."""
    text = results[0]
    out = {
        "exact_match": float(same(closing_answer(text), doc["answer"])),
        "boxed_match": float(same(boxed_answer(text), doc["answer"])),
    }
    if find_spec("math_verify") is not None:
        from math_verify import parse, verify

        out["math_verify"] = float(bool(verify(gold=parse(doc["solution"]), target=parse(text))))
    return out


def closing_answer(text: str) -> str | None:
    """What stands in ``Final Answer: The final answer is ... I hope it is correct.``, whose end may be cut off."""
    match = re.search(r"Final Answer: The final answer is(.*?). I hope it is correct.", text + END)
    return match.group(1).strip() if match else None


def boxed_answer(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` holds, by counting braces; None where there is none or it does not end."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + len("\\boxed"), len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + len("\\boxed{") : place]
    return None


def same(answer: str | None, gold: str) -> bool:
    """Equal as strings once normalised: units, spaces, ``\\left``, ``\\dfrac``, ``a/b`` and such."""
    if answer is None:
        return False
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    return bool(is_equiv(answer.strip().strip("$"), gold))
