"""Arithmetic problems: determinism, disjoint splits, worked steps that are true, strict answers."""

import operator
import re
import subprocess
import sys

import pytest

from llmkd.data.tasks import arithmetic
from llmkd.data.tasks.arithmetic import LEVELS, final_answer, is_correct, problem, problems

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)\.")


def sample(split="train", n=2000):
    return problems(7, n, LEVELS, split)


def test_a_problem_is_a_pure_function_of_its_arguments():
    assert problem(3, 5, 2, "train") == problem(3, 5, 2, "train")
    different = {
        problem(seed, index, level, "train")["question"] for seed in (0, 1) for index in (0, 1) for level in LEVELS
    }
    assert len(different) == 16


def test_a_problem_is_the_same_in_another_process():
    script = "from llmkd.data.tasks.arithmetic import problem; print(problem(3, 5, 4, 'heldout')['question'], end='')"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == problem(3, 5, 4, "heldout")["question"]


def test_splits_are_disjoint_over_seeds_and_levels():
    train = {row["question"] for seed in range(3) for row in problems(seed, 3000, LEVELS, "train")}
    heldout = {row["question"] for seed in range(3) for row in problems(seed, 300, LEVELS, "heldout")}
    assert not train & heldout


def test_questions_of_one_draw_are_distinct_and_levels_taken_in_turn():
    rows = problems(0, 4000, (1, 3), "train")
    assert len({row["question"] for row in rows}) == 4000
    assert [row["level"] for row in rows[:4]] == [1, 3, 1, 3]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_worked_step_is_true_and_the_last_gives_the_answer(split):
    for row in sample(split):
        steps = STEP.findall(row["solution"])
        lines = row["solution"].split("\n")
        assert len(steps) == len(lines) - 1, row
        for left, sign, right, result in steps:
            assert OPERATORS[sign](int(left), int(right)) == int(result), row
        assert steps[-1][-1] == row["answer"] and lines[-1] == f"Answer: {row['answer']}"


def test_steps_use_only_numbers_of_the_question_or_of_earlier_steps():
    for row in sample():
        known = set(re.findall(r"\d+", row["question"]))
        for left, _, right, result in STEP.findall(row["solution"]):
            assert {left, right} <= known, row
            known.add(result)


def test_no_answer_is_negative_or_a_fraction():
    assert all(int(row["answer"]) >= 0 for row in sample())


def test_higher_levels_take_no_fewer_steps():
    steps = {level: [row["solution"].count(" = ") for row in sample() if row["level"] == level] for level in LEVELS}
    assert max(steps[1]) == 1 and max(steps[2]) == 2
    assert set(steps[3]) == {2} and set(steps[4]) == {3}


def test_there_are_at_least_twelve_wordings():
    shapes = {re.sub(r"\d+", "#", row["question"]) for row in sample()}
    words = arithmetic.NAMES + arithmetic.THINGS + arithmetic.HOLDERS
    pattern = re.compile(r"\b(?:" + "|".join(words) + r")\b")
    assert len({pattern.sub("_", shape) for shape in shapes}) >= 12


def test_solutions_are_graded_correct_and_any_other_number_wrong():
    for row in sample(n=200):
        assert final_answer(row["solution"]) == row["answer"]
        assert is_correct(row["solution"], row["answer"])
        assert not is_correct(row["solution"], str(int(row["answer"]) + 1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 * 4 = 12.\nAnswer: 12", "12"),
        ("Answer: 12", "12"),
        ("Answer: 12\n", "12"),
        ("Answer: 0", "0"),
        ("Answer: -3", "-3"),
        ("", None),
        ("12", None),
        ("Answer:", None),
        ("Answer: ", None),
        ("Answer: 12.0", None),
        ("Answer: 12.", None),
        ("Answer: 012", None),
        ("Answer: -0", None),
        ("Answer: 1 2", None),
        ("Answer: 12 pens", None),
        ("Answer: 12\nThat is all", None),
        ("Answer: 12\nAnswer: 12", None),
        ("Answer: 12\nAnswer: 13", None),
        ("Answer: 13 Answer: 12", None),
        ("The Answer: 12", None),
        ("answer: 12", None),
        ("Answer:12", None),
        ("Answer: twelve", None),
        ("Answer: \u0661\u0662", None),  # Arabic-Indic digits
        ("Answer: \uff11", None),  # a full-width digit
        ("Answer: 1e3", None),
    ],
)
def test_final_answer_is_strict(text, expected):
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0, 5, "train"), "level 5.*1, 2, 3, 4"), ((0, 0, 1, "test"), "split 'test'.*train or heldout")],
)
def test_bad_arguments_are_refused_with_the_choices(arguments, message):
    with pytest.raises(ValueError, match=message):
        problem(*arguments)
