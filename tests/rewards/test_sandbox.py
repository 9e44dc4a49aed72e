"""The sandbox: verdicts, values between the processes, and code that tries to pass without solving anything."""

import gzip
import json
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from llmkd.rewards.sandbox import Limits, run, run_many, why_not_namespaces

from sandboxes import QUICK, RIGHT, TESTS, WRONG

# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_right_code_passes_and_wrong_code_fails_at_the_line(isolation: str) -> None:
    right, wrong = run(RIGHT, TESTS), run(WRONG, TESTS)
    assert (right.passed, right.status, right.isolation) == (True, "passed", isolation)
    assert (wrong.passed, wrong.status) == (False, "failed")
    assert "assert add(1, 2) == 3" in wrong.message


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("", "failed", "NameError"),
        ("def add(a, b)\n    return a", "syntax", "SyntaxError"),
        ("def add(a, b):\n    return a\0", "syntax", "null"),
        (
            "def add(a, b):\n    raise KeyError('lost')",
            "failed",
            "KeyError: 'lost', line 2 of the code, at: assert add(1, 2)",
        ),
        ("raise ValueError('at once')", "failed", "ValueError: at once, line 1 of the code"),
        ("while True: pass", "timeout", "CPU"),
        ("def add(a, b):\n    return add(a, b)", "failed", "RecursionError"),
        ("x = []\nwhile True: x.append('a' * 10**6)", "memory", "MemoryError"),
        ("x = bytearray(2**40)", "memory", "MemoryError"),
        ("import ctypes\nctypes.string_at(0)", "crashed", "signal 11"),
    ],
)
def test_status(code: str, status: str, said: str) -> None:
    if "ctypes" in code and why_not_namespaces():
        pytest.skip("without namespaces ctypes is refused")
    limits = replace(QUICK, memory_mb=256) if status == "memory" else QUICK  # a gigabyte takes its time to fill
    found = run(code, TESTS, limits)
    assert (found.passed, found.status) == (False, status), found
    assert said in found.message


def test_sleeping_code_is_a_timeout_of_wall_time(isolation: str) -> None:
    found = run("import time\ntime.sleep(100)", "", Limits(seconds=1))
    assert found.status == "timeout" and "1 s" in found.message


def test_unicode_goes_in_and_out() -> None:
    found = run("def 名(s):\n    print('é🦉' + s)\n    return s + '\\ud800'", "assert 名('ß') == 'ß\\ud800'")
    assert found.passed, found
    assert found.stdout == "é🦉ß\n"


def test_the_end_of_a_giant_output_is_kept() -> None:
    code = "for i in range(200000):\n    print('line', i)\nprint('last')\n" + RIGHT
    found = run(code, TESTS, Limits(output_kb=1))
    assert found.passed
    assert len(found.stdout) <= 1024 and found.stdout.endswith("line 199999\nlast\n")


def test_endless_output_ends(isolation: str) -> None:
    found = run("while True: print('x' * 1000)", "", Limits(seconds=5, cpu_seconds=1, output_kb=2))
    assert found.status == "timeout" and len(found.stdout) <= 2048


def test_tests_that_are_not_python_are_a_mistake_of_their_owner() -> None:
    with pytest.raises(ValueError, match="the tests are not Python"):
        run(RIGHT, "assert add(1,")


def test_limits_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="processes is 0"):
        Limits(processes=0)


# -- values between the processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "None", "True", "-1", "2**70", "-2**5000", "1e-300", "float('inf')", "1+2j", "'a\\n\\x00'", "b'\\xff\\x00'",
        "[1, [2, (3, {4})]]", "{(1, 2): [3], 'k': {}}", "frozenset({1})", "range(3, 9, 2)", "(1,)", "int",
        "__import__('decimal').Decimal('1.10')", "__import__('fractions').Fraction(1, 3)",
        "__import__('collections').deque([1, 2])", "__import__('collections').Counter('aab')", "{}.keys()",
    ],
)  # fmt: skip
def test_values_cross_both_ways_unchanged(value: str) -> None:
    tests = f"v = {value}\nassert same(v) == v and type(same(v)) in (type(v), dict, frozenset), same(v)"
    found = run("def same(x):\n    return x", tests)
    assert found.passed, found


