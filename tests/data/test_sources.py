import gzip
import json
import re
from types import SimpleNamespace

import pytest
from datasets import Dataset, IterableDataset

from llmkd.data.sources import load

WHERE = "data.datasets.0"


def source(path, **fields):
    defaults = {
        "name": None, "split": "train", "domain": "all", "weight": None, "data_files": None, "streaming": False,
        "max_rows": None, "columns": None,
    }  # fmt: skip
    return SimpleNamespace(path=str(path), **(defaults | fields))


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


TEXTS = [{"text": f"row {number}"} for number in range(20)]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(TEXTS))
    return path


def refused(path, **fields):
    with pytest.raises(ValueError) as error:
        load(source(path, **fields), where=WHERE)
    assert str(error.value).startswith(WHERE)
    return str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_every_kind_of_file_gives_its_rows(tmp_path, suffix, streaming):
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        Dataset.from_list(TEXTS).to_parquet(path)
    elif suffix == ".json":
        path.write_text(json.dumps(TEXTS))
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines(TEXTS).encode()))
    else:
        path.write_text(lines(TEXTS))
    dataset = load(source(path, streaming=streaming), where=WHERE)
    assert list(dataset) == TEXTS
    assert isinstance(dataset, IterableDataset) == streaming


@pytest.mark.parametrize("streaming", [False, True])
def test_txt_is_one_row_or_one_a_document(tmp_path, streaming):
    whole, split = tmp_path / "whole.txt", tmp_path / "split.txt"
    whole.write_text("one\n\ntwo\n")
    split.write_text("one\n\nmore\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    assert list(load(source(whole, streaming=streaming), where=WHERE)) == [{"text": "one\n\ntwo"}]
    rows = list(load(source(split, streaming=streaming), where=WHERE))
    assert rows == [{"text": "one\n\nmore"}, {"text": "two"}]


def test_txt_that_changes_is_read_again(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    load(source(path), where=WHERE)
    path.write_text("another")
    assert load(source(path), where=WHERE)["text"][:] == ["another"]


def test_slices_of_a_local_file_part_it(jsonl):
    train = load(source(jsonl, split="train[:95%]"), where=WHERE)["text"][:]
    held_out = load(source(jsonl, split="train[95%:]"), where=WHERE)["text"][:]
    assert train + held_out == [row["text"] for row in TEXTS] and len(held_out) == 1
    assert load(source(jsonl, split="train[3:5]"), where=WHERE)["text"][:] == ["row 3", "row 4"]


@pytest.mark.parametrize("streaming", [False, True])
def test_max_rows(jsonl, streaming):
    assert len(list(load(source(jsonl, max_rows=3, streaming=streaming), where=WHERE))) == 3
    assert len(list(load(source(jsonl, max_rows=300, streaming=streaming), where=WHERE))) == 20


def test_folder_takes_the_files_of_the_split(tmp_path):
    for name, rows in {"train-0": TEXTS[:5], "train-1": TEXTS[5:8], "test": TEXTS[8:]}.items():
        (tmp_path / f"{name}.jsonl").write_text(lines(rows))
    (tmp_path / "README.md").write_text("about")
    assert list(load(source(tmp_path), where=WHERE)) == TEXTS[:8]
    assert list(load(source(tmp_path, split="test"), where=WHERE)) == TEXTS[8:]
    assert list(load(source(tmp_path, data_files="*-1.jsonl"), where=WHERE)) == TEXTS[5:8]
    assert list(load(source(tmp_path, data_files={"train": ["train-1.jsonl"]}), where=WHERE)) == TEXTS[5:8]
    assert "no file in" in refused(tmp_path, split="validation")
    assert "matches" in refused(tmp_path, data_files="*.parquet")


def test_folder_saved_to_disk(tmp_path):
    Dataset.from_list(TEXTS).save_to_disk(tmp_path / "saved")
    assert list(load(source(tmp_path / "saved", split="train[:2]"), where=WHERE)) == TEXTS[:2]


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_are_renamed_and_make_the_format(tmp_path, streaming):
    path = tmp_path / "qa.jsonl"
    path.write_text(lines([{"question": "q", "answer": "a", "text": "other", "messages": [{"role": "user"}]}]))
    wanted = {"prompt": "question", "completion": "answer"}
    rows = list(load(source(path, columns=wanted, streaming=streaming), where=WHERE))
    assert rows == [{"prompt": "q", "completion": "a"}]
    row = next(iter(load(source(path, columns={"text": "answer"}, streaming=streaming), where=WHERE)))
    assert row == {"text": "a"}


def test_missing_column(jsonl):
    message = refused(jsonl, columns={"text": "txt"})
    assert message == f"{WHERE}.columns: there is no column 'txt'; found ['text']; did you mean 'text'?"


def test_columns_of_no_format(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines([{"body": "x", "prompt": "y"}]))
    assert "found the columns ['body', 'prompt']; accepted are `messages` | `prompt`" in refused(path)


def test_missing_file_names_the_nearest(jsonl):
    assert "that folder has rows.jsonl" in refused(jsonl.with_name("row.jsonl"))
    assert "nor its folder" in refused(jsonl.parent / "no" / "rows.jsonl")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.txt"])
def test_empty_file(tmp_path, name, streaming):
    (tmp_path / name).write_text("")
    assert "the data set is empty" in refused(tmp_path / name, streaming=streaming)


def test_empty_slice(jsonl):
    assert "the data set is empty" in refused(jsonl, split="train[:1%]")


def test_damaged_jsonl_names_file_and_line(jsonl):
    jsonl.write_text(lines(TEXTS) + '{"text": "cut o')
    assert f"{jsonl}: line 21: not JSON" in refused(jsonl)
    jsonl.write_text(lines(TEXTS) + "[1, 2]\n")
    assert f"{jsonl}: line 21: not an object" in refused(jsonl)


def test_truncated_and_damaged_gz(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    data = gzip.compress(lines(TEXTS * 50).encode())
    path.write_bytes(data[:-20])
    assert re.search(r"rows.jsonl.gz: line \d+: the compressed file ends too early", refused(path))
    path.write_bytes(b"not gzip at all")
    assert "rows.jsonl.gz: line 1: the compressed file is damaged" in refused(path)


def test_damaged_json_and_parquet(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "x"},\n {"text": ')
    assert "a.json: line 2: not JSON" in refused(tmp_path / "a.json")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    assert "a.parquet: not a whole parquet file" in refused(tmp_path / "a.parquet")


def test_unknown_kind_and_mixed_kinds(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    assert "is of no known kind" in refused(tmp_path / "a.csv")
    assert "holds no file of the kinds" in refused(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_text(lines(TEXTS))
    assert "files of several kinds (.jsonl, .txt)" in refused(tmp_path)


def test_bad_splits(jsonl):
    assert "is not a slice" in refused(jsonl, split="train[a:b]")
    assert "a stream cannot be sliced" in refused(jsonl, split="train[:5]", streaming=True)


def test_hub_name_offline_is_one_message():
    message = refused("no-such-owner/no-such-data")
    assert "is no local file or folder, and as a data set of the hub it cannot be loaded" in message
    assert "\n" not in message


def test_embedded_corpus():
    dataset = load(source("llmkd/quickstart", name="math", split="heldout", max_rows=2), where=WHERE)
    assert len(dataset) == 2
    refused("llmkd/quickstart", name="poetry")


@pytest.mark.assets
def test_real_files(assets):
    gsm8k = assets / "data/math/gsm8k_train.jsonl.gz"
    wanted = {"prompt": "question", "completion": "answer"}
    assert load(source(gsm8k, columns=wanted, max_rows=5), where=WHERE).column_names == ["prompt", "completion"]
    assert len(load(source(assets / "data/corpora/tinystories_sample.txt"), where=WHERE)) == 5
