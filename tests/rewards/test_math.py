"""math: answers that are right in another spelling, answers that try to look right, and real data sets."""

import gzip
import importlib.util
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from llmkd.rewards import bounded
from llmkd.rewards import math as module
from llmkd.rewards.answers import final_answer
from llmkd.rewards.math import math

needs_math_verify = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs the extra [math]")
pytestmark = needs_math_verify

RIGHT = [
    (r"So it is \boxed{42}.", "42"),
    (r"\boxed{42}", 42),
    (r"\boxed{0.5}", 0.5),
    ("Answer: 42", "42"),
    ("**Answer:** 42", "42"),
    ("**Final answer:** $42$.", "42"),
    ("Answer:\n42", "42"),
    ("#### 1,234", "1234"),
    (r"The answer is $\frac{1}{2}$.", "0.5"),
    ("The final answer is 42 apples. I hope it is right.", "42"),
    ("Answer: $18 per day", "18"),
    (r"\boxed{\$18.50}", "18.5"),
    (r"\boxed{50\%}", "50"),
    (r"\boxed{90^\circ}", "90"),
    (r"\boxed 5", "5"),
    (r"\fbox{5}", "5"),
    (r"\boxed{1\frac{1}{2}}", "3/2"),
    (r"\boxed{0.333333}", r"\frac{1}{3}"),
    (r"\boxed{\dfrac{2}{4}}", r"\frac12"),
    (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
    ("Answer: 2*sqrt(2)", r"\sqrt 8"),
    ("Answer: 3*pi/2", r"\frac{3\pi}{2}"),
    ("Answer: x**10", "x^{10}"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    (r"\boxed{x^2y^2z^2}", "(xyz)^2"),
    (r"\boxed{x=42}", "42"),
    (r"\boxed{42}", "x = 42"),
    (r"\boxed{6 \cdot 7 = 42}", "42"),
    (r"\boxed{2, 1}", "1,2"),
    (r"\boxed{\{1, 2\}}", "1, 2"),
    (r"$\boxed{1}$ and $\boxed{-3}$", "-3, 1"),
    (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3,\pi/2)"),
    (r"\boxed{(-\infty, 3]}", r"x \in (-\infty,3]"),
    (r"\boxed{\text{even}}", "Even"),
    (r"\boxed{5 x^2}", "5x^2"),
    (r"\boxed{4ba}", "4ab"),
    (r"\boxed{x y}", "y x"),
    (r"\boxed{\frac 1 2}", r"\frac{1}{2}"),
    (r"\boxed{1 \frac 1 2}", "3/2"),
    (r"\boxed{-1 1/2}", "-1.5"),
    (r"\boxed{2 n}", "2n"),
    (r"\boxed{2\pi}", "2 pi"),
    (r"\boxed{5\text{ cm}^2}", "5"),
    (r"\boxed{10km/h}", "10"),
    (r"\boxed{12 \text{ sq. ft}}", "12"),
    (r"\boxed{20 \text{ miles per hour}}", "20"),
    (r"\boxed{8 \text{ p.m.}}", "8"),
    (r"\boxed{7 students in the class}", "7"),
    (r"\boxed{1\,234\,567}", "1234567"),
    (r"\boxed{1011_{2}}", "1011_2"),
    (r"\boxed{1011}", "1011_2"),
    (r"\boxed{\textbf{(C)}}", "C"),
    (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
]


@pytest.mark.parametrize(("completion", "reference"), RIGHT)
def test_right_in_another_spelling(completion: str, reference: Any) -> None:
    assert math("", completion, reference) == 1.0


HOSTILE = [
    ("", "42"),
    ("42", "42"),
    ("I think 42 is it, answer 42 it is", "42"),
    ("Answer:", "42"),
    (r"\boxed{}", "42"),
    (r"\boxed{42", "42"),
    (r"\boxed{42} no, \boxed{41}", "42"),
    ("Answer: 42\nAnswer: 41", "42"),
    (r"\boxed{41, 42}", "42"),
    (r"\boxed{41 \text{ or } 42}", "42"),
    (r"\boxed{41} or \boxed{42}", "42"),
    (r"\boxed{41}, \boxed{42}", "42"),
    (r"\boxed{41}\boxed{42}", "42"),
    ("".join(rf"\boxed{{{n}}} " for n in range(100)) + r"\boxed{42}", "42"),
    (r"\boxed{" + ", ".join(map(str, range(100))) + "}", "42"),
    (r"\boxed{\{" + ", ".join(map(str, range(100))) + r"\}}", "42"),
    ("Answer: 40 or 41 or 42", "42"),
    ("Answer: 40 and 42", "42"),
    ("Answer: 41 (or 42)", "42"),
    ("Answer: 42 or 43 apples", "42"),
    ("Answer: not 41 but 42", "42"),
    ("Answer: between 1 and 100", "42"),
    (r"\boxed{1 = 2 = 42}", "42"),
    (r"\boxed{x = 41 = 42}", "42"),
    (r"\boxed{41 \pm 1}", "42"),
    (r"\boxed{[0, 100]}", "42"),
    (r"\boxed{x}", "42"),
    (r"\boxed{\text{the right answer}}", "42"),
    (r"\boxed{\text{nan}}", "42"),
    (r"\boxed{0/0}", "42"),
    (r"\boxed{\infty}", "42"),
    (r"\boxed{42.01}", "42"),
    (r"\boxed{42.0000001}", "42"),
    (r"\boxed{0.33}", r"\frac{1}{3}"),
    (r"\boxed{0}", "0.0000003"),
    (r"\boxed{0.0}", r"\frac{1}{10000000}"),
    (r"\boxed{(2, 1)}", "(1, 2)"),
    (r"\boxed{(1, 2]}", "(1, 2)"),
    (r"\boxed{y+1}", "x+1"),
    (r"\boxed{1, 1}", "1, 2"),
    (r"\boxed{1, 2}", "1, 2, 3"),
    (r"\boxed{1, 2, 3}", "1, 2"),
    (r"\boxed{1,234}", "1, 234"),
    (r"\boxed{\boxed{41} \neq 42}", "42"),
    (r"\boxed{True}", "42"),
    (r"\boxed{12}", "12xy^2"),
    (r"\boxed{12ab}", "12xy^2"),
    (r"\boxed{3ab}", "3cd"),
    (r"\boxed{4ab}", "4"),
    (r"\boxed{4}", "4ab"),
    (r"\boxed{1 1/2}", "11/2"),
    (r"\boxed{5}", "5 x^2"),
    (r"\boxed{2 i}", "2"),
    (r"\boxed{2}", "2 pi"),
    (r"\boxed{2 \text{ million}}", "2"),
    (r"\boxed{1011_3}", "1011_2"),
    (r"\boxed{11_2}", "11"),
    (r"\boxed{1 2}", "12"),
    (r"\boxed{\text{evens}}", r"\text{seven}"),
    ("Answer: __import__('os').system('exit 1')", "42"),
    (r"\boxed{\input{/etc/passwd}}", "42"),
    ("Answer: \ud800\x00", "42"),
]


@pytest.mark.parametrize(("completion", "reference"), HOSTILE)
def test_no_reward_for_what_only_looks_right(completion: str, reference: Any) -> None:
    assert math("", completion, reference) == 0.0


ENDLESS = [
    r"\boxed{9^{9^{9}}}",
    "Answer: 9**9**9",
    r"\boxed{(9^{9999})^{9999}}",
    r"\boxed{99999!}",
    r"\boxed{1000!!!}",
    r"\boxed{\sum_{n=1}^{99999999} \sin(n^n)}",
    r"\boxed{\prod_{n=1}^{99999999} n}",
    r"\boxed{" + "(" * 190 + "1" + ")" * 190 + "}",
    r"\boxed{" + r"\frac{1}{" * 40 + "1" + "}" * 40 + "}",
    r"\boxed{" + "9" * 399 + "}",
    r"\boxed{" + "9" * 10**6 + "}",
    r"\boxed{" * 10**5,
    r"\boxed{1}" * 10**5,
    "Answer: 1\n" * 10**5,
    "the answer is " * 10**5,
    "answer" + " " * 10**6 + ":",
    "$" * 10**6,
]


@pytest.mark.parametrize("opened", ["(", "{", "["])
def test_deep_brackets_are_not_even_asked_about(opened: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_judged", pytest.fail)
    closed = {"(": ")", "{": "}", "[": "]"}[opened]
    assert math("", rf"\boxed{{{opened * 150}1{closed * 150}}}", r"\sqrt{2}") == 0.0


@pytest.mark.parametrize("completion", ENDLESS, ids=range(len(ENDLESS)))
@pytest.mark.timeout(60)
def test_endless_work_ends_and_earns_nothing(completion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "CPU_SECONDS", 1)
    assert math("", completion, "42") == 0.0


def test_it_works_after_an_end_of_the_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "CPU_SECONDS", 1)
    assert bounded.ask("match", "(a+)+b", "a" * 40) is None
    assert math("", r"\boxed{\sqrt{12}}", r"2\sqrt{3}") == 1.0


def test_it_works_outside_the_main_thread() -> None:
    """math-verify's own limits are signals, which no other thread may set."""
    found: list[float] = []
    spelled = [r"\boxed{\sqrt{18}}", r"\boxed{\sqrt{19}}"]
    threads = [threading.Thread(target=lambda c=c: found.append(math("", c, r"3\sqrt{2}"))) for c in spelled * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0.0, 0.0, 1.0, 1.0]


def test_forms_say_where_an_answer_may_stand() -> None:
    both = "\\boxed{41}\nAnswer: 42"
    assert math("", both, "41") == math("", both, "42", forms=["answer"]) == 1.0
    assert math("", both, "42") == math("", both, "41", forms=["answer"]) == 0.0
    assert math("", "Answer: 42", "42", forms=["boxed"]) == 0.0
    assert math("", both, "42", forms=["answer", "boxed"]) == 1.0
    with pytest.raises(ValueError, match=r"forms is \['box'\]: give a list of some of boxed, answer"):
        math("", both, "42", forms=["box"])


@pytest.mark.parametrize("reference", [None, [], {"answer": 1}, True, "", "word " * 200])
def test_a_reference_without_an_answer_is_the_datas_fault(reference: Any) -> None:
    with pytest.raises(ValueError, match=r"math: the reference .*: name the right column"):
        math("", r"\boxed{42}", reference)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    module.require.cache_clear()
    with pytest.raises(ValueError, match=r"install the extra \[math\]"):
        math("", r"\boxed{42}", "42")
    module.require.cache_clear()


def rows(assets: Path, name: str) -> list[dict[str, Any]]:
    with gzip.open(assets / "data" / "math" / name, "rt") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.assets
def test_every_gsm8k_solution_earns_its_own_answer(assets: Path) -> None:
    data = rows(assets, "gsm8k_test.jsonl.gz")
    answers = [row["answer"].rpartition("#### ")[2] for row in data]
    wrong = [str(int(answer.replace(",", "")) + 1) for answer in answers]
    assert [math("", row["answer"], answer) for row, answer in zip(data, answers, strict=True)] == [1.0] * 1319
    assert [math("", row["answer"], answer) for row, answer in zip(data, wrong, strict=True)] == [0.0] * 1319


@pytest.mark.assets
def test_gsm8k_model_solutions_get_the_published_verdicts(assets: Path) -> None:
    """5276 solutions that four models wrote, each with the verdict of the data set's authors."""
    ours, theirs = [], []
    for row in rows(assets, "gsm8k_model_solutions.jsonl.gz"):
        for graded in (value for value in row.values() if isinstance(value, dict)):
            truth, said = (text.replace("\nA:", "\n####") for text in (row["ground_truth"], graded["solution"]))
            ours.append(math("", said, truth))
            theirs.append(float(graded["is_correct"]))
    assert len(ours) == 5276 and 0.2 < sum(theirs) / len(theirs) < 0.6
    assert ours == theirs


@pytest.mark.assets
def test_every_math500_solution_earns_its_own_answer(assets: Path) -> None:
    """500 of 500; the answers were cut out of the solutions by the data set's authors."""
    data = rows(assets, "math500.jsonl.gz")
    assert [row["answer"] for row in data if math("", row["solution"], row["answer"]) != 1.0] == []


@pytest.mark.assets
@pytest.mark.full
def test_a_math500_answer_of_another_problem_earns_nothing(assets: Path) -> None:
    answers = [row["answer"] for row in rows(assets, "math500.jsonl.gz")]
    shifted = zip(answers, answers[1:] + answers[:1], strict=True)
    same = [pair for pair in shifted if math("", rf"\boxed{{{pair[0]}}}", pair[1]) == 1.0]
    assert same == [("5", "x=5"), ("7", "7"), ("3", "3")]


@pytest.mark.assets
def test_math500_answers_are_read_by_math_verify(assets: Path) -> None:
    """An answer that text alone would not find equal to itself: a zero is added to it."""
    data = [row["answer"] for row in rows(assets, "math500.jsonl.gz")]
    shapes = [answer for answer in data if "sqrt" in answer or "\\pi" in answer or answer in ("x", "y")] + [
        answer for answer in data if "x" in answer and "text" not in answer and "mbox" not in answer
    ]
    plain = [answer for answer in shapes if not set(answer) & set("=,<>()[]") and "matrix" not in answer]
    assert len(plain) > 30
    missed = [answer for answer in plain if math("", rf"\boxed{{0 + {answer}}}", answer) != 1.0]
    grown = [answer for answer in plain if math("", rf"\boxed{{1 + {answer}}}", answer) == 1.0]
    assert missed == grown == []


@pytest.mark.assets
@pytest.mark.full
def test_every_math_solution_holds_an_answer_and_earns_it(assets: Path) -> None:
    data = rows(assets, "math_test5000.jsonl.gz")
    found = [final_answer(row["solution"]) for row in data]
    assert [math("", row["solution"], answer) for row, answer in zip(data, found, strict=True)] == [1.0] * 5000
