"""The grader of sequence programs: its interpreter against Python, its bounds, its formula, and hostile answers."""

import re
import sys
import tracemalloc
from itertools import accumulate, zip_longest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkd.data.tasks import programs as task
from llmkd.rewards.program_language import ProgramError, parse, run
from llmkd.rewards.programs import FLOOR, programs

KNOBS = [(1, 8), (1, 30), (2, 16), (3, 24), (4, 31), (5, 48), (5, 64)]
SEQUENCE = [1, 2, 3, 4] * 4
REFERENCE = {"sequence": SEQUENCE, "literal_length": 16, "program_length": 5}
RIGHT = "repeat(range(1, 5), 4)"


def grade(completion, reference=REFERENCE, **knobs):
    return programs("Write a program.", completion, reference, **knobs)


# The language a second time, as Python functions, for texts that the strategies below made.
GAP = object()
FUNCTIONS = {
    "range": lambda *numbers: list(range(*numbers)),
    "map": lambda formula, n: [formula(i) for i in range(n)],
    "repeat": lambda s, n: [x for _ in range(n) for x in s],
    "reverse": lambda s: list(reversed(s)),
    "concat": lambda s, t: [*s, *t],
    "interleave": lambda s, t: [x for pair in zip_longest(s, t, fillvalue=GAP) for x in pair if x is not GAP],
    "cumsum": lambda s: list(accumulate(s)),
    "add": lambda s, k: [x + k for x in s],
    "mul": lambda s, k: [x * k for x in s],
    "take": lambda s, n: [x for place, x in enumerate(s) if place < n],
}


def by_python(text):
    """What Python makes of a program; None where a division by 0 or a step of 0 makes nothing of it."""
    try:
        return eval(text.replace("map(", "map(lambda i: "), {"__builtins__": {}}, FUNCTIONS)
    except (ZeroDivisionError, ValueError):
        return None


def by_interpreter(text, limit=100_000):
    try:
        return run(parse(text), limit)
    except ProgramError:
        return None


numbers = st.integers(-12, 12)
counts = st.integers(1, 4)
formulas = st.recursive(
    st.just("i") | numbers.map(str),
    lambda below: st.builds("{}{}{}{}{}".format, below, st.sampled_from(["", " "]),
                            st.sampled_from(["+", "-", "*", "//", "%"]), st.sampled_from(["", " "]), below)
    | below.map("({})".format),
    max_leaves=8,
)  # fmt: skip
sequences = st.recursive(
    st.lists(numbers, min_size=1, max_size=5).map(str)
    | st.builds("range({}, {})".format, numbers, numbers)
    | st.builds("range({},{},{})".format, numbers, numbers, numbers)
    | st.builds("map({}, {})".format, formulas, st.integers(1, 9)),
    lambda below: (
        st.builds("{}({}, {})".format, st.sampled_from(["add", "mul"]), below, numbers)
        | st.builds("{}( {},{} )".format, st.sampled_from(["repeat", "take"]), below, counts)
        | st.builds("{}({})".format, st.sampled_from(["reverse", "cumsum"]), below)
        | st.builds("{}({}, {})".format, st.sampled_from(["concat", "interleave"]), below, below)
    ),
    max_leaves=5,
)


@settings(max_examples=250, deadline=None)
@given(sequences)
def test_the_interpreter_prints_what_python_does(text):
    assert by_interpreter(text) == by_python(text)


@settings(max_examples=250, deadline=None)
@given(formulas, st.integers(1, 12))
def test_a_formula_has_pythons_precedence_and_its_division(formula, n):
    text = f"map({formula}, {n})"
    assert by_interpreter(text) == by_python(text)


TOKENS = ["[", "]", "(", ")", ",", "-", "+", "*", "//", "%", "i", "0", "1", "7", "9999", *FUNCTIONS]


@settings(max_examples=250, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=25).map(" ".join) | st.text(max_size=40))
def test_no_text_does_more_than_fail(text):
    assert grade(f"Answer: {text}", compression=True) in (0.0, *(pytest.approx(x) for x in (FLOOR, 1.0)))


@settings(max_examples=200, deadline=None)
@given(sequences, st.integers(0, 400), st.sampled_from(TOKENS))
def test_of_a_program_with_a_token_too_many_none_is_passed_over(text, place, token):
    """The longer text fails; or it is a program too, every token of it counts, and it prints what Python does."""
    place %= len(text) + 1
    longer = f"{text[:place]} {token} {text[place:]}"
    try:
        tree = parse(longer)
    except ProgramError:
        return
    subtractions = len(re.findall(r"[\w)]\s*-", longer))
    assert tree.length == len(re.findall(r"\w+|//|[+*%]", longer)) + subtractions
    assert by_interpreter(longer) == by_python(longer)


