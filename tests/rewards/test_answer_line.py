"""The line `Answer: ...` at the end of a completion."""

import pytest

from llmkd.rewards.answer_line import answer_line


@pytest.mark.parametrize(
    "completion", ["Answer: a b", "so\nanswer:a b", "so\r\n \tANSWER: \t a b \r\n\n", "Answer:a b"]
)
def test_the_answer_is_what_follows_the_label_in_the_last_line(completion):
    assert answer_line(completion, 100) == "a b"


def test_the_longest_answer_is_counted_without_the_spaces_around_it():
    assert answer_line("Answer:    abc   ", 3) == "abc"
    assert answer_line("Answer: abcd", 3) is None


@pytest.mark.parametrize(
    "completion",
    [
        None, 5, "", "a", "Answer:", "Answer: \n", "The Answer: a", "Answer: a\nb", "Answer: a\nAnswer: a",
        "answer: a\nAnswer: a", "Answer: Answer: a", "Answer: \u00e4", "Answer: a\x07", "Answer: a\u2028b",
        "Answer\uff1a a", "Answer : a",
    ],
)  # fmt: skip
def test_whatever_is_not_one_printable_answer_at_the_end_is_none(completion):
    assert answer_line(completion, 100) is None
