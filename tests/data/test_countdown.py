"""Countdown: problems that can be solved, true steps, disjoint splits, the same everywhere."""

import os
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest

from llmkd.data.tasks.countdown import COUNTS, is_heldout, problem, problems

KNOBS = [
    {},
    {"numbers": 3, "largest": 9, "target": [1, 50]},
    {"numbers": 5, "largest": 50, "use_all": True},
    {"numbers": 6, "largest": 100, "target": (100, 999), "use_all": True},
]
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def value(expression):
    """Python's own arithmetic, exact."""
    assert re.fullmatch(r"[0-9+*/() -]+", expression) and "**" not in expression and "//" not in expression
    return eval(re.sub(r"\d+", r"Fraction(\g<0>)", expression), {"Fraction": Fraction})


def key(row):
    return (tuple(sorted(row["answer"]["numbers"])), row["answer"]["target"])


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("knobs", KNOBS)
def test_the_solution_makes_the_target_of_the_given_numbers(knobs, split):
    for row in problems(7, 300 if split == "train" else 90, split, **knobs):
        expression = row["solution"].rpartition("\nAnswer: ")[2]
        used, given = Counter(map(int, re.findall(r"\d+", expression))), Counter(row["answer"]["numbers"])
        assert value(expression) == row["answer"]["target"], row
        assert used == given if knobs.get("use_all") else used <= given, row
        assert row["answer"]["use_all"] is knobs.get("use_all", False)


@pytest.mark.parametrize("knobs", KNOBS)
def test_every_step_is_true_and_takes_numbers_that_are_there(knobs):
    for row in problems(3, 300, "train", **knobs):
        *steps, last = row["solution"].split("\n")
        there = Counter(row["answer"]["numbers"])
        for step in steps:
            left, sign, right, result = STEP.fullmatch(step).groups()
            assert value(f"{left} {sign} {right}") == int(result) > 0, row
            taken = Counter([int(left), int(right)])
            assert taken <= there, row
            there = there - taken + Counter([int(result)])
        assert steps and int(result) == row["answer"]["target"] and last.startswith("Answer: ")


@pytest.mark.parametrize("knobs", KNOBS)
def test_numbers_and_target_are_in_range_and_the_question_states_all(knobs):
    for row in problems(5, 200, "train", **knobs):
        given, target = row["answer"]["numbers"], row["answer"]["target"]
        low, high = knobs.get("target", (10, 100))
        assert len(given) == knobs.get("numbers", 4) and all(1 <= n <= knobs.get("largest", 25) for n in given)
        assert low <= target <= high and target not in given
        rule = "each number exactly once" if knobs.get("use_all") else "each number at most once"
        assert rule in row["question"]
        assert f"Make {target} from the numbers {', '.join(map(str, given))} " in row["question"]


def test_all_four_signs_and_brackets_are_drawn():
    text = "".join(row["solution"].rpartition("Answer: ")[2] for row in problems(0, 300, "train"))
    assert all(text.count(sign) > 30 for sign in "+-*/(")


def test_a_problem_is_a_pure_function_of_its_arguments():
    assert problem(3, 5, "train") == problem(3, 5, "train")
    drawn = {problem(s, i, "train", numbers=n)["question"] for s in (0, 1) for i in (0, 1) for n in COUNTS}
    assert len(drawn) == 16


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_problem_is_the_same_in_another_process(hash_seed):
    script = "from llmkd.data.tasks.countdown import problem; print(problem(3, 5, 'heldout', numbers=6))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )  # fmt: skip
    assert run.stdout == f"{problem(3, 5, 'heldout', numbers=6)}\n"


def test_problems_of_one_draw_are_distinct_whatever_the_order_of_the_numbers():
    rows = problems(0, 1500, "train", numbers=3, largest=9)
    assert len(set(map(key, rows))) == len({row["question"] for row in rows}) == 1500


def test_no_problem_is_in_both_splits_over_seeds_and_difficulty():
    """So few problems have numbers up to 5 that without the split most would be drawn for both."""

    def drawn(split, n):
        ranges = ([1, 20], [5, 60])
        return {
            key(row)
            for seed in range(3)
            for target in ranges
            for use_all in (False, True)
            for row in problems(seed, n, split, numbers=3, largest=5, target=target, use_all=use_all)
        }

    train, heldout = drawn("train", 180), drawn("heldout", 8)
    assert len(train) > 300 and len(heldout) > 8
    assert not train & heldout


def test_about_one_in_twenty_problems_is_held_out_in_any_order_of_the_numbers():
    held = [is_heldout([a, b, 7], t) for a in range(1, 15) for b in range(a, 15) for t in range(10, 60)]
    assert 0.04 < sum(held) / len(held) < 0.06
    assert all(is_heldout([a, 9, 4], 30) == is_heldout([4, a, 9], 30) for a in range(100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "split 'test'.*train or heldout"),
        ({"numbers": 2}, "numbers 2 .*3, 4, 5, 6"),
        ({"numbers": "3"}, "numbers '3'"),
        ({"numbers": True}, "numbers True"),
        ({"largest": 4}, "largest 4 .*5 to 999"),
        ({"largest": 1000}, "largest 1000"),
        ({"target": [50, 10]}, r"target \[50, 10\] is no range; give \[lowest, highest\]"),
        ({"target": [0, 10]}, "within 1 and 9999"),
        ({"target": 24}, "target 24 is no range"),
        ({"target": [1, 2, 3]}, "is no range"),
        ({"use_all": 1}, "use_all 1 .*true or false"),
        ({"numbers": 3, "largest": 5, "target": [5000, 6000]}, r"target \[5000, 6000\]: 3 numbers up to 5 hardly"),
    ],
)
def test_bad_arguments_are_refused_with_the_choices(change, message):
    with pytest.raises(ValueError, match=f"countdown: .*{message}"):
        problem(**({"seed": 0, "index": 0, "split": "train"} | change))


def test_more_distinct_problems_than_there_are_is_an_error_and_no_endless_loop():
    with pytest.raises(ValueError, match=r"countdown: 60000 distinct problems asked for, found .*ask for fewer"):
        problems(0, 60_000, "train", numbers=3, largest=5, target=[1, 9])
