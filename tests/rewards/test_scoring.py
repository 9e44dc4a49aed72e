"""Many completions through several rewards: wrong values are named with the sample, and masked or the end."""

import logging
import math
from typing import Any

import numpy as np
import pytest

from llmkd.rewards.scoring import RewardError, references_of, score
from llmkd.rewards.table import Loaded, load


def value(prompt: Any, completion: str, reference: Any) -> Any:
    """What the completion spells."""
    return {"nan": math.nan, "inf": -math.inf, "None": None, "text": "1.0", "list": [1.0], "true": True,
            "numpy": np.float32(0.5), "numpy truth": np.bool_(True), "whole": 3, "huge": 10**400,
            "complex": 1j}.get(completion) if completion != "raise" else 1 / 0  # fmt: skip


def seen(prompt: Any, completion: str, reference: Any) -> float:
    return float(f"{prompt}{completion}{reference}")


def test_a_table_of_rewards_by_samples() -> None:
    rewards = [Loaded("seen", seen), load({"kind": "length", "max_tokens": 4, "buffer": 2})]
    found = score(rewards, ["1", "2"], ["3", "4"], [["5", "6"], [None, None]], tokens=[3, 9])
    assert found.values == [[135.0, 246.0], [-0.5, -1.0]]
    assert found[0] == [135.0, 246.0] and len(found) == 2 and found.failures == []


@pytest.mark.parametrize(
    ("completion", "number"), [("true", 1.0), ("numpy", 0.5), ("numpy truth", 1.0), ("whole", 3.0)]
)
def test_what_is_a_number(completion: str, number: float) -> None:
    found = score([Loaded("value", value)], [""], [completion], [[None]])
    assert found.values == [[number]] and type(found[0][0]) is float


@pytest.mark.parametrize(("completion", "said"), [
    ("nan", "gave nan, which is not finite"), ("inf", "gave -inf, which is not finite"),
    ("None", "gave None (NoneType), which is no number"), ("text", "gave '1.0' (str), which is no number"),
    ("list", "gave [1.0] (list), which is no number"), ("complex", "gave 1j (complex), which is no number"),
    ("raise", "raised ZeroDivisionError: division by zero"), ("huge", "raised OverflowError"),
])  # fmt: skip
def test_a_bad_value_is_masked_and_named_or_the_end(completion: str, said: str) -> None:
    arguments: Any = (["p"] * 3, ["true", completion, "whole"], [[None] * 3])
    found = score([Loaded("value", value)], *arguments)
    assert found.values == [[1.0, None, 3.0]]
    (failure,) = found.failures
    assert (failure.reward, failure.index, failure.completion) == ("value", 1, completion)
    assert str(failure).startswith(f"reward value: sample 1: {said}")
    assert found.masked() == {"value": 1}
    with pytest.raises(
        RewardError, match=r"reward value: sample 1: .*; the run stops, since .* on_error: stop"
    ) as caught:
        score([Loaded("value", value, on_error="stop")], *arguments)
    assert said in str(caught.value)
    assert (caught.value.__cause__ is not None) == ("raised" in said)


def test_a_failure_shows_200_characters_of_the_completion() -> None:
    (failure,) = score([Loaded("seen", seen)], [""], ["x" * 1000], [[""]]).failures
    assert failure.completion == "x" * 200


def test_one_failing_reward_leaves_the_others_alone() -> None:
    found = score([Loaded("a", seen), Loaded("b", value)], ["", ""], ["true", "whole"], [[""] * 2] * 2)
    assert found.values == [[None, None], [1.0, 3.0]]
    assert found.masked() == {"a": 2}


def test_failures_are_logged_three_in_words_and_all_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        score([Loaded("value", value)], [""] * 10, ["nan"] * 10, [[None] * 10])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert lines[2] == "reward value: sample 2: gave nan, which is not finite; the completion begins 'nan': masked"
    assert lines[3] == "rewards: 10 samples masked in this call, 7 of them not shown"


def test_an_interrupt_is_no_failure() -> None:
    def interrupted(prompt: Any, completion: str, reference: Any) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score([Loaded("interrupted", interrupted)], [""], [""], [[None]])


def test_tokens_that_are_needed_are_asked_for_once_and_not_masked() -> None:
    with pytest.raises(ValueError, match="reward length: it needs the number of tokens of each completion"):
        score([load({"kind": "length", "max_tokens": 4})], [""], [""], [[None]])


@pytest.mark.parametrize("wrong", [([""], ["a", "b"], [[None]]), ([""], ["a"], [[None, None]]), ([""], ["a"], [])])
def test_lengths_must_agree(wrong: Any) -> None:
    with pytest.raises(ValueError, match="give one a sample, and a row of references a reward"):
        score([Loaded("seen", seen)], *wrong)


def test_no_samples_are_no_values() -> None:
    assert score([Loaded("seen", seen)], [], [], [[]]).values == [[]]


def test_references_come_from_each_rewards_own_column() -> None:
    rows = [{"answer": "1", "tests": "a"}, {"answer": "2", "tests": "b"}]
    rewards = [load({"kind": "exact"}), load({"kind": "code", "column": "tests"}), load({"kind": "format"})]
    assert references_of(rewards, rows) == [["1", "2"], ["a", "b"], [None, None]]
    with pytest.raises(ValueError, match="reward code: row 0 has no column 'tests', it has answer: name the column"):
        references_of(rewards, [{"answer": "1"}])
