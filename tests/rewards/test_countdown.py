"""The grader of countdown: exact arithmetic over the given numbers, and everything else, however clever, 0."""

import ast
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmkd.data.tasks.countdown import problems
from llmkd.rewards.countdown import countdown

REFERENCE = {"numbers": [3, 4, 5, 5, 8], "target": 24, "use_all": False}


def grade(answer, reference=REFERENCE, **knobs):
    return countdown("Make 24.", f"Answer: {answer}", reference, **knobs)


@pytest.mark.parametrize("knobs", [{}, {"numbers": 3, "use_all": True}, {"numbers": 6, "largest": 100}])
def test_the_tasks_own_solutions_are_right_and_with_another_target_wrong(knobs):
    for row in problems(6, 300, "train", **knobs):
        assert countdown(row["question"], row["solution"], row["answer"]) == 1.0
        assert countdown([{"role": "user", "content": "x"}], row["solution"], row["answer"]) == 1.0
        other = row["answer"] | {"target": row["answer"]["target"] + 1}
        assert countdown(row["question"], row["solution"], other) == 0.0


def test_a_solution_with_a_number_that_is_not_given_is_wrong():
    for row in problems(8, 300, "train"):
        used = int(re.search(r"\d+", row["solution"].rpartition("Answer: ")[2]).group())
        fewer = list(row["answer"]["numbers"])
        fewer.remove(used)
        short = row["answer"] | {"numbers": fewer}
        needed = Counter(map(int, re.findall(r"\d+", row["solution"].rpartition("Answer: ")[2])))
        assert countdown("", row["solution"], short) == float(needed <= Counter(fewer))
        assert countdown("", row["solution"], row["answer"] | {"numbers": [used]}) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "3 * 8",
        "3*8",
        "  3  *\t8 ",
        "3 x 8",
        "3x8",
        "3 × 8",
        "8 × (4 − 5 ÷ 5)",
        "((3) * ((8)))",
        "8 / (5 / (3 * 5))",  # 8 / (1/3)
        "5 * 5 - 4 + 3",
        "(4 - 5 / 5) * 8",
        "4 * 8 - 3 - 5",
        "3 - 5 + 5 * 4 + 8 - 2 * 1",
    ],
)
def test_exact_arithmetic_makes_the_target(answer):
    assert grade(answer, REFERENCE | {"numbers": [1, 2, 3, 4, 5, 5, 8]}) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "24",
        "8",
        "6 * 4",  # 6 is not given
        "8 + 8 + 8",  # 8 is given once
        "5 * 5 * 5 - 101",
        "3 * 8 + 0",
        "3 * 8 * 1",
        "3 * 8 = 24",
        "24 = 3 * 8",
        "3 * 8 == 24",
        "3 * 8.",
        "3 * 8.0",
        "3.0 * 8",
        "(3 * 8",
        "3 * 8)",
        ")3 * 8(",
        "[3 * 8]",
        "{3 * 8}",
        "3 8 *",
        "38 - 14",
        "3 * +8",
        "-3 * -8",
        "+3 * 8",
        "-(3 - 4 - 5) * 4",
        "3(8)",
        "(3)(8)",
        "(3) 8",
        "3 * 08",
        "3 * 8 4",
        "3 * 8 -",
        "* 3 8",
        "3 ** 8",
        "3 ^ 8",
        "10**9",
        "9**9**9",
        "8 // 3",
        "8 % 5",
        "5! / 5",
        "sqrt(4)",
        "8 / (5 - 5)",
        "0 / 0",
        "3 * 8 + 4 / (5 - 5)",
        "3e0 * 8",
        "3_0",
        "0x18",
        "0b11000",
        "1x8",
        "3 X 8",
        "3 * 8 x",
        "3 · 8",
        "3 ∗ 8",
        "٣ * ٨",
        "３ * ８",
        "³ * 8",
        "3 * 8 or 4 * 5",
        "3 * 8, 4 * 5",
        "3 * 8; 1",
        "3 * 8 # right",
        "`3 * 8`",
        "**3 * 8**",
        "\\boxed{3 * 8}",
        "$3 * 8$",
        "3 \\times 8",
        "lambda: 24",
        "__import__('os').system('true')",
        "print(3 * 8)",
        "eval('3*8')",
        "(8).__class__",
        "int('24')",
        "x",
        "EXPRESSION",
        "()",
        "3 * () 8",
        "nan",
        "inf - inf",
        "True * 8",
        "the target is 24",
        "3 * 8\0",
    ],
)
def test_whatever_breaks_a_rule_is_wrong_and_earns_no_part(answer):
    assert grade(answer) == 0.0
    if answer != "8":  # an expression that keeps the rules, and misses
        assert grade(answer, partial=0.1) == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "3 * 8",
        "3 * 8 = 24",
        "Answer: 4 * 5\nAnswer: 3 * 8",
        "Answer: 3 * 8\nAnswer: 4 * 5",
        "Answer: 3 * 8\nAnswer: 3 * 8",
        "answer: 4 * 5\nAnswer: 3 * 8",
        "Answer: Answer: 3 * 8",
        "Answer: 3 * 8\nas was to be shown",
        "The Answer: 3 * 8",
        "Answer:\n3 * 8",
        "Answer: 3 *\n8",
        "Answer 3 * 8",
        "```\nAnswer: 3 * 8\n```",
    ],
)
def test_an_answer_that_is_not_the_one_last_line_is_wrong(completion):
    assert countdown("", completion, REFERENCE) == 0.0


