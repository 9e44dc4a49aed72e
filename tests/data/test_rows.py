import logging

import numpy as np
import pytest
from datasets import Dataset

from llmkd.data.rows import tokenise

from chat_tokenizer import CHATML, LINES, MARKED, chat_tokenizer

TEXT = "the cat sat on the mat, thé 😀 answer is here. " * 3
CHAT = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "the cat"},
    {"role": "user", "content": "what is this?"},
    {"role": "assistant", "content": "this is the mat"},
]
# Another framing of the same words, ended by another token, behind a beginning of sequence.
OWN = MARKED.replace("{{ '</s>\n' }}", "{{ '</s>' }}")


def texts(*rows):
    return Dataset.from_list([{"text": row} for row in rows])


def chats(*rows):
    return Dataset.from_list([{"messages": row} for row in rows])


def chosen(row, mask, ids="input_ids"):
    return np.array(row[ids])[np.array(row[mask]) == 1].tolist()


def test_columns_and_first_token():
    rows = tokenise(texts("the cat", TEXT), chat_tokenizer(), max_length=None, domain_id=3)
    assert rows.column_names == ["input_ids", "counted", "seq_lengths", "domains", "n_bytes"]
    for row in rows:
        assert len(row["input_ids"]) == len(row["counted"]) == row["seq_lengths"][0]
        assert row["domains"] == [3] and row["counted"][0] == 0 and all(row["counted"][1:])


@pytest.mark.parametrize("bos", [False, True])
def test_split_counts_every_token_once(bos):
    tokenizer = chat_tokenizer(bos=bos)
    whole = tokenise(texts(TEXT), tokenizer, max_length=None)[0]
    for limit in (2, 3, 7, 16):
        windows = list(tokenise(texts(TEXT), tokenizer, max_length=limit, over_long="split"))
        assert max(len(window["input_ids"]) for window in windows) <= limit
        assert [token for window in windows for token in chosen(window, "counted")] == chosen(whole, "counted")
        assert sum(window["n_bytes"] for window in windows) == whole["n_bytes"]
        assert all(window["counted"][0] == 0 for window in windows)


def test_truncation_keeps_either_end():
    tokenizer = chat_tokenizer()
    whole = tokenise(texts(TEXT), tokenizer, max_length=None)[0]["input_ids"]
    start = tokenise(texts(TEXT), tokenizer, max_length=5)[0]
    end = tokenise(texts(TEXT), tokenizer, max_length=5, truncation_mode="keep_end")[0]
    assert start["input_ids"] == whole[:5] and end["input_ids"] == whole[-5:]
    assert start["counted"] == end["counted"] == [0, 1, 1, 1, 1]
    assert start["n_bytes"] == len(tokenizer.decode(whole[1:5]).encode())


@pytest.mark.parametrize(
    ("over_long", "left", "said"), [("truncate", 3, "truncated"), ("drop", 2, "dropped"), ("split", None, "split")]
)
def test_over_long_rows_are_counted_and_said(over_long, left, said, caplog):
    with caplog.at_level(logging.WARNING, "llmkd"):
        rows = tokenise(texts("the", TEXT, "cat"), chat_tokenizer(), max_length=8, over_long=over_long, where="data.0")
    assert left is None or len(rows) == left
    assert caplog.messages == [f"data.0: 1 of 3 rows are longer than max_length 8 and were {said}"]


def test_over_long_error_names_the_row():
    with pytest.raises(ValueError, match=r"data.0: row 1 has \d+ tokens, more than max_length 8"):
        tokenise(texts("the", TEXT), chat_tokenizer(), max_length=8, over_long="error", where="data.0")


def test_rows_without_counted_tokens_stay_unless_all_are():
    users = [{"role": "user", "content": "Hello"}]
    rows = tokenise(chats(users, CHAT), chat_tokenizer(), max_length=None)
    assert len(rows) == 2 and not any(rows[0]["counted"])
    with pytest.raises(ValueError, match=r"data.0: none of the 2 rows has a counted token"):
        tokenise(chats(users, users), chat_tokenizer(), max_length=None, where="data.0")


def test_max_length_of_one_is_refused():
    with pytest.raises(ValueError, match="max_length 1 leaves no counted token"):
        tokenise(texts("the"), chat_tokenizer(), max_length=1)


