"""HumanEval (Chen et al. 2021) and MBPP (Austin et al. 2021), graded in the sandbox, never in this process."""

from __future__ import annotations

import builtins
import re
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

from llmkd.evaluation.harness.local.files import dataset, read

KS = (1, 10, 100)
SHOWN = 200
"""Letters that a sample keeps of what was wrong."""
MBPP_TEST = range(11, 511)
"""Task numbers of the test split; 1 to 10 are for prompts."""
MBPP_EXAMPLES = (2, 3, 4)


def humaneval(files: Mapping[str, str], **_: Any) -> dict[str, Any]:
    """Rows with ``prompt`` and ``test``; where the test only defines ``check``, the call is added."""
    rows = []
    for row in read(files["test"]):
        call = f"\ncheck({row['entry_point']})" if "entry_point" in row else ""
        rows.append({
            "task_id": row["task_id"], "prompt": row["prompt"], "solution": row["canonical_solution"],
            "test": row["test"] if "\ncheck(" in row["test"] else row["test"] + call,
        })  # fmt: skip
    return {"test": dataset(rows)}


def mbpp(files: Mapping[str, str], **_: Any) -> dict[str, Any]:
    """The test split and, as lm_eval has them, three examples."""
    rows = read(files["test"])
    columns = ("task_id", "text", "code", "test_list", "test_setup_code")
    by_number = {row["task_id"]: row for row in rows}
    return {
        "test": dataset([row for row in rows if row["task_id"] in MBPP_TEST], columns),
        "prompt": dataset([by_number[number] for number in MBPP_EXAMPLES], columns),
    }


def graded_humaneval(responses: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """A filter of lm_eval: each response as the whole program, and whether it passes."""
    programs = [[doc["prompt"] + text for text in texts] for texts, doc in zip(responses, docs, strict=True)]
    return _graded(programs, [doc["test"] for doc in docs], [None] * len(docs))


def graded_mbpp(responses: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The same for MBPP.  A row's setup code makes objects of the program's classes, so it belongs to the program."""
    programs = [
        [f"{text}\n{doc['test_setup_code']}" for text in texts] for texts, doc in zip(responses, docs, strict=True)
    ]
    return _graded(programs, ["\n".join(doc["test_list"]) for doc in docs], [builtin_asked_for(doc) for doc in docs])


def builtin_asked_for(doc: dict[str, Any]) -> str | None:
    """The function that a row asks for where it has a builtin's name, such as ``sum``: the sandbox must be told."""
    return next((name for name in re.findall(r"^def (\w+)", doc["code"], re.M) if hasattr(builtins, name)), None)


def score(doc: dict[str, Any], results: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    """``pass@k`` for the k of 1, 10 and 100 that there are samples for."""
    samples = results[0]
    right = sum(sample["passed"] for sample in samples)
    return {f"pass@{k}": pass_at_k(len(samples), right, k) for k in KS if k <= len(samples)}


def pass_at_k(n: int, right: int, k: int) -> float:
    """``1 - C(n - right, k) / C(n, k)``: the unbiased estimate from n samples that one of k passes (Chen et al. 2021).

    ValueError where fewer than k were drawn.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples: draw at least {max(k, 1)}")
    return 1.0 - comb(n - right, k) / comb(n, k)


def _graded(
    programs: Sequence[Sequence[str]], tests: Sequence[str], names: Sequence[str | None]
) -> list[list[dict[str, Any]]]:
    """All programs of all documents at once, so that the sandbox runs several beside each other."""
    from llmkd.rewards import sandbox

    out: list[list[dict[str, Any]]] = [[{"code": program, "passed": False} for program in texts] for texts in programs]
    for name in dict.fromkeys(names):
        samples = [(sample, test) for texts, test, of in zip(out, tests, names, strict=True) if of == name
                   for sample in texts]  # fmt: skip
        verdicts = sandbox.run_many([(sample["code"], test) for sample, test in samples], entry_point=name)
        for (sample, _), verdict in zip(samples, verdicts, strict=True):
            sample |= {"passed": verdict.passed, "message": verdict.message[:SHOWN]}
    return out