@pytest.mark.parametrize("text", [None, 24, ["Answer: 3 * 8"], b"Answer: 3 * 8"])
def test_a_completion_that_is_no_text_is_wrong(text):
    assert countdown("", text, REFERENCE) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "(" * 21 + "3" + ")" * 21 + " * 8",
        "(" * 100_000 + "3 * 8" + ")" * 100_000,
        "(" * 290 + "3",
        "3 * 8" + " " * 1000 + "+ 4",
        "3 * 8" + " - 5 + 5" * 100_000,
        "9" * 1_000_000,
        "9" * 250,
        "(3 * 8)" * 50,
        "-" * 250 + "3",
    ],
)
def test_bounds_on_length_and_depth_hold_without_a_crash(answer):
    assert grade(answer) == 0.0


def test_brackets_up_to_the_bound_are_read():
    assert grade("(" * 20 + "3" + ")" * 20 + " * 8") == 1.0


def test_a_huge_text_before_the_answer_does_no_harm():
    assert countdown("", "3 * 8 ((( \n" * 200_000 + "Answer: 3 * 8", REFERENCE) == 1.0


def test_use_all_asks_for_every_number_as_often_as_it_is_given():
    reference = {"numbers": [5, 5, 2, 2], "target": 14, "use_all": True}
    assert grade("5 + 5 + 2 + 2", reference) == 1.0
    assert grade("2 * 5 + 2 * (5 - 3)", reference) == 0.0
    assert grade("5 + 5 + 2 * 2", reference) == 1.0
    assert grade("2 * (5 + 2)", reference) == 0.0
    assert grade("2 * (5 + 2)", reference | {"use_all": False}) == 1.0
    assert grade("5 + 2 + 2 + 5 + 5 - 5", reference) == 0.0


def test_partial_is_for_an_expression_that_keeps_the_rules_and_misses():
    assert grade("3 * 5", partial=0.2) == 0.2
    assert grade("3 * 8", partial=0.2) == 1.0
    assert grade("3 * 5") == 0.0
    assert grade("3 * 7", partial=0.2) == 0.0
    assert grade("3 * 5", REFERENCE | {"use_all": True}, partial=0.2) == 0.0
    for outside in (-0.1, 1.0, 1.5, float("nan"), True, "0.1"):
        with pytest.raises(ValueError, match=r"partial .* outside \[0, 1\)"):
            grade("3 * 5", partial=outside)


def test_fractions_on_the_way_are_exact():
    assert grade("8 / (3 - 8 / 3)", {"numbers": [3, 3, 8, 8], "target": 24}) == 1.0
    assert grade("1 / 3 * 3", {"numbers": [1, 3, 3], "target": 1}) == 1.0
    big = {"numbers": [999_999_999_999, 999_999_999_999, 1], "target": 1}
    assert grade("999999999999 / 999999999999", big) == 1.0
    assert grade("999999999999 / (999999999999 + 1)", big) == 0.0


def test_a_target_that_is_given_is_its_own_answer_unless_all_are_to_be_used():
    assert grade("24", {"numbers": [24, 3], "target": 24}) == 1.0
    assert grade("24", {"numbers": [24, 3], "target": 24, "use_all": True}) == 0.0


def python_says(text, reference):
    """Python's own parser as the judge, for text of digits, signs and brackets."""
    try:
        tree = ast.parse(text.replace("x", "*").strip(), mode="eval").body
    except SyntaxError:
        return False
    legal = (ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Constant)
    nodes = list(ast.walk(tree))
    if not all(isinstance(node, legal) for node in nodes) or "x*" in text or "*x" in text or "xx" in text:
        return False
    used = Counter(node.value for node in nodes if isinstance(node, ast.Constant))
    if not used <= Counter(reference["numbers"]):
        return False
    try:
        return worked_out(tree) == reference["target"]
    except ZeroDivisionError:
        return False


def worked_out(node):
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    a, b = worked_out(node.left), worked_out(node.right)
    if isinstance(node.op, ast.Div):
        return a / b
    return {ast.Add: a + b, ast.Sub: a - b, ast.Mult: a * b}[type(node.op)]


PIECES = ["1", "2", "3", "12", "0", "+", "-", "*", "/", "(", ")", " ", "x", "**", "//"]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=9).map("".join), st.integers(-3, 6))
@example("1+2", 3)
@example("(1+2)*3", 9)
@example("3-2-1", 0)
@example("12/2/3", 2)
@example("3-(2-1)", 2)
@example("12/(3-2/1)", 12)
def test_python_agrees_on_any_row_of_signs(text, target):
    reference = {"numbers": [1, 2, 3, 12], "target": target}
    assert grade(text, reference) == float(python_says(text, reference)), text


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_no_text_raises(text):
    assert countdown("", text, REFERENCE) in (0.0, 1.0)
    assert grade(text) in (0.0, 1.0)


@pytest.mark.parametrize(
    "reference",
    [
        None,
        24,
        "24",
        {},
        {"numbers": [3, 8]},
        {"numbers": [], "target": 24},
        {"numbers": "38", "target": 24},
        {"numbers": [3, 8.0], "target": 24},
        {"numbers": [3, True], "target": 24},
        {"numbers": [3, 8], "target": "24"},
        {"numbers": [3, 8], "target": 24, "use_all": 1},
    ],
)
def test_a_reference_of_another_form_is_an_error_that_names_the_right_column(reference):
    with pytest.raises(ValueError, match=r"countdown: .*is no reference: give the column `answer`"):
        countdown("", "Answer: 3 * 8", reference)
