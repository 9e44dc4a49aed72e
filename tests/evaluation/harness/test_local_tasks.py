"""The tasks of eval/tasks: a model that answers with the gold scores 1 in lm_eval, one that does not scores 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM

from llmkd.data.tasks import arithmetic
from llmkd.evaluation.harness import catalogue
from llmkd.evaluation.harness.local import code, files, mathematics, quickstart

Answer = Callable[[dict[str, Any]], str]
WRONG = "I do not know."


class Oracle(LM):
    """Says what `answer` makes of a document; of choices it prefers that one."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self.answer(request.doc) for request in requests]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        chosen = [request.args[1].strip() == self.answer(request.doc).strip() for request in requests]
        return [(-1.0, True) if right else (-2.0, False) for right in chosen]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return [-float(len(request.args[0].encode())) for request in requests]


def result(task: str, answer: Answer, limit: int | None = None) -> dict[str, Any]:
    manager = catalogue.manager([task], (), (), {})
    found = simple_evaluate(
        model=Oracle(answer), tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0, num_fewshot=None
    )
    assert found is not None
    return found


def score(task: str, answer: Answer, metric: str = "", limit: int | None = None) -> float:
    metrics = result(task, answer, limit)["results"][task]
    return metrics[metric or next(name for name in metrics if "," in name)]


GOLD: dict[str, tuple[Answer, str]] = {
    "llmkd_gsm8k": (lambda doc: doc["answer"], "exact_match,strict-match"),
    "llmkd_math500": (lambda doc: f"Final Answer: The final answer is ${doc['answer']}$. I hope it is correct.",
                      "exact_match,none"),
    "llmkd_mmlu_stem": (lambda doc: "ABCD"[doc["answer"]], "acc,none"),
    "llmkd_lambada": (lambda doc: doc["text"].split(" ")[-1], "acc,none"),
    "llmkd_sst2": (lambda doc: ("negative", "positive")[doc["label"]], "acc,none"),
    "llmkd_crows_pairs": (lambda doc: doc["sent_more"], "pct_stereotype,none"),
    "llmkd_arithmetic": (lambda doc: doc["solution"], "exact_match,none"),
}  # fmt: skip


