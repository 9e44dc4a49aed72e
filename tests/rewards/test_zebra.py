"""The grader of zebra puzzles: right answers in any case and spacing, and everything else, however clever, 0."""

import pytest

from llmkd.data.tasks.zebra import problems
from llmkd.rewards.zebra import zebra

HOUSES = [["Ada", "tea", "cat"], ["Ben", "milk", "dog"]]
ONE = {"ask": "one", "person": "Ada", "houses": HOUSES}
GRID = {"ask": "grid", "person": None, "houses": HOUSES}


def grade(completion, reference):
    return zebra("Who drinks tea?", completion, reference)


@pytest.mark.parametrize("ask", ["one", "grid"])
@pytest.mark.parametrize("size", [(2, 2, 100), (3, 3, 100), (4, 4, 40), (5, 5, 8)])
def test_the_tasks_own_solutions_are_right(ask, size):
    houses, attributes, n = size
    for row in problems(6, n, "train", houses=houses, attributes=attributes, ask=ask):
        assert zebra(row["question"], row["solution"], row["answer"]) == 1.0
        assert zebra([{"role": "user", "content": row["question"]}], row["solution"], row["answer"]) == 1.0


def test_every_other_person_is_wrong():
    for row in problems(7, 50, "train"):
        worked = row["solution"].rpartition("\n")[0]
        for name, *_ in row["answer"]["houses"]:
            assert grade(f"{worked}\nAnswer: {name}", row["answer"]) == float(name == row["answer"]["person"])


def test_a_grid_with_any_two_values_exchanged_is_wrong():
    for row in problems(7, 25, "train", ask="grid", houses=3, attributes=3):
        houses = row["answer"]["houses"]
        places = [(house, value) for house in range(3) for value in range(3)]
        for (h, v), (k, w) in [(a, b) for a in places for b in places if a[0] < b[0]]:
            wrong = [list(words) for words in houses]
            wrong[h][v], wrong[k][w] = wrong[k][w], wrong[h][v]
            line = "; ".join(f"{number}: {', '.join(words)}" for number, words in enumerate(wrong, 1))
            assert grade(f"Answer: {line}", row["answer"]) == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "Answer: Ada",
        "Answer: ada",
        "ANSWER:   ADA  \t",
        "answer:Ada",
        "Ben does not drink tea.\n\n  Answer: Ada\n\n",
        "Ben has the dog, so\r\nAnswer: Ada\r\n",
    ],
)
def test_a_name_is_right_in_any_case_and_spacing(completion):
    assert grade(completion, ONE) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "Ada",
        "Answer:",
        "Answer: ",
        "Answer: Ben",
        "Answer: Ada, Ben",
        "Answer: Ada or Ben",
        "Answer: Ada Ben",
        "Answer: Ben; Ada",
        "Answer: not Ada",
        "Answer: not Ben",
        "Answer: Ada.",
        "Answer: *Ada*",
        "Answer: Ada Ada",
        "Answer: Ada drinks tea",
        "Answer: the person is Ada",
        "Answer: A",
        "Answer: AdaAda",
        "Answer: A da",
        "Answer: Ben\nAnswer: Ada",
        "Answer: Ada\nAnswer: Ben",
        "Answer: Ada\nAnswer: Ada",
        "answer: Ben\nAnswer: Ada",
        "Answer: Answer: Ada",
        "Answer: Ben Answer: Ada",
        "The answer: Ada",
        "Answer: Ada\nThat is all.",
        "Answer:\nAda",
        "Answer - Ada",
        "Answer: Аda",  # a Cyrillic A
        "Answer: Ａda",  # full width
        "Answer: Ada\u200b",
        "Answer: Ada\x00",
        "Answer: Ben\u2028Ada",
        "Answer: Ben\x0bAnswer: Ada",
        "Answer: Ben\rAda",
        "Answer: ['Ada']",
        'Answer: {"person": "Ada"}',
        "Answer: .*",
        "Answer: " + "Ada, " * 1000 + "Ada",
        "Answer: " + "A" * 5_000_000,
        "Answer: Ada\n" * 200_000,
        "x" * 5_000_000,
    ],
    ids=lambda text: text[:40].encode("unicode_escape").decode(),
)
def test_a_hostile_answer_to_one_is_wrong(completion):
    assert grade(completion, ONE) == 0.0


def test_a_look_alike_that_lower_case_turns_into_ascii_is_wrong():
    """The Kelvin sign becomes a k in lower case."""
    assert grade("Answer: \u212aim", ONE | {"person": "Kim"}) == 0.0
    assert grade("Answer: Kim", ONE | {"person": "Kim"}) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "1: Ada, tea, cat; 2: Ben, milk, dog",
        "1:ada,TEA,cat;2:ben,milk,dog",
        " 1 : cat , Ada , tea ;  2 : dog , milk , Ben ",
    ],
)
def test_a_grid_is_right_in_any_case_spacing_and_order_of_values(answer):
    assert grade(f"Answer: {answer}", GRID) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "Ada",
        "1: Ada, tea, cat",
        "1: Ada, tea, cat;",
        "1: Ada, tea, cat; 2: Ben, milk",
        "1: Ada, tea, cat; 2: Ben, milk, dog;",
        "1: Ada, tea, cat; 2: Ben, milk, dog; 3: Ben, milk, dog",
        "1: Ada, tea, cat; 2: Ben, milk, dog, tea",
        "1: Ada, tea, cat, cat; 2: Ben, milk, dog",
        "1: Ada, Ben, tea, milk, cat, dog; 2: Ada, Ben, tea, milk, cat, dog",
        "1: Ada, milk, cat; 2: Ben, tea, dog",
        "1: Ben, milk, dog; 2: Ada, tea, cat",
        "2: Ben, milk, dog; 1: Ada, tea, cat",
        "1: Ada, tea, cat; 1: Ben, milk, dog",
        "1: Ada, tea, cat; 2: Ben, not tea, dog",
        "1: Ada, tea, cat; 2: Ben, milk or tea, dog",
        "1: Ada, tea, cat; 2: Ben, milk, dog.",
        "1: Ada tea cat; 2: Ben milk dog",
        "Ada, tea, cat; Ben, milk, dog",
        "01: Ada, tea, cat; 02: Ben, milk, dog",
        "1: 1: Ada, tea, cat; 2: Ben, milk, dog",
        "1: NAME, DRINK, PET; 2: NAME, DRINK, PET",
        ";" * 900,
        "",
    ],
)
def test_a_hostile_grid_is_wrong(answer):
    assert grade(f"Answer: {answer}", GRID) == 0.0


def test_what_is_no_text_is_wrong():
    assert grade(None, ONE) == grade(["Answer: Ada"], ONE) == 0.0


@pytest.mark.parametrize(
    "reference", ["Ada", None, {}, {"ask": "all"} | ONE | {"ask": "all"}, ONE | {"person": None}, ONE | {"houses": []}]
)
def test_a_reference_of_another_form_is_an_error_that_says_what_to_give(reference):
    with pytest.raises(ValueError, match=r"zebra: .* is no reference: give the column `answer`"):
        grade("Answer: Ada", reference)