def test_a_call_changes_the_arguments_of_the_tests() -> None:
    code = "def f(a, b):\n    a.sort()\n    b['x'] = [1]"
    assert run(code, "a, b = [3, 1, 2], {}\nf(a, b)\nassert a == [1, 2, 3] and b == {'x': [1]}").passed


def test_functions_objects_and_iterators_cross() -> None:
    code = """
    class Pair:
        def __init__(self, a, b): self.a, self.b = a, b
        def swapped(self): return Pair(self.b, self.a)
        def __eq__(self, other): return (self.a, self.b) == (other.a, other.b)
    def each(f, items): return [f(x) for x in items]
    def counted(n):
        for i in range(n): yield i
    """
    tests = """
    p = Pair(1, [2])
    assert p.swapped().a == [2] and p.swapped().swapped() == p and p != p.swapped() and p != 1
    p.a = 5
    assert p.swapped().b == 5
    assert each(lambda x: x + 1, [1, 2]) == [2, 3]
    assert list(counted(3)) == [0, 1, 2] and counted(3) != [0, 1, 2]
    """
    found = run(textwrap.dedent(code), textwrap.dedent(tests))
    assert found.passed, found


def test_an_exception_of_the_code_can_be_expected() -> None:
    tests = "try:\n    f()\n    assert False\nexcept LookupError as error:\n    assert 'gone' in str(error)"
    assert run("def f():\n    raise KeyError('gone')", tests).passed
    assert run("def f():\n    raise ValueError('gone')", tests.replace("Lookup", "Value").replace("in", "==", 1)).passed
    assert not run("def f():\n    raise TypeError('gone')", tests).passed


def test_modules_that_the_code_imported_are_there_for_the_tests() -> None:
    assert run("import math\ndef f(x):\n    return math.sin(x)", "assert math.fabs(f(0)) < 1e-9").passed


def test_a_function_named_like_a_builtin_needs_to_be_the_entry_point() -> None:
    code = "def sum(a, b):\n    return a + b"
    assert run(code, "assert sum(1, 2) == 3", entry_point="sum").passed
    assert not run(code, "assert sum(1, 2) == 3").passed


def test_together_runs_tests_that_need_the_classes_themselves() -> None:
    code, tests = "class A:\n    x = 1", "class B(A):\n    pass\nassert isinstance(B(), A) and B.x == 1"
    assert not run(code, tests).passed
    assert run(code, tests, together=True).passed
    assert run(code, tests + "\nassert B.x == 2", together=True).status == "failed"


# -- gaming ------------------------------------------------------------------------------------------------------------

