"""exact and arithmetic: the last line `Answer: X`, letter by letter."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkd.data.tasks import arithmetic as task
from llmkd.rewards.arithmetic import arithmetic
from llmkd.rewards.exact import exact


@pytest.mark.parametrize(("completion", "reference"), [
    ("Answer: Paris", "Paris"),
    ("It is on the Seine.\nAnswer:   New \t York \n\n", "New York"),
    ("Answer: New York", " New\nYork "),
    ("Answer:42", 42),
    ("Answer: 0.5", 0.5),
    ("Answer: 42", "2 * 21 = 42\nAnswer: 42"),
])  # fmt: skip
def test_white_space_does_not_count(completion: str, reference: Any) -> None:
    assert exact("", completion, reference) == 1.0


HOSTILE = [
    "", "Paris", "Answer:", "Answer: ", "Answer: paris", "Answer: London Paris", "Answer: Paris or London",
    "Answer: Paris\nAnswer: London", "Answer: London\nAnswer: Paris", "Answer: Answer: Paris", "Answer: Paris.",
    "Answer: Paris\nI hope so", "Answer: P a r i s", "So Answer: Paris", "answer: Paris", "Answer:\nParis",
    "Answer: Par\u200bis", "Answer: \u0420aris", "Answer: Paris\x00", "Answer: \ud800", "Answer: Paris" * 10**5,
]  # fmt: skip


@pytest.mark.parametrize("completion", HOSTILE, ids=range(len(HOSTILE)))
def test_no_reward_for_another_answer(completion: str) -> None:
    assert exact("", completion, "Paris") == 0.0


def test_case_counts_unless_said() -> None:
    assert exact("", "Answer: PARIS", "Paris", ignore_case=True) == 1.0
    assert exact("", "Answer: PARIS", "Paris") == 0.0
    assert exact("", "Answer: London", "Paris", ignore_case=True) == 0.0


@pytest.mark.parametrize("reference", [None, True, [], {}, "", "Answer: "])
def test_a_reference_without_an_answer_is_the_datas_fault(reference: Any) -> None:
    with pytest.raises(ValueError, match=r"exact: the reference .*: name the right column"):
        exact("", "Answer: 1", reference)


ATTEMPTS = [
    "", "42", "Answer: 42", "Answer: 42\n", "Answer: 42 \t\n\n", "a\nAnswer: 42", "a Answer: 42", "Answer:42",
    "Answer:  42", "Answer: 042", "Answer: +42", "Answer: 42.0", "Answer: 42 apples", "Answer: 41\nAnswer: 42",
    "Answer: 42\nAnswer: 42", "Answer: 42\nb", "answer: 42", "Answer: -42", "Answer: 0", "Answer: -0", "Answer: 4 2",
    "Answer: ٤٢", "Answer: 42\x00", "Answer: 42\u2028", "Answer: 42\x0b", "\rAnswer: 42", "Answer:\n42", "Answer: ",
    "Answer: 42, 43", "Answer: 4_2", "Answer: 42" * 1000, "Answer: " + "4" * 10**6, "Answer: 42" + " " * 10**6,
]  # fmt: skip


@pytest.mark.parametrize("reference", ["42", "-42", "0"])
@pytest.mark.parametrize("completion", ATTEMPTS, ids=range(len(ATTEMPTS)))
def test_arithmetic_agrees_with_the_task(completion: str, reference: str) -> None:
    assert arithmetic("", completion, reference) == float(task.is_correct(completion, reference))


def test_arithmetic_grades_hand_made_cases() -> None:
    right = ["Answer: 42", "2 * 21 = 42.\nAnswer: 42\n"]
    assert [arithmetic("", text, "42") for text in right] == [1.0, 1.0]
    assert [arithmetic("", text, 42) for text in right] == [1.0, 1.0]
    wrong = ["Answer: 41", "Answer: 42 or 43", "Answer: 41\nAnswer: 42", "Answer: 42.0", "42"]
    assert [arithmetic("", text, "42") for text in wrong] == [0.0] * 5


@given(st.text(alphabet="Answer: 0123456789-\n", max_size=40), st.integers(-99, 99).map(str))
def test_arithmetic_agrees_with_the_task_on_any_text(text: str, reference: str) -> None:
    for completion in (text, f"Answer: {reference}{text}", f"{text}\nAnswer: {reference}"):
        assert arithmetic("", completion, reference) == float(task.is_correct(completion, reference))


def test_arithmetic_gives_every_worked_solution_its_reward() -> None:
    rows = task.problems(0, 200, task.LEVELS, "train")
    assert [arithmetic(row["question"], row["solution"], row["answer"]) for row in rows] == [1.0] * 200


@pytest.mark.parametrize("reference", [None, True, "", "4.5", "x", 4.5, [42]])
def test_arithmetic_wants_an_integer_of_the_data(reference: Any) -> None:
    with pytest.raises(ValueError, match=r"arithmetic: the reference .* is no integer"):
        arithmetic("", "Answer: 42", reference)
