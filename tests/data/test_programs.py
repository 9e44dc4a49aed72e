"""Sequence programs: each prints its sequence by an independent reading, is short, and keeps to its split."""

import os
import re
import subprocess
import sys
from itertools import accumulate, chain, zip_longest

import pytest

from llmkd.data.tasks.programs import LANGUAGE, is_heldout, problem, problems, render_formula

KNOBS = [(1, 8), (1, 30), (2, 16), (3, 24), (4, 31), (5, 48)]

# The language a second time, as Python functions: only for texts of the task itself, which `eval` may be given here.
GAP = object()
FUNCTIONS = {
    "range": lambda *numbers: list(range(*numbers)),
    "map": lambda formula, n: list(map(formula, range(n))),
    "repeat": lambda s, n: list(chain.from_iterable([s] * n)),
    "reverse": lambda s: list(reversed(s)),
    "concat": lambda s, t: [*s, *t],
    "interleave": lambda s, t: [x for pair in zip_longest(s, t, fillvalue=GAP) for x in pair if x is not GAP],
    "cumsum": lambda s: list(accumulate(s)),
    "add": lambda s, k: [x + k for x in s],
    "mul": lambda s, k: [x * k for x in s],
    "take": lambda s, n: [x for place, x in enumerate(s) if place < n],
}


def printed(program):
    return eval(program.replace("map(", "map(lambda i: "), {"__builtins__": {}}, FUNCTIONS)


def program_of(row):
    return row["solution"].rpartition("\nAnswer: ")[2].removeprefix("Answer: ")


def size(program):
    """Numbers, names, `i` and operators; the sign of a number is none of them."""
    return len(re.findall(r"\w+|//|[+*%]| - ", program))


def rows_of(n=60, split="train", seed=5):
    return [row for o, length in KNOBS for row in problems(seed, n, split, operations=o, length=length)]


def test_every_program_prints_its_sequence():
    for row in rows_of(100):
        assert printed(program_of(row)) == row["answer"]["sequence"], row


def test_every_worked_step_is_true_and_the_last_is_the_whole_program():
    for row in rows_of():
        *steps, last = row["solution"].split("\n")
        assert last == f"Answer: {steps[-1].split(' is ')[0]}"
        for step in steps:
            program, result = step.split(" is ")
            assert printed(program) == [int(number) for number in result.split(", ")], step


def test_the_lengths_of_the_answer_are_those_of_the_texts():
    for row in rows_of():
        answer, program = row["answer"], program_of(row)
        assert answer["program_length"] == size(program), program
        assert answer["literal_length"] == size(str(answer["sequence"])) == len(answer["sequence"]) == row["length"]
        assert answer["program_length"] < answer["literal_length"]


def test_a_program_has_as_many_functions_as_asked_for():
    for row in rows_of():
        assert len(re.findall(r"[a-z]+\(", program_of(row))) == row["operations"]


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (("-", "i", ("-", "i", 1)), "i - (i - 1)"),
        (("-", ("-", "i", 1), "i"), "i - 1 - i"),
        (("*", ("+", "i", 1), 2), "(i + 1) * 2"),
        (("+", ("*", "i", 2), 1), "i * 2 + 1"),
        (("%", 7, ("*", "i", 2)), "7 % (i * 2)"),
    ],
)
def test_a_formula_has_the_brackets_that_it_needs(formula, text):
    assert render_formula(formula) == text


