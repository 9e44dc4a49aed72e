"""Every mistake ends a run with exit code 2 and one message: where it is, what it is, what to do; never a traceback.

The recipe's own mistakes are in test_config_errors.py; a full disk and Ctrl-C are in test_interruptions.py.
"""

import gzip
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from llmkd import config
from llmkd.trainers.settings import settings_of, train_fields

from runs import (
    held_out,
    main_with,
    make_inputs,
    one_message,
    prose,
    recipe,
    write_rows,
)
from tiny import tiny_llama, tiny_tokenizer

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def refused(inputs: Path, tmp_path: Path, capsys: Capture) -> Any:
    """Run the recipe with changes; the one message that it is refused with."""

    def run(changes: dict[str, Any]) -> str:
        assert main_with(recipe(inputs, tmp_path / "run", {"train.max_steps": 1, **changes})) == 2
        return one_message(capsys)

    return run


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("student.model_name_or_path", "student.model_name_or_path"),
        ("teachers.0.model_name_or_path", "teachers.teacher"),
    ],
)
def test_missing_model_folder(refused: Any, tmp_path: Path, key: str, place: str) -> None:
    message = refused({key: str(tmp_path / "nothing")})
    assert place in message and str(tmp_path / "nothing") in message and "is not a folder" in message


def test_folder_without_a_model(refused: Any, inputs: Path, tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path / "half")
    message = refused({"student.model_name_or_path": str(tmp_path / "half")})
    assert "student.model_name_or_path" in message and "cannot be loaded" in message


def test_damaged_weights(refused: Any, inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs / "teacher", tmp_path / "teacher")
    whole = (tmp_path / "teacher" / "model.safetensors").read_bytes()
    (tmp_path / "teacher" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    message = refused({"teachers.0.model_name_or_path": str(tmp_path / "teacher")})
    assert "teachers.teacher" in message and str(tmp_path / "teacher") in message


def test_model_and_tokenizer_that_do_not_belong_together(refused: Any, inputs: Path, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "small", vocab=300)
    changes = {
        "student.model_name_or_path": str(tmp_path / "small"),
        "student.tokenizer_name_or_path": str(inputs / "student"),
    }
    message = refused(changes)
    assert "384" in message and "300" in message and "tokenizer" in message


def test_unknown_key_of_a_fresh_model(refused: Any, inputs: Path) -> None:
    fresh = {"model_type": "llama", "hiden_size": 32}
    message = refused({"student": {"from_config": fresh, "tokenizer_name_or_path": str(inputs / "student")}})
    assert "student.from_config.hiden_size" in message and "LlamaConfig" in message


def test_lora_modules_that_the_model_does_not_have(refused: Any) -> None:
    message = refused({"student.lora": {"target_modules": ["q_proj", "c_attn"]}})
    assert "student.lora.target_modules" in message and "'c_attn'" in message and "q_proj, k_proj" in message


def test_adapter_on_the_head(refused: Any) -> None:
    message = refused({"student.lora": {"target_modules": ["q_proj", "lm_head"]}})
    assert "lm_head" in message and "target_modules" in message


def changed_tokenizer(folder: Path, inputs: Path, **changes: Any) -> Path:
    """The student's tokenizer with other entries in its tokenizer_config.json; None takes one out."""
    AutoTokenizer.from_pretrained(inputs / "student").save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return folder


def test_tokenizer_without_pad_works(inputs: Path, tmp_path: Path) -> None:
    folder = changed_tokenizer(tmp_path / "tokenizer", inputs, pad_token=None)
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    data = recipe(inputs, tmp_path / "run", {"student.tokenizer_name_or_path": str(folder), "train.max_steps": 1})
    assert main_with(data) == 0
    saved = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert saved.pad_token == saved.eos_token == "<|end|>"


def test_tokenizer_without_eos_is_refused(refused: Any, inputs: Path, tmp_path: Path) -> None:
    folder = changed_tokenizer(tmp_path / "tokenizer", inputs, eos_token=None)
    message = refused({"student.tokenizer_name_or_path": str(folder)})
    assert "student.tokenizer_name_or_path" in message and str(folder) in message and "no EOS token" in message


def test_messages_without_a_chat_template(refused: Any, inputs: Path, tmp_path: Path) -> None:
    folder = changed_tokenizer(tmp_path / "tokenizer", inputs)
    (folder / "chat_template.jinja").unlink()
    message = refused({"student.tokenizer_name_or_path": str(folder)})
    assert "data.datasets.1" in message and "chat template" in message and "student.chat_template" in message


def test_teacher_smaller_than_the_student_is_a_warning(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swapped = {
        "student.model_name_or_path": str(inputs / "teacher"),
        "teachers.0.model_name_or_path": str(inputs / "student"), "train.max_steps": 1,
    }  # fmt: skip
    assert main_with(recipe(inputs, tmp_path / "run", swapped)) == 0
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "fewer" in r.getMessage()]
    assert len(warnings) == 1 and "teachers.teacher" in warnings[0] and "the wrong way round" in warnings[0]


# -- data --------------------------------------------------------------------------------------------------------------


def test_missing_data_file(refused: Any, inputs: Path) -> None:
    message = refused({"data.datasets.0.path": str(inputs / "prosa.jsonl")})
    assert "data.datasets.0.path" in message and "prosa.jsonl" in message and "prose.jsonl" in message


def test_missing_held_out_file(refused: Any, inputs: Path) -> None:
    message = refused({"eval.datasets": [{"path": str(inputs / "held.jsonl")}]})
    assert "eval.datasets.0.path" in message and "held_prose.jsonl" in message


def test_missing_column(refused: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}] * 3)
    message = refused({"data.datasets": [{"path": str(path)}]})
    assert "data.datasets.0" in message and "'answer', 'question'" in message and "columns: {ours: theirs}" in message