def test_both_readings_of_thousands_of_the_tasks_programs_agree():
    """The generator evaluates the tree that it drew; the grader reads the text: neither knows the other."""
    count = 0
    for operations, length in KNOBS:
        for row in task.problems(17, 300, "train", operations=operations, length=length):
            tree = parse(row["solution"].rpartition("Answer: ")[2])
            assert run(tree, 2 * length) == row["answer"]["sequence"]
            assert tree.length == row["answer"]["program_length"]
            count += 1
    assert count == 2100


def test_the_tasks_own_solutions_are_right_whatever_the_knobs():
    for operations, length in KNOBS:
        for row in task.problems(3, 40, "train", operations=operations, length=length):
            for knobs in ({}, {"compression": True}, {"allow_literal": True}):
                assert programs(row["question"], row["solution"], row["answer"], **knobs) == 1.0


def test_a_solution_with_one_number_changed_is_wrong_unless_it_still_prints_the_sequence():
    wrong = 0
    for row in task.problems(4, 100, "train", operations=3, length=20):
        text = row["solution"].rpartition("Answer: ")[2]
        for match in re.finditer(r"\d+", text):
            changed = f"{text[: match.start()]}{int(match.group()) + 1}{text[match.end() :]}"
            expected = float(by_python(changed) == row["answer"]["sequence"])
            assert grade(f"Answer: {changed}", row["answer"]) == expected, changed
            wrong += expected == 0.0
    assert wrong > 400


def test_every_example_of_the_questions_language_is_true():
    examples = re.findall(r"([a-z]+\([^:]*?\)) is (-?\d+(?:, -?\d+)*)", task.LANGUAGE)
    assert len(examples) >= 5
    for program, result in examples:
        assert by_interpreter(program) == [int(number) for number in result.split(", ")], program
    divisions = re.findall(r"(-\d+ (?://|%) \d+) is (-?\d+)", task.LANGUAGE)
    assert len(divisions) == 2 and all(by_interpreter(f"map({text}, 1)") == [int(v)] for text, v in divisions)
    assert "range(2, 11, 3)       2, 5, 8:" in task.LANGUAGE and by_interpreter("range(2, 11, 3)") == [2, 5, 8]
    assert set(re.findall(r"^([a-z]+)\(", task.LANGUAGE, re.MULTILINE)) == set(FUNCTIONS)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("[4, -1, 0]", 3),
        ("range(1, 5)", 3),
        ("range(-9, -5, 2)", 4),
        ("repeat([1, 2], 3)", 4),
        ("map((i - 1) * -2 % 5, 7)", 9),
        ("reverse(concat([1], cumsum([2, 3])))", 6),
    ],
)
def test_the_length_counts_numbers_names_and_operators(text, length):
    assert parse(text).length == length


@pytest.mark.parametrize(
    "completion",
    [
        f"Answer: {RIGHT}",
        f"It counts to 4, four times.\n  answer:  {RIGHT}  \n\n",
        "Answer: repeat( range( 1,5 ),4 )",
        "Answer: repeat([1,2,3,4],4)",
        "Answer: map(i % 4 + 1, 16)",
        "Answer: take(repeat([1, 2, 3, 4], 9), 16)",
    ],
)
def test_any_short_program_that_prints_the_sequence_is_right(completion):
    assert grade(completion) == 1.0