PASSED = json.dumps(["passed", ""])
GAMES = {
    "os._exit": "import os\nos._exit(0)",
    "os._exit in the call": "import os\ndef add(a, b): os._exit(0)",
    "SystemExit": "raise SystemExit(0)",
    "SystemExit in the call": "def add(a, b): raise SystemExit(0)",
    "exec of true": "import os\nos.execv('/bin/true', ['true'])",
    "printed verdict": f"print({PASSED!r})\nimport os\nos._exit(0)",
    "verdict on every descriptor": f"""
import os
text = {PASSED!r}.encode()
for d in range(1, 1024):
    try: os.write(d, len(text).to_bytes(8, 'big') + text)
    except OSError: pass
os._exit(0)""",
    "equal to everything": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
def add(a, b): return Equal()""",
    "a number equal to everything": """
class Equal(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def add(a, b): return Equal(7)""",
    "builtins": """
import builtins
builtins.AssertionError = SystemExit
builtins.abs = builtins.all = builtins.any = lambda *a: True
builtins.exec = builtins.compile = lambda *a, **k: None
def add(a, b): return None""",
    "modules of the runner": """
import sys
for name, module in list(sys.modules.items()):
    if 'sandbox' in name or name == '__main__':
        for key, value in list(vars(module).items()):
            if callable(value): setattr(module, key, lambda *a, **k: ('passed', ''))
def add(a, b): return None""",
    "frames of the caller": """
import sys
frame, seen = sys._getframe(), ''
while frame:
    seen += repr(frame.f_locals)
    for value in list(frame.f_locals.values()):
        if hasattr(value, 'module'): value.answer = lambda *a, v=value: v.reply('value', None, None)
    frame = frame.f_back
def add(a, b): return 3 if 'assert' in seen else None""",
    "tests in memory": """
import gc
texts = [o for o in gc.get_objects() if isinstance(o, (str, bytes, dict, list)) and 'add(1, 2) ==' in str(o)[:10000]]
def add(a, b): return {3: 3, 0: 0}[a + b] if len(texts) > 2 else None""",
    "memory of the judge": """
import os
for pid in (1, os.getppid()):
    for name in ('mem', 'fd/0', 'environ'):
        try:
            open(f'/proc/{pid}/{name}', 'rb').read(1)
            opened = True
        except OSError: pass
def add(a, b): return a + b if opened else None""",
    "killing the judge": """
import os, signal
def add(a, b):
    for pid in (os.getppid(), 1): os.kill(pid, signal.SIGKILL)
    return a - b""",
    "module of the tests": """
def add(a, b): return None
def three(*a): return 3
class math: fabs = three
""",
}


@pytest.mark.parametrize("game", GAMES)
def test_games_do_not_pass(game: str, isolation: str) -> None:
    tests = "assert math.fabs(add(1, 2)) == 3" if game == "module of the tests" else TESTS
    found = run(GAMES[game], tests, Limits(seconds=4, cpu_seconds=2))
    assert not found.passed, found


@pytest.mark.parametrize("game", ["equal to everything", "builtins", "frames of the caller"])
def test_games_do_pass_where_code_and_tests_share_a_process(game: str) -> None:
    """So they are games: what stops them is the second process."""
    tests = TESTS if game == "equal to everything" else "assert all([add(1, 2) == 3])"
    assert run(GAMES[game], tests, Limits(seconds=4), together=True).passed


def test_code_that_dies_inside_an_except_of_the_tests_does_not_pass() -> None:
    tests = "try:\n    add(1, 2)\nexcept:\n    pass"
    assert run("import os\ndef add(a, b): os._exit(0)", tests).status == "crashed"
    assert run("def add(a, b): raise ValueError", tests).passed


def test_a_builtin_that_the_tests_use_is_not_the_code_s() -> None:
    code = "def add(a, b): return None\ndef set(x): return 0\nsorted = abs = set"
    assert run(code, "assert set([add(1, 2)]) == set([3])").status == "failed"


# -- real problems -----------------------------------------------------------------------------------------------------


def problems(assets: Path) -> list[dict[str, str]]:
    lines = (assets / "data" / "code" / "humaneval_python.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.assets
@pytest.mark.parametrize("count", [10, pytest.param(164, marks=pytest.mark.full)])
def test_humaneval_solutions_pass_and_empty_ones_fail(count: int, assets: Path) -> None:
    chosen = problems(assets)[:: 164 // count][:count]
    assert len(chosen) == count
    found = run_many([(p["prompt"] + p["canonical_solution"], p["test"]) for p in chosen], workers=2)
    assert [p["task_id"] for p, v in zip(chosen, found, strict=True) if not v.passed] == []
    empty = run_many([(p["prompt"] + "    pass\n", p["test"]) for p in chosen], workers=2)
    assert not any(v.passed for v in empty)


@pytest.mark.assets
@pytest.mark.full
def test_mbpp_solutions_pass(assets: Path) -> None:
    with gzip.open(assets / "data" / "code" / "mbpp.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    failed = []
    for row in rows:
        tests = "\n".join([row["test_setup_code"], *row["test_list"]])
        name = "sum" if "def sum(" in row["code"] and "assert sum(" in tests else None
        if not run(row["code"], tests, entry_point=name).passed:
            failed.append(row["task_id"])
    assert len(rows) == 974 and failed == []
