"""The quickstart's domains as tasks: held-out code, prose and worked problems, and problems to solve.  No file is
needed: the rows are part of the package or made from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmkd.data.quickstart import corpus
from llmkd.data.tasks import arithmetic
from llmkd.evaluation.exact_match import EVALUATION_SEED
from llmkd.evaluation.harness.local.files import dataset


def documents(domain: str, **_: Any) -> dict[str, Any]:
    """Held-out documents of ``code`` or ``prose``: {text, source}."""
    return {"test": dataset(corpus.rows(domain, "heldout"))}


def worked_problems(**_: Any) -> dict[str, Any]:
    """Held-out problems with their worked steps: {question, solution, level}."""
    rows = corpus.rows("math", "heldout")
    return {
        "test": dataset(
            [
                {"question": row["messages"][0]["content"], "solution": row["messages"][1]["content"],
                 "level": row["level"]}
                for row in rows
            ]
        )
    }  # fmt: skip


def problems(n: int, levels: Sequence[int] = arithmetic.LEVELS, **_: Any) -> dict[str, Any]:
    """``n`` unseen problems of each level: those of a run's own evaluation."""
    rows = [row for level in levels for row in arithmetic.problems(EVALUATION_SEED, n, [level], "heldout")]
    return {"test": dataset(rows)}


def bits(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """Log-likelihood and bytes of a worked solution, which lm_eval turns into bits per byte."""
    likelihood = float(results[0][0])
    return {"bits_per_byte": (likelihood, len(doc["solution"].encode()))}


def grade(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Exact match of the final answer, over all levels and for the problem's own."""
    right = float(arithmetic.is_correct(results[0], doc["answer"]))
    return {"exact_match": right, f"exact_match_level_{doc['level']}": right}
