"""format: sections in tags, or a regular expression."""

import pytest

from llmkd.rewards import bounded
from llmkd.rewards.format import format

RIGHT = "<think>Two and two.</think> <answer>4</answer>"


@pytest.mark.parametrize(
    "completion", [RIGHT, f"\n {RIGHT}\n", RIGHT.replace(" <", "\n\n<"), "<think>1 < 2</think><answer>yes\nno</answer>"]
)
def test_the_form_asked_for(completion: str) -> None:
    assert format("", completion) == 1.0


HOSTILE = [
    "", "4", "<think></think><answer></answer>", "<think> </think><answer>4</answer>", "<think>a</think>",
    "<answer>4</answer>", "<answer>4</answer><think>a</think>", f"Sure! {RIGHT}", f"{RIGHT} That is it.",
    f"{RIGHT}{RIGHT}", "<think>a</think> so <answer>4</answer>", "<think>a<answer>4</answer></think>",
    "<think>a</think><answer>4", "<think>a</think><answer>4</answer><answer>5</answer>",
    "<think><think>a</think></think><answer>4</answer>", "<think>a</think><answer>4</think></answer>",
    "<THINK>a</THINK><ANSWER>4</ANSWER>", "<think >a</think><answer>4</answer>", "</think>a<think><answer>4</answer>",
    "<think>" * 10**5, "<think>a</think><answer>" * 10**5,
]  # fmt: skip


@pytest.mark.parametrize("completion", HOSTILE, ids=range(len(HOSTILE)))
def test_no_reward_for_another_form(completion: str) -> None:
    assert format("", completion) == 0.0


def test_tags_of_ones_own() -> None:
    text = "<plan>a</plan><code>b</code><test>c</test>"
    assert format("", text, tags=["plan", "code", "test"]) == 1.0
    assert format("", text, tags=["code", "plan", "test"]) == format("", text) == 0.0


def test_a_pattern_matches_from_end_to_end() -> None:
    pattern = r"Reasoning:.+\nAnswer: \d+"
    assert format("", "Reasoning: a\nb\nAnswer: 42", pattern=pattern) == 1.0
    assert format("", "Reasoning: a\nb\nAnswer: 42 or 43", pattern=pattern) == 0.0
    assert format("", "So. Reasoning: a\nAnswer: 42", pattern=pattern) == 0.0


@pytest.mark.timeout(60)
def test_a_catastrophic_pattern_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "CPU_SECONDS", 1)
    assert format("", "a" * 50, pattern=r"(a|aa)+b") == 0.0
    assert format("", "ab", pattern=r"(a|aa)+b") == 1.0


def test_a_huge_completion_is_not_tried() -> None:
    assert format("", "a" * 200_001, pattern="a*") == 0.0


def test_a_lone_surrogate_is_text() -> None:
    assert format("", "\ud800", pattern=".") == 1.0


@pytest.mark.parametrize("tags", [[], "think", ["a", "a"], ["<a>"], [""]])
def test_tags_that_are_none_are_refused(tags: object) -> None:
    with pytest.raises(ValueError, match=r"format: tags is .*: give"):
        format("", RIGHT, tags=tags)  # type: ignore[arg-type]


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="is no regular expression"):
        format("", "a", pattern="(a")
