"""code: the last Python block against the reference's tests. What the sandbox stops is in test_sandbox_limits."""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from llmkd.rewards.code import code, last_block

TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\nassert add(2, 2) == 4\nassert add(10, 5) == 15"
RIGHT = "def add(a, b):\n    return a + b"
HALF = "def add(a, b):\n    return 3 if a == 1 else 0"  # right for the first two


def fenced(program: str, language: str = "python") -> str:
    return f"Here it is:\n```{language}\n{program}\n```\nDone."


@pytest.mark.parametrize("reference", [
    TESTS, TESTS.splitlines(), {"tests": TESTS}, {"tests": TESTS.splitlines()},
    {"test_list": TESTS.splitlines(), "test_setup_code": ""},
    {"test": "def check(f):\n    assert f(1, 2) == 3\n    assert f(2, 2) == 4\n", "entry_point": "add"},
], ids=["text", "list", "mapping", "mapping of a list", "MBPP", "HumanEval"])  # fmt: skip
def test_references_of_every_form(reference: Any) -> None:
    assert code("", fenced(RIGHT), reference) == 1.0
    assert code("", fenced(HALF.replace("0", "7")), reference) == 0.0


@pytest.mark.parametrize(("text", "block"), [
    (fenced("a = 1"), "a = 1"),
    (fenced("a = 1", "py"), "a = 1"),
    (fenced("a = 1", ""), "a = 1"),
    (fenced("a = 1", "Python3"), "a = 1"),
    (fenced("a = 1") + "\n" + fenced("b = 2"), "b = 2"),
    (fenced("a = 1") + "\n" + fenced("ls", "bash"), "a = 1"),
    (fenced("ls", "bash"), None),
    ("a = 1", None),
    ("", None),
    ("```python\na = 1", None),
    (fenced("a = 1") + "\n```python\nb = 2", "a = 1"),
    ("~~~python\na = '```'\n```\n~~~", "a = '```'\n```"),
    ("````python\n```\n````", "```"),
    ("```python\r\na = 1\r\n```", "a = 1"),
    ("```python\n```", ""),
    (fenced("a = '\u2028'"), "a = '\u2028'"),
])  # fmt: skip
def test_the_last_closed_block_of_python(text: str, block: str | None) -> None:
    assert last_block(text) == block


HOSTILE = {
    "no block": RIGHT,
    "no code": "```python\n```",
    "exit": fenced("import os\nos._exit(0)"),
    "equal to everything": fenced(
        "class Any:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Any()"
    ),
    "says that it passed": fenced("print('passed')\nprint('{\"passed\": true}')\nimport sys\nsys.exit(0)"),
    "patches assert's way": fenced("import builtins\nbuiltins.AssertionError = None\ndef add(a, b):\n    return 7"),
    "swallows the tests": fenced(RIGHT.replace("a + b", "7") + "\n'''"),
    "a test's name in the text": "assert add(1, 2) == 3 holds.",
    "syntax": fenced("def add(a, b) return a + b"),
    "null byte": fenced("a = '\x00'"),
    "lone surrogate": fenced("a = '\ud800'"),
    "endless": fenced("while True:\n    pass"),
    "memory": fenced("a = [0] * 10**10"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_reward_for_a_program_that_does_not_solve_it(name: str) -> None:
    assert code("", HOSTILE[name], TESTS, timeout=1.5) == 0.0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["```" + "a" * 10**6 + "`", "```" * 10**6, "```\n" * 10**5, "```python\n" * 10**5,
                                  " " * 10**6 + "```", "```" + " " * 10**6 + "`"])  # fmt: skip
def test_fences_without_end_are_read_in_one_go(text: str) -> None:
    assert last_block(text) is None or "```" not in last_block(text)


def test_a_lone_surrogate_does_not_spoil_a_right_program() -> None:
    assert code("", fenced(RIGHT + "\n# \ud800"), TESTS) == 1.0


def test_partial_is_the_share_of_tests() -> None:
    assert code("", fenced(HALF), TESTS, partial=True) == 0.5
    assert code("", fenced(HALF), TESTS.splitlines(), partial=True) == 0.5
    assert code("", fenced(HALF), TESTS) == 0.0
    assert code("", fenced(RIGHT), TESTS, partial=True) == 1.0
    assert code("", fenced("import os\nos._exit(0)"), TESTS, partial=True) == 0.0


def test_partial_keeps_what_the_tests_import() -> None:
    tests = "import math\nassert add(1, 2) == math.isqrt(9)\nassert add(2, 2) == math.isqrt(16)"
    assert code("", fenced(HALF), tests, partial=True) == 0.5


def test_partial_runs_whole_what_it_cannot_take_apart() -> None:
    assert code("", fenced(HALF), "n = 3\nassert add(1, 2) == n\nassert add(2, 2) == n + 1", partial=True) == 0.0


def test_partial_does_not_wait_for_every_endless_test() -> None:
    program = "def add(a, b):\n    while True:\n        pass"
    assert code("", fenced(program), ["assert add(1, 2) == 3"] * 50, partial=True, timeout=0.3) == 0.0


def test_a_function_named_like_a_builtin_needs_its_name_said() -> None:
    program = "def sum(a, b):\n    return a + b"
    assert code("", fenced(program), {"tests": "assert sum(1, 2) == 3", "entry_point": "sum"}) == 1.0
    assert code("", fenced(program), "assert sum(1, 2) == 3") == 0.0


@pytest.mark.parametrize("reference", [None, 3, "", [], {}, {"tests": ""}, {"answer": "1"}, [1], " \n"])
def test_a_reference_without_tests_is_the_datas_fault(reference: Any) -> None:
    with pytest.raises(ValueError, match=r"code: the reference .* holds no tests"):
        code("", fenced(RIGHT), reference)


def test_tests_that_are_not_python_are_the_datas_fault() -> None:
    with pytest.raises(ValueError, match="the tests are not Python"):
        code("", fenced(RIGHT), "assert add(1, 2 == 3")


@pytest.mark.assets
def test_mbpp_solutions_pass_their_own_tests(assets: Path) -> None:
    with gzip.open(assets / "data" / "code" / "mbpp.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines][:8]
    graded = [code("", fenced(row["code"]), row) for row in rows]
    swapped = [code("", fenced(other["code"]), row) for row, other in itertools.pairwise(rows)]
    assert graded == [1.0] * 8
    assert swapped == [0.0] * 7