def test_streams_give_the_same_rows():
    tokenizer = chat_tokenizer()
    for dataset in (texts("the cat", TEXT), chats(CHAT, CHAT[:2])):
        rows = tokenise(dataset, tokenizer, max_length=20)
        assert list(tokenise(dataset.to_iterable_dataset(num_shards=1), tokenizer, max_length=20)) == list(rows)


def test_cache_key_is_that_of_tokenizer_and_settings():
    dataset = texts("the cat", TEXT)
    keys = [
        tokenise(dataset, tokenizer, max_length=limit)._fingerprint
        for tokenizer, limit in [(chat_tokenizer(), 8), (chat_tokenizer(), 8), (chat_tokenizer(), 9)]
    ]
    assert keys[0] == keys[1] != keys[2]
    assert tokenise(dataset, chat_tokenizer(OWN), max_length=8)._fingerprint != keys[0]


@pytest.mark.parametrize("num_proc", [None, 2])
def test_processes_change_nothing(num_proc):
    dataset = chats(*[CHAT] * 1000)
    rows = tokenise(dataset, chat_tokenizer(), max_length=64, num_proc=num_proc)
    assert len(rows) == 1000 and rows[0] == rows[999]


@pytest.mark.parametrize("limit", [None, 40, 25, 18])
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_own_rendering_shares_the_words_but_not_another_end(limit, mode):
    student, teacher = chat_tokenizer(CHATML), chat_tokenizer(OWN, eos="</s>", bos=True)
    row = tokenise(chats(CHAT), student, max_length=limit, teachers={"big": teacher}, truncation_mode=mode)[0]
    shared, scored = chosen(row, "shared@big"), chosen(row, "counted@big", "input_ids@big")
    assert shared == scored
    assert set(np.flatnonzero(row["shared@big"])) <= set(np.flatnonzero(row["counted"]))
    assert student.eos_token_id not in shared and student.eos_token_id not in scored
    assert len(row["input_ids@big"]) == row["seq_lengths@big"][0] <= (limit or 1000)
    if limit is None:
        assert student.decode(shared) == "the catthis is the mat"
        assert row["input_ids@big"] == teacher.apply_chat_template(CHAT)["input_ids"]
    assert row["counted@big"][0] == 0


def test_own_rendering_that_is_the_same_shares_everything():
    student = chat_tokenizer()
    row = tokenise(chats(CHAT), student, max_length=None, teachers={"big": chat_tokenizer()})[0]
    assert row["shared@big"] == row["counted"] == row["counted@big"]


@pytest.mark.parametrize(("ours", "theirs"), [(False, True), (True, False), (True, True)])
def test_own_rendering_of_plain_text_with_another_beginning(ours, theirs):
    student, teacher = chat_tokenizer(bos=ours), chat_tokenizer(bos=theirs)
    whole = tokenise(texts(TEXT), student, max_length=None, teachers={"t": teacher})[0]
    windows = tokenise(texts(TEXT), student, max_length=10, over_long="split", teachers={"t": teacher})
    for row in (whole, *windows):
        assert chosen(row, "shared@t") == chosen(row, "counted@t", "input_ids@t")
        assert len(row["input_ids@t"]) <= (10 if row is not whole else 1000)
    assert [token for row in windows for token in chosen(row, "shared@t")] == chosen(whole, "shared@t")


def test_own_rendering_that_changes_the_words_is_refused():
    teacher = chat_tokenizer(CHATML.replace("message['content']", "message['content'] | replace('mat', 'rat')"))
    with pytest.raises(ValueError, match=r"row 1: turn 1: counted token 3 is .* teacher 'big'.*template: student"):
        tokenise(chats(CHAT[:2], CHAT), chat_tokenizer(), max_length=None, teachers={"big": teacher})


def test_own_rendering_by_another_tokenizer_is_refused():
    teacher = chat_tokenizer(lines=[line[::-1] for line in LINES])
    with pytest.raises(ValueError, match="row 0: turn 0: counted token 0 is 'the' "):
        tokenise(chats(CHAT), chat_tokenizer(), max_length=None, teachers={"big": teacher})
