"""Whether the student answers as its teacher does: final answers, and the texts that lead to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from llmkd.config import EvalTask
from llmkd.data.tasks import arithmetic
from llmkd.evaluation import intervals
from llmkd.evaluation.exact_match import EVALUATION_SEED, complete, render_question
from llmkd.evaluation.measures.found import Found
from llmkd.evaluation.measures.subjects import Subjects
from llmkd.evaluation.results import Metric

SEEDS = (0, 1)
"""Of the teacher's two sampled completions."""
SHOWN = 12
"""Problems whose texts are kept, as many of each task and level as there is room for."""
MISSING = "sacrebleu is not installed: pip install 'llmkd[eval]'"
LABELS = {
    "answer_agreement": "same final answer as the teacher",
    "answer_agreement_teacher_right": "same final answer where the teacher is right",
    "answer_agreement_teacher_wrong": "same final answer where the teacher is wrong",
    "rationale_bleu": "BLEU of the text against the teacher's",
}
ORDER = 4
"""Longest n-gram of BLEU."""

Texts = Mapping[str, Sequence[str]]
"""Who -> one completion a problem."""


def measure_answers(subjects: Subjects, teacher: str) -> Found:
    """Greedy completions of student, baseline and teacher of the tasks' problems, and two of the teacher sampled at
    temperature 1, compared.

    ``answer_agreement``: of the problems for which the teacher gives a final answer, the share where the student gives
    the same; ``..._teacher_right`` and ``..._teacher_wrong``: of those where the teacher's is right, or wrong.
    ``rationale_bleu``: corpus BLEU (sacrebleu, 0 to 100) of the student's completions against the teacher's, 100 where
    all are the same.  ``resampled_teacher/...``: the teacher's second sample against its first.  Intervals by problem.
    """
    tasks = [task for task in subjects.tasks if task.task == "arithmetic"]
    problems = [problem | {"task": task} for task in tasks for problem in problems_of(task)]
    if not problems:
        why = "there is no task with a final answer to compare (eval.tasks: arithmetic)"
        return Found({}, {"labels": {}, "left_out": dict.fromkeys(("answer_agreement", "rationale_bleu"), why)})
    texts = _texts(subjects, teacher, problems)
    metrics, left_out = compared(texts, [problem["answer"] for problem in problems])
    items = [
        {"task": p["task"].label, "level": p["level"], "question": p["question"], "answer": p["answer"],
         "completions": {who: found[i] for who, found in texts.items()}}
        for i, p in enumerate(problems)
    ]  # fmt: skip
    spread = np.linspace(0, len(items) - 1, min(SHOWN, len(items))).round().astype(int)
    answers = {
        "problems": len(problems),
        "answered": {who: float(np.mean([_answer(t) is not None for t in found])) for who, found in texts.items()},
        "exact_match": {
            who: float(np.mean([_answer(t) == p["answer"] for t, p in zip(found, problems, strict=True)]))
            for who, found in texts.items()
        },
        "samples": [items[i] for i in spread],
    }
    return Found(metrics, {"answers": answers, "labels": LABELS, "left_out": left_out}, items)


def problems_of(task: EvalTask) -> list[dict[str, Any]]:
    """The problems of arithmetic that the run's own evaluation asks: with samples n over all levels, else of each."""
    levels = task.levels or arithmetic.LEVELS
    if task.samples:
        return arithmetic.problems(EVALUATION_SEED, task.n, levels, "heldout")
    return [p for level in levels for p in arithmetic.problems(EVALUATION_SEED, task.n, [level], "heldout")]


def compared(texts: Texts, right: Sequence[str]) -> tuple[dict[str, Metric], dict[str, str]]:
    """Metrics of ``student`` (and ``baseline``) against ``teacher``, and of ``teacher_resampled`` against
    ``teacher_sampled``, whose texts are given, one a problem; right: its answer.  And what is left out, and why."""
    pairs = {"": ("student", "teacher"), "baseline/": ("baseline", "teacher"),
             "resampled_teacher/": ("teacher_resampled", "teacher_sampled")}  # fmt: skip
    metrics: dict[str, Metric] = {}
    left_out: dict[str, str] = {}
    chosen: dict[str, dict[str, list[float]]] = {}
    for at, (ours, theirs) in pairs.items():
        if ours not in texts:
            continue
        chosen[at] = _same(texts[ours], texts[theirs], right)
        for name, same in chosen[at].items():
            if same:
                metrics[at + name] = Metric(intervals.mean(same), _better(at + name))
            else:
                left_out[at + name] = "the teacher gives no such answer to any problem"
    if "baseline/" in chosen:
        for name, same in chosen[""].items():
            if same:
                paired = intervals.difference(same, chosen["baseline/"][name])
                metrics[f"difference/{name}"] = Metric(paired, _better(name))
    if find_spec("sacrebleu") is None:
        return metrics, left_out | {"rationale_bleu": MISSING}
    return metrics | _overlaps(texts, {at: pair for at, pair in pairs.items() if at in chosen}), left_out