HOSTILE = [
    "",
    "[]",
    "()",
    "[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]",  # the list itself
    "concat([1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 3, 4, 1, 2, 3, 4])",
    "reverse([4, 3, 2, 1, 4, 3, 2, 1, 4, 3, 2, 1, 4, 3, 2, 1])",
    "1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4",
    "repeat(range(1, 5), 5)",  # the right beginning, and more
    "repeat(range(1, 5), 3)",
    "concat(repeat(range(1, 5), 4), [1])",
    "repeat(range(1, 5), -4)",
    "repeat(range(1, 5), 0)",
    "take(repeat(range(1, 5), 5), -4)",
    "map(i % 4 + 1, -16)",
    "repeat(range(1, 5), 9999)",
    "repeat(range(1, 5), 1000000000000)",
    "take(repeat(range(1, 5), 9999), 16)",
    "take(range(1, 9999), 16)",
    "take(range(1, 1000000000000), 16)",
    "range(0, 9999, 0)",
    "take(map(i % 4 + 1, 9999), 16)",
    "repeat(" * 20 + "[1]" + ", 9999)" * 20,
    "repeat(" * 300 + "[1]" + ", 2)" * 300,
    "reverse(" * 25 + RIGHT + ")" * 25,
    "map(" + "(" * 30 + "i % 4 + 1" + ")" * 30 + ", 16)",
    "map(" + "(" * 900 + "i" + ")" * 900 + ", 16)",
    "map(" + "0 + " * 33 + "i % 4 + 1, 16)",
    "map(" + "9999 * " * 30 + "i, 16)",
    "map(i % 0, 16)",
    "map(i // (i - i), 16)",
    "map(10 ** 9, 16)",
    "map(2 ** i, 16)",
    "repeat(range(1, 5), 4) repeat(range(1, 5), 4)",
    "repeat(range(1, 5), 4);",
    "repeat(range(1, 5), 4).",
    "`repeat(range(1, 5), 4)`",
    "repeat(range(1, 5), 4) # not this",
    "print(repeat(range(1, 5), 4))",
    "list(repeat(range(1, 5), 4))",
    "repeat(range(1, 5), 4,)",
    "repeat(range(1, 5,), 4)",
    "repeat(range(1, 5), n=4)",
    "repeat(range(1, 5), 4",
    "repeat range(1, 5), 4",
    "repeat(range(1, 5), 2 + 2)",
    "repeat(range(1, 5), i)",
    "repeat(4, range(1, 5))",
    "repeat(range(1, 5), --4)",
    "repeat(range(1, 5), 04)",
    "repeat(range(1, 5), 4.0)",
    "repeat(range(1, 5), 4e0)",
    "repeat(range(1, 5), 0x4)",
    "repeat(range(1, 5), 4_0)",
    "repeat(range(1, 5), \u0664)",  # an Arabic-Indic 4
    "repeat(range(1, 5), \uff14)",  # a full-width 4
    "repeat(range(1, 5), \u00b2)",  # a superscript, a digit to str.isdigit
    "repe\u0430t(range(1, 5), 4)",  # a Cyrillic a
    "repeat\u00a0(range(1, 5), 4)",  # a space that does not break
    "repeat(range(1, 5), 4)\u200b",
    "repeat(range(1, 5), 4)\x00",
    "REPEAT(range(1, 5), 4)",
    "Repeat(range(1, 5), 4)",
    "[1, 2, 3, 4] * 4",
    "[(i % 4) + 1 for i in range(16)]",
    "map(lambda i: i % 4 + 1, 16)",
    "map(i % 4 + 1, range(16))",
    "__import__('os').system('true')",
    "map(__import__, 16)",
    "eval('1')",
    "exec(range(1, 5), 4)",
    "().__class__.__bases__",
    "repeat.__globals__",
    "SEQUENCE",
    "sequence",
    "literal_length",
    "True",
    "nan",
    f"Answer: {RIGHT}",
    f"{RIGHT}\nAnswer: {RIGHT}",
    f"[1]\nanswer: {RIGHT}",
    f"{RIGHT}\nThat is it.",
    "x" * 5_000_000,
    "1," * 1_000_000,
    "[" + "1, " * 700 + "1]",
    "(" * 100_000,
    RIGHT + " " * 3000 + ")",
]


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda text: text[:50].encode("unicode_escape").decode())
def test_a_hostile_answer_is_wrong(answer):
    assert grade(f"Answer: {answer}") == 0.0


def test_what_is_no_text_or_has_no_answer_line_is_wrong():
    assert [grade(completion) for completion in (None, 3, [], "", RIGHT, f"The Answer: {RIGHT}")] == [0.0] * 6