@pytest.fixture
def real_files(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKD_EVAL_DATA", str(assets / "data"))


@pytest.mark.assets
@pytest.mark.usefixtures("real_files")
@pytest.mark.parametrize("task", GOLD)
def test_gold_answers_score_1(task: str) -> None:
    """On every item where the grading is ours or takes an answer out of a text, on 300 of the choices."""
    limit = None if task in ("llmkd_gsm8k", "llmkd_math500", "llmkd_arithmetic") else 300
    assert score(task, *GOLD[task], limit=limit) == 1.0


@pytest.mark.full
@pytest.mark.assets
@pytest.mark.usefixtures("real_files")
@pytest.mark.parametrize("task", ["llmkd_mmlu_stem", "llmkd_lambada", "llmkd_sst2", "llmkd_crows_pairs"])
def test_gold_choices_score_1_on_every_item(task: str) -> None:
    assert score(task, *GOLD[task]) == 1.0


@pytest.mark.assets
@pytest.mark.usefixtures("real_files")
@pytest.mark.parametrize("task", GOLD)
def test_wrong_answers_score_0(task: str) -> None:
    wrong = {
        "llmkd_mmlu_stem": lambda doc: "ABCD"[(doc["answer"] + 1) % 4],
        "llmkd_sst2": lambda doc: ("negative", "positive")[1 - doc["label"]],
        "llmkd_crows_pairs": lambda doc: doc["sent_less"],
    }
    assert score(task, wrong.get(task, lambda doc: WRONG), GOLD[task][1], limit=300) == 0.0


@pytest.mark.assets
@pytest.mark.usefixtures("real_files")
def test_a_wrong_number_in_the_right_form_scores_0() -> None:
    assert score("llmkd_gsm8k", lambda doc: "#### 123456789", "exact_match,strict-match", limit=100) == 0.0
    said = "Final Answer: The final answer is $123456789$. I hope it is correct."
    assert score("llmkd_math500", lambda doc: said, "exact_match,none", limit=100) == 0.0
    assert score("llmkd_arithmetic", lambda doc: "Answer: 123456789", "exact_match,none", limit=100) == 0.0


@pytest.mark.assets
@pytest.mark.usefixtures("real_files")
def test_gold_solutions_of_math_hold_their_answer_in_a_box() -> None:
    assert score("llmkd_math500", lambda doc: doc["solution"], "boxed_match,none") == 1.0


@pytest.mark.assets
@pytest.mark.usefixtures("real_files")
def test_gsm8k_is_prompted_as_lm_evals_own() -> None:
    """The same five examples and question: lm_eval's YAML over the same rows gives the same requests."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(lm_eval_yaml("gsm8k/gsm8k"))
    rows = files.splits({"test": "gsm8k_test", "train": "gsm8k_train"}, ["question", "answer"])
    theirs = ConfigurableTask(config={**config, "custom_dataset": lambda **_: rows, "tag": None})
    ours = catalogue.manager(["llmkd_gsm8k"], (), (), {}).load(["llmkd_gsm8k"])["tasks"]["llmkd_gsm8k"]
    assert requests(ours) == requests(theirs)


def lm_eval_yaml(name: str) -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent / f"{name}.yaml"


def requests(task: Any) -> list[Any]:
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=20, rank=0, world_size=1)
    return [instance.args for instance in task.instances]


def test_quickstart_bits_are_those_of_the_likelihoods() -> None:
    """A model that gives a nat a byte: 1 / ln 2 bits per byte."""
    for task in ("llmkd_quickstart_code", "llmkd_quickstart_prose"):
        assert score(task, str, limit=3) == pytest.approx(1.4426950408889634)


def test_worked_solutions_are_scored_after_their_question() -> None:
    found = result("llmkd_quickstart_math", lambda doc: doc["solution"], limit=4)
    sizes = [len(sample["doc"]["solution"].encode()) for sample in found["samples"]["llmkd_quickstart_math"]]
    bits = found["results"]["llmkd_quickstart_math"]["bits_per_byte,none"]
    assert bits == pytest.approx(4 * 1.4426950408889634 / sum(sizes))


def test_arithmetic_by_level_counts_each_level_alone() -> None:
    found = result("llmkd_arithmetic", lambda doc: doc["solution"] if doc["level"] == 3 else WRONG)
    metrics = found["results"]["llmkd_arithmetic"]
    assert [metrics[f"exact_match_level_{level},none"] for level in arithmetic.LEVELS] == [0, 0, 1, 0]
    assert metrics["exact_match,none"] == 0.25


def test_problems_are_unseen_in_training() -> None:
    rows = quickstart.problems(n=20)["test"]
    assert len(rows) == 80
    assert all(arithmetic.is_heldout(row["question"]) for row in rows)


@pytest.mark.parametrize(
    ("text", "closing", "boxed"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", None, r"\frac{1}{2}"),
        ("Final Answer: The final answer is $x+1$. I hope it is correct.", "$x+1$", None),
        ("Final Answer: The final answer is $3$. ", "$3$", None),
        (r"\boxed{1} and \boxed{2", None, None),
        ("nothing", None, None),
    ],
)
def test_answers_are_found_where_they_stand(text: str, closing: str | None, boxed: str | None) -> None:
    assert mathematics.closing_answer(text) == closing
    assert mathematics.boxed_answer(text) == boxed


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        (r"\dfrac{1}{2}", r"\frac{1}{2}", True),
        ("$\\frac12$", r"\frac{1}{2}", True),
        ("0.5", r"\frac{1}{2}", True),
        (r"\left(3, 4\right)", "(3,4)", True),
        ("5", "6", False),
        (None, "6", False),
    ],
)
def test_answers_are_compared_once_normalised(answer: str | None, gold: str, equal: bool) -> None:
    assert mathematics.same(answer, gold) is equal


@pytest.mark.assets
@pytest.mark.usefixtures("real_files")
@pytest.mark.parametrize(
    ("task", "gold", "limit"),
    [
        ("llmkd_humaneval", "solution", 8),
        ("llmkd_mbpp", "code", 8),
        pytest.param("llmkd_humaneval", "solution", None, marks=pytest.mark.full),
        pytest.param("llmkd_mbpp", "code", None, marks=pytest.mark.full),
    ],
)
def test_reference_programs_pass_in_the_sandbox(task: str, gold: str, limit: int | None) -> None:
    assert score(task, lambda doc: doc[gold], "pass@1,sandbox", limit) == 1.0


@pytest.mark.assets
@pytest.mark.usefixtures("real_files")
@pytest.mark.parametrize("task", ["llmkd_humaneval", "llmkd_mbpp"])
@pytest.mark.parametrize("answer", ["    return None\n", "import os; os._exit(0)\n", "    ((\n"])
def test_programs_that_are_wrong_or_cheat_do_not_pass(task: str, answer: str) -> None:
    assert score(task, lambda doc: answer, "pass@1,sandbox", limit=4) == 0.0


@pytest.mark.assets
@pytest.mark.usefixtures("real_files")
def test_rows_with_a_builtins_name_or_setup_code_are_graded() -> None:
    """MBPP 126 asks for `sum`, 367 makes a tree in its setup code."""
    rows = [row for row in code.mbpp({"test": "mbpp"})["test"] if row["task_id"] in (126, 367)]
    verdicts = code.graded_mbpp([[row["code"], "pass"] for row in rows], rows)
    assert [[sample["passed"] for sample in samples] for samples in verdicts] == [[True, False], [True, False]]


@pytest.mark.assets
@pytest.mark.usefixtures("real_files")
def test_twenty_samples_give_pass_at_1_and_10() -> None:
    """Half of a problem's twenty samples are right: pass@1 is 1/2, pass@10 nearly 1."""
    turns = iter(range(10**6))
    found = result("llmkd_humaneval_20", lambda doc: doc["solution"] if next(turns) % 2 else "    pass\n", limit=1)
    metrics = found["results"]["llmkd_humaneval_20"]
    assert metrics["pass@1,sandbox"] == pytest.approx(0.5)
    assert metrics["pass@10,sandbox"] == pytest.approx(1 - 1 / 184756)


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    """Against all draws of k of n, counted one by one."""
    from itertools import combinations

    for n, right, k in [(5, 0, 2), (5, 2, 1), (5, 2, 3), (6, 5, 2), (4, 4, 4)]:
        samples = [True] * right + [False] * (n - right)
        draws = list(combinations(samples, k))
        assert code.pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    with pytest.raises(ValueError, match="draw at least 3"):
        code.pass_at_k(2, 1, 3)


def test_a_missing_file_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMKD_EVAL_DATA", raising=False)
    with pytest.raises(files.MissingFile, match="set LLMKD_EVAL_DATA to the folder"):
        files.find("gsm8k_test")
    monkeypatch.setenv("LLMKD_EVAL_DATA", str(tmp_path))
    with pytest.raises(files.MissingFile, match=r"gsm8k_test.jsonl or gsm8k_test.jsonl.gz: not below"):
        files.find("gsm8k_test")


def test_a_file_that_lies_there_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "rows.jsonl").write_text("{}\n")
    monkeypatch.setenv("LLMKD_EVAL_DATA", str(tmp_path))
    with pytest.raises(files.MissingFile, match="several below"):
        files.find("rows")


def test_a_broken_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    monkeypatch.setenv("LLMKD_EVAL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="line 2: not JSON"):
        files.read("rows")
