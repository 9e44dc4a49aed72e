"""What a recipe may say of its rewards."""

from typing import Any

import pytest
from pydantic import ValidationError

from llmkd.config import from_dict
from llmkd.config.reward_kinds import REWARD_KINDS
from llmkd.config.rewards_section import Reward
from llmkd.config.rules_of_rewards import reward_problems

from config_recipe import plain, problems


def said(*rewards: dict[str, Any]) -> list[str]:
    """Every broken rule of a list of rewards, a line each."""
    found = reward_problems([Reward.model_validate(reward) for reward in rewards])
    return [f"{path}: {sentence}" for path, sentence in found]


def in_recipe(*rewards: Any) -> dict[str, Any]:
    data = plain()
    data["train"] = {"method": "rl"}
    data["objective"] = {"terms": {"policy": {"term": "grpo"}}}
    data["rewards"] = list(rewards)
    return data


MATH = {"kind": "math", "correct": True}


@pytest.mark.parametrize("rewards", [
    [], [MATH], [MATH, {"kind": "length", "weight": 0.1, "max_tokens": 512}],
    [{"path": "my_pkg.rewards.fmt"}], [{"path": "path/to/my rewards.py:fmt", "anything": [1, {"a": None}]}],
    [{"kind": "math"}, {"kind": "math", "name": "boxed", "forms": ["boxed"], "column": "solution"}],
    [{"kind": "length", "weight": -0.5, "max_words": 10, "buffer": 3}], [{"kind": "code", "timeout": 3, "memory": 512}],
    [{"kind": "format", "pattern": ".*"}], [{"kind": "countdown", "on_error": "stop"}],
    [{"path": "a.b", "correct": True}],
])  # fmt: skip
def test_rewards_that_are_fine(rewards: list[dict[str, Any]]) -> None:
    assert said(*rewards) == []


@pytest.mark.parametrize(("rewards", "problem"), [
    ([{}], "rewards.0: neither of kind and path is given: give one of them"),
    ([{"kind": "math", "path": "a.b"}], "rewards.0: both of kind and path is given: give one of them"),
    ([MATH, {"kind": "exact", "correct": True}],
     "rewards: math, exact all have correct: true: leave it to the one that says what is right"),
    ([{"kind": "math"}, {"kind": "math"}], "rewards.1.name: 'math' is the name of another reward: give each its own"),
    ([{"kind": "exact"}, {"path": "a.exact"}], "rewards.1.name: 'exact' is the name of another reward"),
    ([{"kind": "math", "name": "a/b"}], "rewards.0.name: 'a/b' is not a name: use letters, digits, _ and - only"),
    ([{"kind": "math", "weight": 0}], "rewards: every weight is 0, so nothing is rewarded"),
    ([{"kind": "math", "column": None}], "rewards.0.column: null, but math reads a reference: name the column"),
    ([{"kind": "format", "correct": True}], "rewards.0.correct: true, but format reads no reference, so it cannot"),
    ([{"path": "fmt"}], "rewards.0.path: 'fmt' is no function: write package.module.function or file.py:function"),
    ([{"path": "a.py"}, {"path": "file.txt:f", "name": "g"}], "rewards.1.path: 'file.txt:f' is no function"),
    ([{"kind": "math", "form": ["boxed"]}], "rewards.0.form: is not a knob of math: did you mean forms?"),
    ([{"kind": "math", "zzz": 1}], "rewards.0.zzz: is not a knob of math: allowed are forms"),
    ([{"kind": "arithmetic", "zzz": 1}], "rewards.0.zzz: is not a knob of arithmetic: it takes none"),
    ([{"kind": "math", "forms": "boxed"}], "rewards.0.forms: 'boxed' is not a list of texts: give a list of texts"),
    ([{"kind": "math", "forms": []}], "rewards.0.forms: [] is not a list of texts"),
    ([{"kind": "math", "forms": ["box"]}], "rewards.0.forms: 'box' is not one of boxed, answer: give some of them"),
    ([{"kind": "length"}], "rewards.0: length: no maximum given: give one of max_tokens, max_words, max_characters"),
    ([{"kind": "length", "max_words": 1, "max_tokens": 1}], "rewards.0: length: max_tokens and max_words given: give"),
    ([{"kind": "length", "max_words": 0}], "rewards.0.max_words: 0 is outside [1, inf): give a number inside it"),
    ([{"kind": "length", "max_words": 1.5}], "rewards.0.max_words: 1.5 is not a whole number: give a whole number"),
    ([{"kind": "length", "max_words": True}], "rewards.0.max_words: true is not a whole number"),
    ([{"kind": "code", "timeout": float("nan")}], "rewards.0.timeout: NaN is outside (0, 600]: give a number"),
    ([{"kind": "code", "partial": 1}], "rewards.0.partial: 1 is not true or false: give true or false"),
    ([{"kind": "format", "pattern": ""}], "rewards.0.pattern: '' is not text: give text"),
])  # fmt: skip
def test_what_is_said_of_rewards_that_are_wrong(rewards: list[dict[str, Any]], problem: str) -> None:
    lines = said(*rewards)
    assert len(lines) == 1, lines
    assert lines[0].startswith(problem)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_is_finite(weight: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Reward(kind="math", weight=weight)


@pytest.mark.parametrize(("reward", "line"), [
    ({"kind": "maths"}, "x.yaml: rewards.0.kind: 'maths' is not one of math, code, format,"),
    ({"kind": "math", "weight": "much"}, "x.yaml: rewards.0.weight: 'much' is not a number"),
    ({"kind": "math", "weight": float("inf")}, "x.yaml: rewards.0.weight: Infinity is not finite: give a finite"),
    ({"kind": "math", "correct": 1}, "x.yaml: rewards.0.correct: 1 is not true or false"),
    ({"kind": "math", "on_error": "skip"}, "x.yaml: rewards.0.on_error: 'skip' is not one of mask, stop"),
    ("math", "x.yaml: rewards.0: 'math' is not a mapping: give a mapping with the keys kind, path, name, weight,"),
    ({"kind": "math", "zzz": 1}, "x.yaml: rewards.0.zzz: is not a knob of math: allowed are forms"),
])  # fmt: skip
def test_the_recipe_says_where_the_reward_is_wrong(reward: Any, line: str) -> None:
    lines = problems(in_recipe(reward), None)
    assert len(lines) == 1, lines
    assert lines[0].startswith(line)


def test_a_recipe_comes_back_from_its_own_dict() -> None:
    rewards = [MATH, {"kind": "length", "weight": "1e-1", "max_tokens": 512}, {"path": "a.b", "knob": {"c": [1]}}]
    recipe = from_dict(in_recipe(*rewards), source="x.yaml")
    assert [reward.label for reward in recipe.rewards] == ["math", "length", "b"]
    assert [reward.knobs for reward in recipe.rewards] == [{}, {"max_tokens": 512}, {"knob": {"c": [1]}}]
    assert [reward.column for reward in recipe.rewards] == ["answer", None, "answer"]
    assert recipe.rewards[1].weight == 0.1
    assert from_dict(recipe.to_dict(), source="y.yaml") == recipe


def test_a_share_is_not_binary() -> None:
    assert REWARD_KINDS["code"].is_binary({}) and not REWARD_KINDS["code"].is_binary({"partial": True})
    assert REWARD_KINDS["programs"].is_binary({"compression": False})
    assert not REWARD_KINDS["programs"].is_binary({"compression": True})
    assert not REWARD_KINDS["length"].is_binary({"max_words": 1})
