"""length: the soft overlong punishment of DAPO."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkd.rewards.length import length


def test_the_papers_own_numbers() -> None:
    """16384 tokens are free, the penalty of -1 is reached at 20480."""
    found = [length("", "", None, max_tokens=20480, buffer=4096, tokens=n) for n in (0, 16384, 18432, 20480, 20481)]
    assert found == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert length("", "", max_tokens=20480, tokens=18432) == length("", "", max_tokens=20480, buffer=4096, tokens=18432)


@given(st.integers(1, 500), st.integers(0, 1000), st.data())
def test_it_never_rises_and_stays_between_minus_one_and_zero(limit: int, count: int, data: st.DataObject) -> None:
    buffer = data.draw(st.integers(1, limit))
    here, further = (length("", "", max_tokens=limit, buffer=buffer, tokens=n) for n in (count, count + 1))
    assert -1.0 <= further <= here <= 0.0
    assert (here == 0.0) == (count <= limit - buffer)
    assert (here == -1.0) == (count >= limit)


def test_words_and_characters_are_counted_in_the_text() -> None:
    assert length("", "a b\nc  d", max_words=4, buffer=2) == -1.0
    assert length("", "a b\nc", max_words=4, buffer=2) == -0.5
    assert length("", "abc", max_characters=4, buffer=2) == -0.5
    assert length("", "äöü", max_characters=4, buffer=2) == -0.5


def test_characters_cannot_be_hidden_from() -> None:
    """A text without spaces is one word, whatever it holds; it is not one character."""
    one_word = "x" * 10**6
    assert length("", one_word, max_words=10) == 0.0
    assert length("", one_word, max_characters=10**5) == -1.0


@pytest.mark.parametrize(("knobs", "message"), [
    ({}, "length: no maximum given: give one of max_tokens, max_words, max_characters"),
    ({"max_tokens": 5, "max_words": 5}, "length: max_tokens and max_words given: give one of"),
    ({"max_words": 0}, "length: max_words is 0: give at least 1"),
    ({"max_words": 5, "buffer": 6}, "length: buffer is 6: give a number within"),
    ({"max_words": 5, "buffer": 0}, "length: buffer is 0: give a number within"),
    ({"max_tokens": 5}, "length: max_tokens needs the number of tokens"),
])  # fmt: skip
def test_bad_knobs(knobs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        length("", "a", **knobs)
