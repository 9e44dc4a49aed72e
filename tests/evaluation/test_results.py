"""Records come back as they were written, under a key that changes with whatever would change their numbers."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkd.evaluation.intervals import Estimate
from llmkd.evaluation.results import Metric, Record, Store, fingerprint, key_of, read_record

RECORD = Record(
    task="group/task", version="2", model="0123abcd", settings={"limit": 10, "teacher": "großer Lehrer"},
    metrics={
        "acc": Metric(Estimate(0.5, 0.25, 0.75, 10), "higher"),
        "nll": Metric(Estimate(1 / 3, None, None, 1), "lower", "nats/token"),
        "share": Metric(Estimate(0.1, 0.0, 0.2, 10)),
    },
    details={"curve": [[0, 0.1], [1, None]], "why": "naïve"}, versions={"torch": "2.13.0"}, seconds=1.5,
)  # fmt: skip


def test_record_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path / "eval")
    path = store.write(RECORD)
    assert read_record(path) == RECORD
    assert store.find("group/task", "2", "0123abcd", dict(RECORD.settings)) == RECORD
    assert list(store.records()) == [RECORD]
    assert path.name == f"group__task@{RECORD.key}.json"


@pytest.mark.parametrize(
    ("version", "model", "settings"),
    [("3", "0123abcd", {"limit": 10}), ("2", "0123abce", {"limit": 10}), ("2", "0123abcd", {"limit": 11}),
     ("2", "0123abcd", {"limit": 10, "shots": 0}), ("2", "0123abcd", {}), ("2", "0123abcd", {"limit": "10"})],
    ids=["version", "model", "a setting", "one setting more", "no settings", "text for a number"],
)  # fmt: skip
def test_key_changes_with_what_changes_the_numbers(version: str, model: str, settings: dict[str, Any]) -> None:
    assert key_of(version, model, settings) != key_of("2", "0123abcd", {"limit": 10})


def test_key_does_not_follow_the_order_of_the_settings_nor_the_results() -> None:
    assert key_of("1", "m", {"a": 1, "b": 2}) == key_of("1", "m", {"b": 2, "a": 1})
    assert replace(RECORD, metrics={}, details={}, seconds=9.0).key == RECORD.key


def test_what_was_measured_otherwise_is_not_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(RECORD)
    assert store.find("group/task", "3", RECORD.model, RECORD.settings) is None
    assert store.find("other", "2", RECORD.model, RECORD.settings) is None


def test_two_settings_stand_side_by_side_and_one_is_written_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = replace(RECORD, settings={"limit": 20})
    for record in (RECORD, other, replace(RECORD, seconds=2.0)):
        store.write(record)
    assert sorted(r.seconds for r in store.records()) == [1.5, 2.0]
    assert store.find("group/task", "2", RECORD.model, RECORD.settings).seconds == 2.0


def test_newest_record_is_the_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for n, age in ((1, 100), (2, 300), (3, 200)):
        path = store.write(replace(RECORD, settings={"limit": n}))
        os.utime(path, (1e9 - age, 1e9 - age))
    assert [r.settings["limit"] for r in store.records()] == [2, 3, 1]


@pytest.mark.parametrize("kept", [0, 1, 0.1, 0.5, 0.99], ids=str)
def test_truncated_record_is_named_with_what_to_do(tmp_path: Path, kept: float) -> None:
    path = Store(tmp_path).write(RECORD)
    text = path.read_bytes()
    path.write_bytes(text[: kept if isinstance(kept, int) else int(kept * len(text))])
    with pytest.raises(
        ValueError, match=r"not a result of llmkd-eval .*: delete it, and it is measured again"
    ) as found:
        read_record(path)
    assert str(path) in str(found.value)


@pytest.mark.parametrize(
    "text",
    ["[]", "null", '"text"', "{}", '{"metrics": []}', '{"metrics": {"acc": {}}}', '{"metrics": {}, "other": 1}',
     '{"metrics": {"acc": 1}}', "\xff"],
)  # fmt: skip
def test_json_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "task@0.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"task@0.json: not a result of llmkd-eval"):
        read_record(path)


def test_items_come_back_in_their_order(tmp_path: Path) -> None:
    store = Store(tmp_path)
    items = [{"question": f"Größe {i}?\u2028", "score": i % 3} for i in (5, 1, 4, 2)]
    store.write(RECORD, items)
    assert store.items(RECORD) == items
    assert store.items(replace(RECORD, version="3")) == []


def test_items_of_a_record_that_has_none_any_more_are_gone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(RECORD, [{"score": 1}])
    store.write(RECORD)
    assert store.items(RECORD) == []


def test_files_of_items_are_no_records(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(RECORD, [{"score": 1}])
    assert list(store.records()) == [RECORD]


def test_no_folder_holds_no_records(tmp_path: Path) -> None:
    store = Store(tmp_path / "missing")
    assert list(store.records()) == [] and store.items(RECORD) == []


# -- fingerprints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_fingerprint_changes_with_one_byte_of_the_weights(model: Path) -> None:
    before = fingerprint(model)
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint(model) != before
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_fingerprint_changes_with_config_and_tokenizer(model: Path, name: str) -> None:
    before = fingerprint(model)
    (model / name).write_text((model / name).read_text() + " ")
    assert fingerprint(model) != before


def test_fingerprint_follows_neither_time_nor_place_nor_what_is_no_part_of_a_model(model: Path, tmp_path: Path) -> None:
    before = fingerprint(model)
    os.utime(model / "model.safetensors", (1, 1))
    (model / "README.md").write_text("A card.")
    assert fingerprint(model) == before
    assert fingerprint(Path(shutil.copytree(model, tmp_path / "elsewhere"))) == before


def test_fingerprint_tells_where_a_file_ends(model: Path) -> None:
    """Bytes that move from the end of one file to the start of the next are another model."""
    (model / "a.json").write_text("12")
    (model / "b.json").write_text("3")
    before = fingerprint(model)
    (model / "a.json").write_text("1")
    (model / "b.json").write_text("23")
    assert fingerprint(model) != before


def test_folder_without_weights_has_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no weights .*: give the folder of a saved model"):
        fingerprint(tmp_path)
