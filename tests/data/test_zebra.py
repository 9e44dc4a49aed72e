"""Zebra puzzles: one arrangement by brute force, no clue to spare, true steps, disjoint splits, the same everywhere."""

import os
import re
import subprocess
import sys
from itertools import permutations, product

import pytest

from llmkd.data.tasks.zebra import CLUE_KINDS, SIZES, is_heldout, problem, problems

SMALL = [(2, 2), (2, 5), (3, 2), (3, 3), (3, 4), (4, 2)]


# A reading of the question of the test's own: words to houses, and each sentence to a test of an arrangement.


def categories_of(question):
    return [line.split(": ")[1].split(", ") for line in question.split("\n") if line.startswith("- ")]


def clues_of(question):
    return [match.group(1) for match in re.finditer(r"^\d+\. (.*)$", question, re.MULTILINE)]


def holds(sentence, house_of):
    """Whether a clue is true where `house_of` maps each word to its house."""
    words = [word for word in re.findall(r"[A-Za-z]+", sentence) if word in house_of]
    first, last = house_of[words[0]], house_of[words[-1]]
    if found := re.search(r"(does not live|lives) in house (\d)", sentence):
        return (first == int(found.group(2))) == (found.group(1) == "lives")
    assert len(words) == 2, sentence
    if "directly left of" in sentence:
        return first + 1 == last
    if "somewhere to the left of" in sentence:
        return first < last
    if "next to" in sentence:
        return abs(first - last) == 1
    if "exactly one house between" in sentence:
        return abs(first - last) == 2
    return (first == last) != ("does not" in sentence)


def all_arrangements(question):
    categories = categories_of(question)
    houses = range(1, len(categories[0]) + 1)
    for orders in product(*(permutations(houses) for _ in categories)):
        words = (word for category in categories for word in category)
        yield dict(zip(words, (house for order in orders for house in order), strict=True))


def fitting(question, clues):
    return [found for found in all_arrangements(question) if all(holds(clue, found) for clue in clues)]


def house_of(row):
    return {word: number for number, words in enumerate(row["answer"]["houses"], 1) for word in words}


def rows_of(split="train", n=12, seed=3, **difficulty):
    return [row for h, a in SMALL for row in problems(seed, n, split, houses=h, attributes=a, **difficulty)]


def test_brute_force_finds_exactly_the_answer():
    for row in rows_of():
        assert fitting(row["question"], clues_of(row["question"])) == [house_of(row)], row["question"]


def test_brute_force_finds_exactly_the_answer_of_larger_puzzles():
    for row in problems(1, 4, "train", houses=4, attributes=3) + problems(1, 4, "train", houses=3, attributes=5):
        assert fitting(row["question"], clues_of(row["question"])) == [house_of(row)], row["question"]


def test_without_any_one_clue_another_arrangement_fits():
    for row in rows_of(n=6):
        clues = clues_of(row["question"])
        for left_out in range(len(clues)):
            fewer = clues[:left_out] + clues[left_out + 1 :]
            assert len(fitting(row["question"], fewer)) > 1, (row["question"], clues[left_out])


def test_every_clue_of_the_largest_puzzles_is_true():
    for row in problems(2, 6, "train", houses=5, attributes=5):
        clues = clues_of(row["question"])
        assert len(clues) >= 4 and all(holds(clue, house_of(row)) for clue in clues)


STEP = re.compile(r"(?:(Clue (\d+)|What is left|If .*?): )(\w+) is (not )?in house ([\d or]+)\.")


def test_every_worked_step_follows_from_what_it_names():
    """Of all arrangements that fit the facts found before, those that fit the step's clue all have the new fact; a
    step `What is left` follows from the facts alone, and a step `If` from all clues."""
    hard = problems(0, 2, "train", houses=5, attributes=2, clue_kinds=["different", "not_at"])
    for row in [*rows_of(n=3, seed=11), *hard]:
        question, steps = row["question"], row["solution"].split("\nHouse 1:")[0].split("\n")
        clues, open_ = clues_of(question), list(all_arrangements(question))
        for step in steps:
            match = STEP.fullmatch(step)
            assert match, step
            cause, number, word, negated, houses = match.groups()
            names = {int(house) for house in houses.split(" or ")}
            used = [clues[int(number) - 1]] if number else clues if cause.startswith("If") else []
            left = [found for found in open_ if all(holds(clue, found) for clue in used)]
            assert left and all((found[word] in names) != bool(negated) for found in left), (question, step)
            open_ = [found for found in open_ if (found[word] in names) != bool(negated)]
        assert open_ == [house_of(row)]


def test_the_solution_lists_the_houses_and_ends_with_the_answer():
    for ask in ("one", "grid"):
        for row in problems(0, 20, "train", ask=ask):
            lines, houses = row["solution"].split("\n"), row["answer"]["houses"]
            grid = [f"{number}: {', '.join(words)}" for number, words in enumerate(houses, 1)]
            assert lines[-1] == "Answer: " + (row["answer"]["person"] if ask == "one" else "; ".join(grid))
            assert lines[-5:-1] == [f"House {line}." for line in grid]
            assert row["solution"].count("Answer:") == 1


def test_the_person_asked_for_has_what_the_question_says_and_no_clue_says_so_directly():
    for row in problems(5, 30, "train"):
        asked = re.search(r"\nWho (.*)\? End with", row["question"]).group(1)
        word = next(word for word in re.findall(r"\w+", asked) if word in house_of(row))
        person = row["answer"]["person"]
        assert house_of(row)[word] == house_of(row)[person]
        assert person in categories_of(row["question"])[0]
        assert f"{person} {asked}." not in clues_of(row["question"])


def test_the_order_in_which_values_are_listed_tells_nothing():
    for row in problems(5, 30, "train"):
        assert all(words == sorted(words) for words in categories_of(row["question"]))