def test_no_plain_program_is_shorter():
    for row in rows_of(100):
        sequence, own = row["answer"]["sequence"], row["answer"]["program_length"]
        first, step = sequence[0], sequence[1] - sequence[0]
        if sequence == [first + step * place for place in range(len(sequence))]:
            assert own <= 4
        for period in range(1, len(sequence)):
            if len(sequence) % period == 0 and sequence == sequence[:period] * (len(sequence) // period):
                assert own <= period + 2


def test_no_part_of_a_program_prints_the_whole():
    for row in rows_of() + problems(0, 800, "train", operations=2, length=15):
        *parts, _whole, _answer = row["solution"].split("\n")
        whole = ", ".join(map(str, row["answer"]["sequence"]))
        assert not any(part.endswith(f" is {whole}") for part in parts)


def test_sequences_are_small_and_not_all_one_number():
    for row in rows_of():
        assert max(map(abs, row["answer"]["sequence"])) <= 999 and len(set(row["answer"]["sequence"])) > 1


def test_the_question_holds_the_language_and_the_sequence():
    for row in rows_of(10):
        assert row["question"].startswith(LANGUAGE)
        line = re.search(r"^Sequence: (.*)$", row["question"], re.MULTILINE).group(1)
        assert [int(number) for number in line.split(", ")] == row["answer"]["sequence"]
        assert program_of(row) not in row["question"]


def test_every_function_of_the_language_is_drawn():
    text = "\n".join(program_of(row) for row in rows_of(100))
    assert all(f"{name}(" in text for name in FUNCTIONS)
    assert all(operator in text for operator in ("+", " - ", " * ", "//", "%", "["))


def test_a_problem_is_a_pure_function_of_its_arguments():
    assert problem(3, 5, "train") == problem(3, 5, "train")
    drawn = {
        tuple(problem(seed, index, "train", operations=o, length=20)["answer"]["sequence"])
        for seed in (0, 1) for index in (0, 1) for o in (2, 3, 4)
    }  # fmt: skip
    assert len(drawn) == 12


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_problem_is_the_same_in_another_process(hash_seed):
    script = "from llmkd.data.tasks.programs import problem; print(problem(3, 5, 'heldout', operations=4, length=30))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )  # fmt: skip
    assert run.stdout == f"{problem(3, 5, 'heldout', operations=4, length=30)}\n"


def test_sequences_of_one_draw_are_distinct():
    rows = problems(0, 1000, "train", operations=1, length=8)
    assert len({tuple(row["answer"]["sequence"]) for row in rows}) == 1000


def test_no_beginning_of_a_sequence_is_in_both_splits_over_seeds_and_difficulty():
    """One function draws from so few sequences that without the split many would be drawn for both."""

    def drawn(split, n):
        knobs = [(seed, o, length) for seed in (0, 1) for o, length in ((1, 8), (1, 12), (2, 12), (2, 16), (3, 16))]
        rows = [row for seed, o, length in knobs for row in problems(seed, n, split, operations=o, length=length)]
        return {tuple(row["answer"]["sequence"][:8]) for row in rows}

    train, heldout = drawn("train", 400), drawn("heldout", 40)
    assert len(train) > 2500 and len(heldout) > 250
    assert not train & heldout


def test_about_one_in_twenty_sequences_is_held_out():
    share = sum(is_heldout([a, b, 0, 0, 0, 0, 0, 0]) for a in range(100) for b in range(100)) / 10_000
    assert 0.04 < share < 0.06


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "split 'test'.*train or heldout"),
        ({"operations": 0}, "operations 0 .*1 to 5"),
        ({"operations": 6}, "operations 6 .*1 to 5"),
        ({"operations": True}, "operations True"),
        ({"length": 11}, "length 11 .*operations 2 choose 12 to 64"),
        ({"length": 65}, "length 65 .*12 to 64"),
        ({"length": 16.0}, "length 16.0"),
    ],
)
def test_bad_arguments_are_refused_with_the_choices(change, message):
    with pytest.raises(ValueError, match=message):
        problem(**({"seed": 0, "index": 0, "split": "train"} | change))


def test_more_distinct_problems_than_there_are_is_an_error_and_no_endless_loop(monkeypatch):
    row = {"answer": {"sequence": [1, 2]}}
    monkeypatch.setattr("llmkd.data.tasks.programs.problem", lambda seed, index, split: row)
    with pytest.raises(ValueError, match="programs: 2 distinct problems asked for, found 1"):
        problems(0, 2, "train")


@pytest.mark.full
@pytest.mark.parametrize("operations", [1, 2, 3, 4, 5])
def test_every_length_in_both_splits(operations):
    for length in range(4 * (operations + 1), 65):
        for split in ("train", "heldout"):
            for row in problems(9, 20, split, operations=operations, length=length):
                assert printed(program_of(row)) == row["answer"]["sequence"]
                assert is_heldout(row["answer"]["sequence"]) == (split == "heldout")