def test_misspelt_column(refused: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}] * 3)
    columns = {"prompt": "question", "completion": "anwser"}
    message = refused({"data.datasets": [{"path": str(path), "columns": columns}]})
    assert "data.datasets.0.columns" in message and "did you mean 'answer'?" in message


@pytest.mark.parametrize("content", ["", "\n\n"], ids=["no bytes", "blank lines"])
def test_empty_data_set(refused: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    message = refused({"data.datasets": [{"path": str(tmp_path / "rows.jsonl")}]})
    assert "data.datasets.0" in message and "empty" in message


def test_rows_without_a_counted_token(refused: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "hello"}]}] * 3)
    message = refused({"data.datasets": [{"path": str(path)}]})
    assert "data.datasets.0" in message and "none of the 3 rows has a counted token" in message


def test_corrupt_line_is_named(refused: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", prose(5))
    lines = path.read_text().splitlines()
    lines[2] = '{"text": "no end'
    path.write_text("\n".join(lines))
    message = refused({"data.datasets": [{"path": str(path)}]})
    assert f"data.datasets.0: {path}: line 3: not JSON" in message


def test_truncated_gz(refused: Any, tmp_path: Path) -> None:
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in prose(400)).encode())
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    message = refused({"data.datasets": [{"path": str(tmp_path / "rows.jsonl.gz")}]})
    assert "data.datasets.0" in message and "rows.jsonl.gz" in message and "truncated" in message


def test_data_set_of_the_hub_without_a_network(refused: Any) -> None:
    message = refused({"data.datasets": [{"path": "nobody/no-such-data"}]})
    assert "data.datasets.0.path" in message and "'nobody/no-such-data' is no local file or folder" in message


LONG = 12


