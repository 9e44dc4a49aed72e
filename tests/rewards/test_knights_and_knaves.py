"""The grader of knights and knaves: everybody named once with the right kind; everything else, however clever, is 0."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkd.data.tasks.knights_and_knaves import problems
from llmkd.rewards.knights_and_knaves import knights_and_knaves

REFERENCE = {"Ada": True, "Ben": False}


def grade(answer, reference=REFERENCE, **knobs):
    return knights_and_knaves("Who is what?", f"Answer: {answer}", reference, **knobs)


@pytest.mark.parametrize("people", [2, 3, 5, 8])
def test_the_tasks_own_solutions_are_right_and_with_any_one_kind_changed_wrong(people):
    for row in problems(6, 60, "train", people=people):
        assert knights_and_knaves(row["question"], row["solution"], row["answer"]) == 1.0
        assert knights_and_knaves([{"role": "user", "content": "x"}], row["solution"], row["answer"]) == 1.0
        for name, kind in row["answer"].items():
            other = row["answer"] | {name: not kind}
            assert knights_and_knaves(row["question"], row["solution"], other) == 0.0
            part = knights_and_knaves(row["question"], row["solution"], other, partial=True)
            assert part == (people - 1) / people


def test_the_order_of_the_people_does_not_matter():
    reference = {"Ada": True, "Ben": False, "Cy": False}
    for order in permutations(["Ada is a knight", "Ben is a knave", "Cy is a knave"]):
        assert grade(", ".join(order), reference) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "Ada is a knight, Ben is a knave",
        "ada is a KNIGHT,ben  is a\tknave",
        "Ada is a knight and Ben is a knave",
        "Ada is a knight, and Ben is a knave",
        "  Ben is a knave ,  Ada is a knight  ",
    ],
)
def test_any_case_and_spacing_and_an_and_are_read(answer):
    assert grade(answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Ada is a knight",
        "Ben is a knave",
        "Ada is a knight, Ben is a knave, Ada is a knave",
        "Ada is a knight, Ada is a knave, Ben is a knave",
        "Ada is a knight, Ada is a knight, Ben is a knave",
        "Ada is a knight, Ben is a knave, ben is a knave",
        "Ada is a knight, Ben is a knave, Ben is a knight",
        "Ada is a knight, Ben is a knave, Cy is a knave",
        "Ada is a knight, Ben is a knave, everybody else is a knave",
        "Ada is not a knave, Ben is a knave",
        "Ada is a knight, Ben is not a knight",
        "Ada isn't a knave, Ben is a knave",
        "Ada is no knave, Ben is a knave",
        "Ada is a knight or a knave, Ben is a knave",
        "Ada is a knight/knave, Ben is a knave",
        "Ada is a knight or Ben is a knave",
        "either Ada is a knight, Ben is a knave",
        "Ada is a knight, Ben is a knave or a knight",
        "Ada is a knight, Ben is a knave?",
        "Ada is a knight, Ben is a knave.",
        "Ada is a knight, Ben is a knave,",
        ", Ada is a knight, Ben is a knave",
        "Ada is a knight,, Ben is a knave",
        "Ada is a knight; Ben is a knave",
        "Ada is a knight Ben is a knave",
        "Ada is probably a knight, Ben is a knave",
        "I think Ada is a knight, Ben is a knave",
        "Ada is a knight, Ben is a knave, I think",
        "maybe Ada is a knight, maybe Ben is a knave",
        "Ada is a knight, Ben is a knave (or the other way round)",
        "Ada is a knight is a knave, Ben is a knave",
        "Ada and Ben are knaves",
        "Ada is the knight, Ben is the knave",
        "Ada is knight, Ben is knave",
        "Ada: knight, Ben: knave",
        "Ada is a knight and a knave, Ben is a knave",
        "Ada is a knightly knave, Ben is a knave",
        "Ada is a knightknave, Ben is a knave",
        "Ada is a  kni ght, Ben is a knave",
        "NAME is a knight, NAME is a knave, ...",
        '{"Ada": true, "Ben": false}',
        "Аda is a knight, Ben is a knave",
        "Ada is a knight, Ben is a knаve",
        "Ada is a knight, Ben is a knave\0",
        "A da is a knight, Ben is a knave",
        "**Ada** is a knight, **Ben** is a knave",
        "Ada is a knight, Ben is a knave" + ", Ben is a knave" * 100_000,
        "Ada is a knight, " + "Ben is a " * 100,
        "Ada " * 240 + "is a knight",
    ],
)
def test_whatever_is_not_one_claim_for_each_is_wrong_and_earns_no_part(answer):
    assert grade(answer) == grade(answer, partial=True) == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "Ada is a knight, Ben is a knave",
        "Answer: Ada is a knave, Ben is a knave\nAnswer: Ada is a knight, Ben is a knave",
        "Answer: Ada is a knight, Ben is a knave\nAnswer: Ada is a knight, Ben is a knave",
        "answer: Ada is a knave\nAnswer: Ada is a knight, Ben is a knave",
        "Answer: Answer: Ada is a knight, Ben is a knave",
        "Answer: Ada is a knight, Ben is a knave\nor so",
        "Answer: Ada is a knight,\nBen is a knave",
        "Answer:\nAda is a knight, Ben is a knave",
        "The Answer: Ada is a knight, Ben is a knave",
    ],
)
def test_an_answer_that_is_not_the_one_last_line_is_wrong(completion):
    assert knights_and_knaves("", completion, REFERENCE) == 0.0


@pytest.mark.parametrize("completion", [None, 1, ["Answer: Ada is a knight, Ben is a knave"]])
def test_a_completion_that_is_no_text_is_wrong(completion):
    assert knights_and_knaves("", completion, REFERENCE) == 0.0


def test_claims_about_all_in_the_text_before_do_no_harm():
    text = "Suppose Ada is a knave, Ben is a knight.\n" * 100_000
    assert knights_and_knaves("", f"{text}Answer: Ada is a knight, Ben is a knave", REFERENCE) == 1.0


def test_partial_is_the_share_of_people_who_are_what_the_answer_says():
    assert grade("Ada is a knight, Ben is a knight", partial=True) == 0.5
    assert grade("Ada is a knight, Ben is a knight") == 0.0
    assert grade("Ada is a knave, Ben is a knight", partial=True) == 0.0
    assert grade("Ada is a knight, Ben is a knave", partial=True) == 1.0
    assert grade("Ada is a knight", partial=True) == 0.0


def test_people_of_other_rows_whom_a_table_fills_in_are_left_out():
    filled = {"Zoe": None, **REFERENCE, "Cy": None}
    assert grade("Ada is a knight, Ben is a knave", filled) == 1.0
    assert grade("Ada is a knight, Ben is a knave, Cy is a knave", filled) == 0.0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["Ada", "Ben", " is a ", "knight", "knave", ", ", " and ", "not ", " or "])).map("".join)
)
def test_among_rows_of_the_right_words_only_the_answers_themselves_are_right(text):
    right = text.replace(", and ", ", ").replace(" and ", ", ").strip()
    wanted = right in ("Ada is a knight, Ben is a knave", "Ben is a knave, Ada is a knight")
    assert grade(text) == float(wanted), text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_no_text_raises(text):
    assert knights_and_knaves("", text, REFERENCE) == 0.0
    assert grade(text) == 0.0


@pytest.mark.parametrize(
    "reference",
    [None, True, "Ada", {}, {"Ada": None}, {"Ada": 1}, {"Ada": "knight"}, {1: True}, {"Ada": True, "ADA": False},
     {"Zoë": True}, ["Ada"]],
)  # fmt: skip
def test_a_reference_of_another_form_is_an_error_that_names_the_right_column(reference):
    with pytest.raises(ValueError, match=r"knights_and_knaves: .*is no reference: give the column `answer`"):
        knights_and_knaves("", "Answer: Ada is a knight", reference)
