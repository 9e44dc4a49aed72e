"""Small files of benchmarks in the form of the tasks in eval/tasks, and the command `llmkd-eval` in this process."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmkd.evaluation.harness import command

from tiny import sentences


@pytest.fixture
def evaluate() -> Callable[..., int]:
    """`llmkd-eval WORDS`: its exit code."""

    def call(*words: object) -> int:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        return command.main(parser.parse_args([str(word) for word in words]))

    return call


@pytest.fixture(scope="session")
def start(files: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """`llmkd-eval WORDS` over `files` in a process of its own."""
    code = (
        "import argparse, sys; from llmkd.evaluation.harness import command; p = argparse.ArgumentParser()\n"
        "command.add_arguments(p); sys.exit(command.main(p.parse_args(sys.argv[1:])))"
    )
    environment = os.environ | {"LLMKD_EVAL_DATA": str(files)}

    def started(*words: object, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=environment, **options)

    return started


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with LAMBADA, SST-2, CrowS-Pairs and GSM8K of lines that `tiny.tiny_tokenizer` knows."""
    folder = tmp_path_factory.mktemp("benchmarks")
    lines = sentences()
    write(folder / "lambada_test.jsonl", ({"text": f"{lines[11 * i]} {lines[17 * i + 3][:-1]}"} for i in range(30)))
    write(folder / "sst2_dev.jsonl", ({"text": lines[7 * i], "label": i % 3 % 2} for i in range(30)))
    write(
        folder / "crows_pairs.jsonl",
        (
            {"sent_more": lines[5 * i], "sent_less": lines[5 * i + 1], "bias_type": ("age", "gender")[i % 2]}
            for i in range(30)
        ),
    )
    sums = [{"question": f"{i} + 2 =", "answer": f"It is {i + 2}.\n#### {i + 2}"} for i in range(24)]
    write(folder / "gsm8k_test.jsonl", sums[:8])
    write(folder / "gsm8k_train.jsonl", sums[8:])
    return folder


@pytest.fixture
def local_files(files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, and LLMKD_EVAL_DATA names it."""
    monkeypatch.setenv("LLMKD_EVAL_DATA", str(files))
    return files


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