@pytest.mark.parametrize(
    "text",
    [
        "repeat(" * 20 + "[1]" + ", 9999)" * 20,
        "repeat([1, 2, 3], 9999)",
        "range(-9999, 9999)",
        "map(i, 9999)",
        "concat(range(0, 99), range(0, 99))",
        "interleave(range(0, 99), range(0, 99))",
    ],
)
def test_a_sequence_that_is_too_long_is_refused_before_it_is_made(text):
    tree = parse(text)
    tracemalloc.start()
    with pytest.raises(ProgramError, match=r"a sequence of .* are allowed"):
        run(tree, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000


def test_the_limit_of_a_sequence_is_exact():
    assert run(parse("range(0, 100)"), 100) == list(range(100))
    with pytest.raises(ProgramError, match="a sequence of 101 numbers; 100 are allowed"):
        run(parse("range(0, 101)"), 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("map(" + " + ".join(["i"] * 30) + ", 9999)", "more than 20000 steps"),
        ("mul(mul(mul([9999], 9999), 9999), 9999)", "a number beyond"),
        ("map(9999 * 9999 * 9999, 1)", "a number beyond"),
        ("cumsum(repeat(mul([9999], 9999), 11))", "a number beyond"),
        ("map(" + "0 + " * 33 + "i, 3)", "more than 32 operators"),
        ("reverse(" * 25 + "[1]" + ")" * 25, "nested more than 24 deep"),
        ("[" + "1," * 400 + "1]", "there are 803 tokens; 600 are allowed"),
        ("[" + " " * 2000 + "1]", "the text has 2003 characters; 2000 are allowed"),
        ("[12345]", "'12345' where a number of at most 4 digits"),
        ("range(1, 2, 0)", "the step of range is 0"),
        ("map(1 % 0, 1)", "a division by 0"),
        ("repeat([1], -1)", "-1 is no count; it must be 1 or more"),
        ("take([1], 0)", "0 is no count; it must be 1 or more"),
        ("map(i, 0)", "0 is no count; it must be 1 or more"),
        ("[\u0661]", "at character 2 belongs to no program"),
        ("[1] [2]", "'\\[' follows the end"),
        ("[1", "'the end' where , or \\] was expected"),
        ("[1, a]", "'a' where a number"),
        ("open(1)", "'open' where range or map or"),
        ("[1 ! 2]", "'!' at character 4"),
    ],
)
def test_what_is_wrong_with_a_program_is_said(text, message):
    with pytest.raises(ProgramError, match=message):
        run(parse(text), 10_000)


def test_the_deepest_trees_need_little_of_pythons_stack():
    """Brackets and operators at both of their bounds, on a stack that has room for 400 calls more."""
    formula = "(" * 23 + "i" + " + 1)" * 23 + " + i" * 9
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    old = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 400)
    try:
        tree = parse(f"map({formula}, 2)")
        assert tree.length == 2 + 33 + 32 and run(tree, 2) == [23, 33]
        assert run(parse("reverse(" * 24 + "[1, 2]" + ")" * 24), 2) == [1, 2]
    finally:
        sys.setrecursionlimit(old)


def test_compression_pays_for_every_token_saved_and_nothing_more():
    """The list has 16, the task's own program 5: each token saved is 0.95 / 11."""
    reward = {
        text: grade(f"Answer: {text}", compression=True)
        for text in (
            str(SEQUENCE), "concat([1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 3, 4, 1, 2, 3, 4])",
            "take(repeat([1, 2, 3, 4], 5), 16)", "repeat([1, 2, 3, 4], 4)", RIGHT, "repeat(range(1, 5), 5)",
        )
    }  # fmt: skip
    assert list(reward.values()) == pytest.approx([0.05, 0.05, 0.05 + 0.95 * 8 / 11, 0.05 + 0.95 * 10 / 11, 1.0, 0.0])


def test_a_program_shorter_than_the_tasks_own_earns_no_more_than_1():
    assert grade(f"Answer: {RIGHT}", REFERENCE | {"program_length": 9}, compression=True) == 1.0


def test_the_list_itself_is_right_only_where_it_is_allowed():
    answer = f"Answer: {SEQUENCE}"
    assert (grade(answer), grade(answer, allow_literal=True)) == (0.0, 1.0)
    assert grade(f"Answer: {SEQUENCE[:-1]}", allow_literal=True) == 0.0
    assert grade(f"Answer: {[*SEQUENCE, 1]}", allow_literal=True) == 0.0


@pytest.mark.parametrize(
    "reference",
    [
        None, "1, 2", {}, {"sequence": [1, 2]}, REFERENCE | {"sequence": "1234"}, REFERENCE | {"literal_length": 15},
        REFERENCE | {"program_length": 0}, REFERENCE | {"program_length": 16}, REFERENCE | {"program_length": "5"},
    ],
)  # fmt: skip
def test_a_reference_of_another_form_is_an_error_that_says_what_to_give(reference):
    with pytest.raises(ValueError, match=r"programs: .* is no reference: give the column `answer`"):
        grade(f"Answer: {RIGHT}", reference)