def test_ask_changes_the_question_and_not_the_puzzle():
    one, grid = (problem(4, 9, "train", ask=ask) for ask in ("one", "grid"))
    assert clues_of(one["question"]) == clues_of(grid["question"])
    assert one["answer"]["houses"] == grid["answer"]["houses"] and grid["answer"]["person"] is None


def test_a_problem_is_a_pure_function_of_its_arguments():
    assert problem(3, 5, "train") == problem(3, 5, "train")
    drawn = {problem(s, i, "train", houses=h)["question"] for s in (0, 1) for i in (0, 1) for h in SIZES}
    assert len(drawn) == 16


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_problem_is_the_same_in_another_process(hash_seed):
    script = "from llmkd.data.tasks.zebra import problem; print(problem(3, 5, 'heldout', attributes=3))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )  # fmt: skip
    assert run.stdout == f"{problem(3, 5, 'heldout', attributes=3)}\n"


def test_questions_of_one_draw_are_distinct():
    rows = problems(0, 1500, "train", houses=2, attributes=2)
    assert len({row["question"] for row in rows}) == 1500


def test_no_arrangement_is_in_both_splits_over_seeds_and_difficulty():
    """So few arrangements have 2 houses that without the split some would be drawn for both."""

    def drawn(split, n):
        knobs = [("one", tuple(CLUE_KINDS)), ("grid", ("at", "same")), ("one", ("not_at", "same", "left"))]
        rows = [
            row
            for seed in (0, 1)
            for ask, kinds in knobs
            for row in problems(seed, n, split, houses=2, attributes=2, ask=ask, clue_kinds=kinds)
        ]
        return {tuple(frozenset(words) for words in row["answer"]["houses"]) for row in rows}

    train, heldout = drawn("train", 400), drawn("heldout", 60)
    assert len(train) > 2000 and len(heldout) > 250
    assert not train & heldout


def test_the_split_is_a_function_of_the_arrangement_whatever_the_order_of_its_categories():
    for split in ("train", "heldout"):
        for row in problems(8, 20, split, houses=3, attributes=4):
            houses = row["answer"]["houses"]
            assert is_heldout(houses) == is_heldout([words[::-1] for words in houses]) == (split == "heldout")


def test_about_one_in_twenty_arrangements_is_held_out():
    names = ["a", "b", "c", "d", "e", "f", "g"]
    share = sum(is_heldout([[word] for word in order]) for order in permutations(names)) / 5040
    assert 0.03 < share < 0.07


WORDINGS = {
    "at": " lives in house ", "not_at": " does not live in house ", "next_to": " next to ",
    "two_apart": "exactly one house between", "directly_left": " directly left of ", "left": " somewhere to the left ",
}  # fmt: skip


def test_every_kind_of_clue_is_drawn_and_a_kind_that_is_not_asked_for_never():
    text = "\n".join(clue for row in problems(0, 40, "train") for clue in clues_of(row["question"]))
    assert all(wording in text for wording in WORDINGS.values())
    assert re.search(r"^\S+ does not (?!live in house)", text, re.MULTILINE)
    few = problems(0, 20, "train", clue_kinds=["directly_left", "same"])
    clues = [clue for row in few for clue in clues_of(row["question"])]
    assert not any(wording in clue for clue in clues for kind, wording in WORDINGS.items() if kind != "directly_left")
    assert not any(" not " in clue for clue in clues)


@pytest.mark.parametrize("kinds", [["same"], ["next_to", "same", "two_apart"], ["different"]])
def test_kinds_of_clues_that_cannot_single_out_an_arrangement_are_refused(kinds):
    with pytest.raises(ValueError, match=r"zebra: clue_kinds .*more than one arrangement.*add others"):
        problem(0, 0, "train", houses=3, attributes=3, clue_kinds=kinds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "split 'test'.*train or heldout"),
        ({"houses": 1}, "houses 1 .*2, 3, 4, 5"),
        ({"houses": 6}, "houses 6 .*2, 3, 4, 5"),
        ({"attributes": 6}, "attributes 6 .*2, 3, 4, 5"),
        ({"attributes": True}, "attributes True"),
        ({"ask": "all"}, "ask 'all'.*one or grid"),
        ({"clue_kinds": ["same", "near"]}, "clue_kinds .*near.*directly_left"),
        ({"clue_kinds": "same"}, "clue_kinds 'same': give a list"),
        ({"clue_kinds": []}, "give a list of some of at"),
    ],
)
def test_bad_arguments_are_refused_with_the_choices(change, message):
    with pytest.raises(ValueError, match=message):
        problem(**({"seed": 0, "index": 0, "split": "train"} | change))


def test_more_distinct_problems_than_there_are_is_an_error_and_no_endless_loop(monkeypatch):
    monkeypatch.setattr("llmkd.data.tasks.zebra.problem", lambda seed, index, split: {"question": "the same"})
    with pytest.raises(ValueError, match="zebra: 2 distinct problems asked for, found 1"):
        problems(0, 2, "train")


@pytest.mark.full
@pytest.mark.parametrize("size", [(h, a) for h in SIZES for a in SIZES])
def test_every_size_in_both_splits(size):
    houses, attributes = size
    for split in ("train", "heldout"):
        for row in problems(21, 25, split, houses=houses, attributes=attributes):
            assert len(row["answer"]["houses"]) == houses
            assert all(len(words) == attributes for words in row["answer"]["houses"])
            assert is_heldout(row["answer"]["houses"]) == (split == "heldout")
            assert all(holds(clue, house_of(row)) for clue in clues_of(row["question"]))
            if houses**attributes <= 81:
                assert fitting(row["question"], clues_of(row["question"])) == [house_of(row)]