@pytest.mark.parametrize(("over_long", "word"), [("truncate", "truncated"), ("drop", "dropped"), ("split", "split")])
def test_over_long_rows_are_counted_in_a_warning(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, over_long: str, word: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(inputs / "student")
    longer = sum(len(tokenizer(row["text"])["input_ids"]) + 1 > LONG for row in prose(60))
    assert 0 < longer < 60
    changes = {
        "data.datasets": [{"path": str(inputs / "prose.jsonl")}], "train.max_length": LONG, "train.max_steps": 1,
        "train.over_long": over_long,
    }  # fmt: skip
    assert main_with(recipe(inputs, tmp_path / "run", changes)) == 0
    warnings = [r.getMessage() for r in caplog.records if "max_length" in r.getMessage()]
    assert warnings == [f"data.datasets.0: {longer} of 60 rows are longer than max_length {LONG} and were {word}"]


def test_over_long_rows_are_refused_when_told_so(refused: Any) -> None:
    message = refused({"train.max_length": LONG, "train.over_long": "error"})
    assert "data.datasets.0: row " in message and f"more than max_length {LONG}" in message
    assert "train.max_length" in message and "train.over_long" in message


# -- the machine and the trainer ---------------------------------------------------------------------------------------


def test_fp16_on_a_cpu_is_refused(refused: Any) -> None:
    message = refused({"train.fp16": True})
    assert "train.fp16" in message and "use bf16" in message


def test_bf16_on_a_gpu_without_it_is_refused(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: False)
    data = recipe(inputs, tmp_path / "run", {"train.bf16": True, "train.use_cpu": None})
    with pytest.raises(ValueError, match=r"train\.bf16: this GPU has no bfloat16: use fp16"):
        settings_of(config.from_dict(data, train_fields=train_fields()))


def test_wrong_world_size_is_a_warning(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main_with(recipe(inputs, tmp_path / "run", {"run.world_size": 4, "train.max_steps": 1})) == 0
    warnings = [r.getMessage() for r in caplog.records if "world_size" in r.getMessage()]
    assert len(warnings) == 1 and "4 processes" in warnings[0] and "run of 1" in warnings[0]
    caplog.clear()
    assert main_with(recipe(inputs, tmp_path / "right", {"run.world_size": 1, "train.max_steps": 1})) == 0
    assert "world_size" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.metric_for_best_model": "eval/poetry/kl"}, ["train.metric_for_best_model", "eval/mean/kl"]),
        ({"train.load_best_model_at_end": True, "train.save_strategy": "steps"}, ["metric_for_best_model"]),
        ({"train.early_stopping_patience": 2}, ["early_stopping_patience", "metric_for_best_model"]),
        (
            {
                "train.early_stopping_patience": 2, "train.metric_for_best_model": "eval/mean/kl",
                "train.eval_strategy": "no",
            },
            ["early_stopping_patience", "eval_strategy"],
        ),
    ],
    ids=["unmeasured", "best of nothing", "patience alone", "never evaluated"],
)  # fmt: skip
def test_best_checkpoint_by_what_is_not_measured(
    refused: Any, inputs: Path, changes: dict[str, Any], words: list[str]
) -> None:
    message = refused(
        {"eval.datasets": held_out(inputs), "train.eval_strategy": "steps", "train.eval_steps": 1, **changes}
    )
    assert all(word in message for word in words)


def test_evaluation_without_held_out_rows(refused: Any) -> None:
    message = refused({"train.eval_strategy": "steps", "train.eval_steps": 1})
    assert "eval" in message


def streams(inputs: Path) -> list[dict[str, Any]]:
    return [{"path": str(inputs / "prose.jsonl"), "streaming": True}]


def test_stream_without_a_number_of_steps(refused: Any, inputs: Path) -> None:
    message = refused({"data.datasets": streams(inputs), "train.max_steps": None})
    assert "train.max_steps" in message and "streaming" in message


def test_stream_has_no_epochs(refused: Any, inputs: Path) -> None:
    message = refused({"data.datasets": streams(inputs), "train.save_strategy": "epoch"})
    assert "train.save_strategy" in message and "steps" in message


# -- the run folder ----------------------------------------------------------------------------------------------------


def test_output_dir_is_a_file(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a folder")
    message = refused({})
    assert "run.output_dir" in message and "is a file" in message
    assert (tmp_path / "run").read_text() == "not a folder"


def test_output_dir_inside_a_file(inputs: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert main_with(recipe(inputs, tmp_path / "run"), f"run.output_dir={tmp_path / 'file' / 'run'}") == 2
    message = one_message(capsys)
    assert "run.output_dir" in message and "cannot be written" in message


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that this process may read but not write; as root it becomes nobody for a while."""
    folder = Path(tempfile.mkdtemp(prefix="llmkd-locked-"))
    folder.chmod(0o555)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(was)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_no_permission_to_write(locked: Path, inputs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    data = recipe(inputs, locked / "run")
    monkeypatch.setattr(config, "load", lambda *_, **__: config.from_dict(data, train_fields=train_fields()))
    from llmkd import train

    assert train.main(["recipe.yaml"]) == 2
    message = one_message(capsys)
    assert "run.output_dir" in message and str(locked / "run") in message and "Permission denied" in message