def _better(name: str) -> Any:
    """To share the teacher's mistakes is neither good nor bad; and what it does with itself is the yardstick."""
    return None if name.endswith("wrong") or name.startswith("resampled_teacher/") else "higher"


def _same(ours: Sequence[str], theirs: Sequence[str], right: Sequence[str]) -> dict[str, list[float]]:
    """1 where the answers are the same, over the problems that each name is about."""
    out: dict[str, list[float]] = {"answer_agreement": [], "answer_agreement_teacher_right": [],
                                   "answer_agreement_teacher_wrong": []}  # fmt: skip
    for mine, other, answer in zip(ours, theirs, right, strict=True):
        given = _answer(other)
        if given is None:
            continue
        same = float(_answer(mine) == given)
        out["answer_agreement"].append(same)
        out[f"answer_agreement_teacher_{'right' if given == answer else 'wrong'}"].append(same)
    return out


def _answer(text: str) -> str | None:
    return arithmetic.final_answer(text)


def _overlaps(texts: Texts, pairs: Mapping[str, tuple[str, str]]) -> dict[str, Metric]:
    columns = {at: matches(texts[ours], texts[theirs]) for at, (ours, theirs) in pairs.items()}
    out = {
        f"{at}rationale_bleu": Metric(intervals.of_sums(found, bleu), _better(f"{at}rationale_bleu"), "BLEU")
        for at, found in columns.items()
    }
    if "baseline/" in columns:
        both = [*columns[""], *columns["baseline/"]]
        half = len(both) // 2
        paired = intervals.of_sums(both, lambda sums: bleu(sums[:half]) - bleu(sums[half:]))
        out["difference/rationale_bleu"] = Metric(paired, "higher", "BLEU")
    return out


def matches(ours: Sequence[str], theirs: Sequence[str]) -> list[list[float]]:
    """What corpus BLEU adds up over the texts, a column each: matching n-grams for n = 1 to 4, n-grams, the lengths of
    ours and of theirs, and texts that differ."""
    from sacrebleu.metrics import BLEU

    scorer = BLEU(effective_order=True)
    rows = []
    for mine, other in zip(ours, theirs, strict=True):
        found = scorer.sentence_score(mine, [other])
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len, float(mine != other)])
    return [list(map(float, column)) for column in zip(*rows, strict=True)]


def bleu(sums: Sequence[np.ndarray]) -> np.ndarray:
    """Corpus BLEU from sums of ``matches``: ``100 min(1, e^(1 - r / c)) (prod_n m_n / t_n)^(1/4)`` with sacrebleu's
    smoothing, the i-th n without a match counting as ``1 / (2^i t_n)``.

    100 where no text differs, also where all are too short for a match of four words (sacrebleu says 0).

    Papineni et al., BLEU, 2002; Post, A Call for Clarity in Reporting BLEU Scores, 2018.
    """
    match, total = np.stack(sums[:ORDER]), np.stack(sums[ORDER : 2 * ORDER])
    length, reference, differing = sums[2 * ORDER :]
    smoothed = np.where(match == 0, 1 / 2.0 ** np.cumsum(match == 0, axis=0), match)
    log = np.log(smoothed / np.maximum(total, 1)).mean(0)
    brevity = np.minimum(0.0, 1 - reference / np.maximum(length, 1))
    nothing = (total == 0).any(0) | (match == 0).all(0)
    score = np.where(nothing, 0.0, 100 * np.exp(log + brevity))
    return np.where(differing == 0, 100.0, score)


def _texts(subjects: Subjects, teacher: str, problems: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Who -> completions.  A teacher with a rendering of its own is asked on that."""
    model = subjects.teachers[teacher]
    tokenizer = subjects.teacher_tokenizers[teacher] if model.own_rendering else subjects.tokenizer

    def asked(of: Any, how: Any, seed: int | None = None) -> list[str]:
        out: list[str] = []
        for task in subjects.tasks:
            prompts = [render_question(how, p["question"]) for p in problems if p["task"] is task]
            out += complete(of, how, prompts, task.max_new_tokens, seed=seed)
        return out

    texts = {"student": asked(subjects.student.model, subjects.tokenizer), "teacher": asked(model.model, tokenizer)}
    if subjects.baseline is not None:
        texts["baseline"] = asked(subjects.baseline.model, subjects.tokenizer)
    for who, seed in zip(("teacher_sampled", "teacher_resampled"), SEEDS, strict=True):
        texts[who] = asked(model.model, tokenizer, seed)
    return texts
