"""The table of rewards, and an entry of a recipe made into a function."""

import importlib.util
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest

from llmkd.config.reward_kinds import KINDS
from llmkd.config.rewards_section import Reward
from llmkd.rewards.table import REWARDS, load

FILE = """\
CONSTANT = 3

def polite(prompt, completion, reference, *, words=("please",), weight_of_word=1.0):
    return weight_of_word * sum(word in completion for word in words)

def counted(prompt, completion, reference, tokens):
    return float(tokens)

def open_to_all(*args, **knobs):
    return float(len(args) + len(knobs))

def two(prompt, completion):
    return 0.0

def four(prompt, completion, reference, threshold):
    return float(len(completion) > threshold)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my rewards.py"
    path.write_text(FILE)
    return path


def installed(kind: str) -> bool:
    return importlib.util.find_spec(f"llmkd.rewards.{kind}") is not None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if installed(kind)])
def test_every_row_takes_the_knobs_that_it_declares(kind: Any) -> None:
    """The declared table and the functions say the same, one way and the other."""
    parameters = inspect.signature(REWARDS[kind].function).parameters
    assert list(parameters)[:3] == ["prompt", "completion", "reference"]
    assert set(list(parameters)[3:]) - {"tokens"} == set(REWARDS[kind].declared.knobs)
    assert all(parameter.default is not parameter.empty for parameter in list(parameters.values())[3:])


def test_a_kind_comes_with_its_knobs_bound() -> None:
    reward = load(Reward(kind="length", weight=0.1, max_words=4, buffer=2))
    assert (reward.name, reward.weight, reward.correct, reward.column) == ("length", 0.1, False, None)
    assert reward("", "a b c", None) == -0.5
    assert load({"kind": "exact", "ignore_case": True})("", "Answer: A", "a") == 1.0


def test_every_kind_loads_and_grades_something_wrong() -> None:
    needed = {"length": {"max_words": 1}}
    for kind in ("code", "format", "length", "exact", "arithmetic"):
        reward = load({"kind": kind, **needed.get(kind, {})})
        reference = "assert 1 == 2" if kind == "code" else "1"
        assert reward("", "nothing", reference) == 0.0 if kind != "length" else -1.0


def test_a_function_by_dotted_path() -> None:
    reward = load({"path": "llmkd.rewards.exact.exact", "ignore_case": True})
    assert reward.name == "exact"
    assert reward("", "Answer: A", "a") == 1.0


def test_a_function_by_file(file: Path) -> None:
    reward = load({"path": f"{file}:polite", "words": ["please", "thanks"], "weight_of_word": 0.5})
    assert reward.name == "polite"
    assert reward("", "please, thanks", None) == 1.0
    assert load({"path": f"{file}:open_to_all", "a": 1})(1, 2, 3) == 4.0
    assert load({"path": f"{file}:four", "threshold": 1})("", "aa", "") == 1.0


def test_a_loaded_reward_can_be_pickled(file: Path) -> None:
    for section in ({"kind": "length", "max_words": 1}, {"path": f"{file}:polite"}):
        reward = load(section)
        assert pickle.loads(pickle.dumps(reward)) == reward


def test_tokens_go_to_those_that_take_them(file: Path) -> None:
    counted, length = load({"path": f"{file}:counted"}), load({"kind": "length", "max_tokens": 4, "buffer": 2})
    assert counted.tokens == length.tokens == "needed"
    assert (counted("", "", None, tokens=3), length("", "", None, tokens=3)) == (3.0, -0.5)
    assert load({"kind": "length", "max_words": 4}).tokens == "taken"
    assert load({"kind": "exact"}).tokens == "no"
    assert load({"kind": "exact"})("", "Answer: 1", "1", tokens=5) == 1.0


@pytest.mark.parametrize(("section", "message"), [
    ({"kind": "maths"}, "there is no kind 'maths': did you mean math?"),
    ({"kind": "qqq"}, "there is no kind 'qqq': there are math, code, format, length, exact, arithmetic"),
    ({}, "give one of kind and path"),
    ({"kind": "exact", "path": "a.b"}, "give one of kind and path"),
    ({"kind": "exact", "ignorecase": True}, "rewards: exact.ignorecase: is not a knob of exact: did you mean ignore_c"),
    ({"kind": "arithmetic", "zzz": 1}, "rewards: arithmetic.zzz: is not a knob of arithmetic: it takes none"),
    ({"kind": "code", "timeout": 0}, "rewards: code.timeout: 0 is outside (0, 600]: give a number inside it"),
    ({"kind": "length"}, "rewards: length: length: no maximum given: give one of max_tokens, max_words, max_char"),
    ({"kind": "format", "pattern": "(a"}, "pattern '(a' is no regular expression"),
    ({"path": "nowhere"}, "path 'nowhere' names no module: write package.module.function"),
    ({"path": "no_such_package.rewards.f"}, "the module no_such_package.rewards cannot be imported"),
    ({"path": "llmkd.rewards.exact.exakt"}, "there is no function 'exakt': did you mean exact?"),
    ({"path": "FILE:polit"}, "there is no function 'polit': did you mean polite?"),
    ({"path": "FILE:zzz"}, "there is no function 'zzz': it has polite, counted, open_to_all, two, four"),
    ({"path": "FILE:CONSTANT"}, "is int, which cannot be called: name a function"),
    ({"path": "FILE:two"}, "two(prompt, completion) must take three things, (prompt, completion, reference)"),
    ({"path": "FILE:four"}, "takes more than three things: give threshold beside path, or a default"),
    ({"path": "FILE:polite", "word": 1}, "polite.word: is not a knob of polite: did you mean words?"),
    ({"path": "FILE:polite", "zzz": 1}, "is not a knob of polite: allowed are words, weight_of_word"),
    ({"path": "FILE:two", "name": "mine"}, "rewards: mine: two("),
    ({"path": "missing.py:f"}, "there is no file missing.py: give a path from where the command is run"),
])  # fmt: skip
def test_what_is_said_of_a_reward_that_cannot_be_loaded(file: Path, section: dict[str, Any], message: str) -> None:
    section = {key: value.replace("FILE", str(file)) if key == "path" else value for key, value in section.items()}
    with pytest.raises(ValueError) as caught:
        load(section)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [
    ("import no_such_package_at_all", "ModuleNotFoundError: No module named 'no_such_package_at_all': mend it"),
    ("def f(:", "SyntaxError"),
    ("1 / 0", "fails when imported: ZeroDivisionError: division by zero: mend it"),
])  # fmt: skip
def test_a_file_that_fails_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    for _ in range(2):  # the half-made module of the first time is not taken for a whole one
        with pytest.raises(ValueError, match=r"bad.py fails when imported") as caught:
            load({"path": f"{tmp_path}/bad.py:f"})
        assert message in str(caught.value)
