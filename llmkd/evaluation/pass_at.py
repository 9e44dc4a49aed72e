"""How many problems of a task a model solves: greedily, and in one of k samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import comb
from typing import Any

from torch import nn

from llmkd.config import EvalTask
from llmkd.data.tasks import table
from llmkd.evaluation.exact_match import EVALUATION_SEED, complete, render_question
from llmkd.rewards.table import load


def solved(
    model: nn.Module, tokenizer: Any, task: str, n: int, *, samples: int = 0, max_new_tokens: int = 256,
    options: Mapping[str, Any] | None = None, seed: int = 0,
) -> list[list[bool]]:  # fmt: skip
    """For each of ``n`` unseen problems which completions its task's grader gives 1.0.

    samples: 0 for one greedy completion, else so many sampled at temperature 1 from ``seed``. options: as of
    ``problems``. Samples of all problems are drawn in the same batches.

    Raises: ValueError for a task or an option that there is not.
    """
    rows = problems(task, n, options)
    reward = load({"kind": task})
    prompts = [render_question(tokenizer, row["prompt"][0]["content"]) for row in rows]
    drawn = complete(model, tokenizer, prompts * max(samples, 1), max_new_tokens, seed=seed if samples else None)
    return [
        [reward(row["prompt"], text, row["answer"]) == 1.0 for text in drawn[place :: len(rows)]]
        for place, row in enumerate(rows)
    ]


def problems(task: str, n: int, options: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """``n`` rows of a task's held-out split. options: its difficulty, and a seed in place of ``EVALUATION_SEED``.

    Raises: ValueError for a task or an option that there is not, and for fewer than ``n`` distinct problems.
    """
    return table.rows(task, n, "heldout", {"seed": EVALUATION_SEED, **(options or {})})


def check(tasks: Iterable[EvalTask]) -> None:
    """Refuse before a training what would fail after it: every problem is made once.

    Raises: ValueError that names the entry of ``eval.tasks``.
    """
    for index, task in enumerate(tasks):
        try:
            if not task.by_level:
                problems(task.task, task.n, task.difficulty)
        except ValueError as error:
            place, said = f"eval.tasks.{index}", str(error)
            if said.startswith("options"):
                raise ValueError(f"{place}.{said}") from None
            raise ValueError(f"{place}{'.options' * bool(task.options)}: {said}") from None


def pass_at(k: int, solved_of: Sequence[Sequence[bool]]) -> list[float]:
    """pass@k of each problem, whose mean is that of the task: ``1 - C(n - c, k) / C(n, k)``, c of n samples right.

    Unbiased for the chance that one of k samples is right. Of one greedy completion pass@1 is whether it is right.
    Raises: ValueError where a problem has fewer than k samples.

    Chen et al., Evaluating Large Language Models Trained on Code, 2021 (arXiv:2107.03374), equation 1.
    """
    if k < 1 or any(len(found) < k for found in solved_of):
        fewest = min(map(len, solved_of), default=0)
        raise ValueError(f"pass@{k}: k is outside [1, {fewest}], the samples of a problem: draw more, or lower k")
    return [1.0 - comb(len(found) - sum(found), k) / comb(len(found), k) for found in solved_of]
