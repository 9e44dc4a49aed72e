"""`llmkd report` as a user calls it."""

import argparse
import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from llmkd.evaluation.report import command
from llmkd.evaluation.report.watching import changes, state_of

from run_folders import write_lines, write_records, write_run, write_study


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.main(parser.parse_args([str(word) for word in words]))


def test_page_and_table_of_one_run(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    write_records(folder)
    assert call(folder) == 0
    said = capsys.readouterr().out
    assert f"page: {folder / 'report.html'}" in said
    assert "first: finished, 60 of 60 steps" in said
    assert re.search(r"forward KL to the\s", said) and "0.610" in said and "0.900" in said
    assert "0.4251 [0.3851, 0.4651]" in said
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_several_runs_and_a_study_on_one_page(tmp_path, capsys):
    runs = [write_run(tmp_path / name, name) for name in ("one", "two")]
    study = write_study(tmp_path / "study")
    output = tmp_path / "new" / "page.html"
    assert call(*runs, study, "--output", output) == 0
    text = output.read_text()
    assert "Arms of tiny" in text and "<h1>tiny · one · two</h1>" in text
    assert "jsd" in capsys.readouterr().out


def test_the_help_is_instant():
    assert "llmkd.evaluation.report.page" not in command.__dict__
    source = Path(command.__file__).read_text().split("def add_arguments")[0]
    assert "llmkd" not in re.sub(r'""".*?"""', "", source, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("prepare", "words", "said"),
    [
        (lambda folder: None, ["{}/nowhere"], "nowhere: no such folder"),
        (lambda folder: None, ["{}"], "holds no run"),
        (lambda folder: write_run(folder / "a"), ["{}/a", "{}/a/../a"], "given twice"),
        (lambda folder: write_run(folder / "a"), ["{}/a", "--output", "{}"], "is a folder: name a file"),
        (lambda folder: write_run(folder / "a"), ["{}/a", "--every", "0"], "--every: 0"),
        (lambda folder: (folder / "study.yaml").write_text("name: x"), ["{}"], "has no table yet"),
        (lambda folder: (folder / "table.json").write_text('{"arms": '), ["{}"], "table.json: cannot be read"),
        (lambda folder: write_run(folder / "a"), ["{}/a", "--output", "{}/a/recipe.yaml/x.html"], "can be written"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(tmp_path, capsys, prepare, words, said):
    prepare(tmp_path)
    assert call(*(word.format(tmp_path) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error
    assert len(error.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_folder_that_cannot_be_written(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    folder.chmod(0o500)
    assert call(folder) == 2
    assert "name an --output" in capsys.readouterr().err


def test_without_the_extra(tmp_path, capsys, monkeypatch):
    from llmkd.evaluation.report import page

    page.bundle.cache_clear()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    assert call(write_run(tmp_path / "run")) == 2
    assert "pip install 'llmkd[report]'" in capsys.readouterr().err


def test_watching_ends_with_the_run(tmp_path, capsys):
    folder = write_run(tmp_path / "run", steps=20, ended=False)
    output = folder / "report.html"
    pages = []

    def train() -> None:
        deadline = time.monotonic() + 60
        while not output.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        pages.append(output.read_text())
        write_run(folder, steps=60)

    thread = threading.Thread(target=train)
    thread.start()
    assert call(folder, "--watch", "--every", "1") == 0
    thread.join()
    said = capsys.readouterr().out
    assert 'data-every="1"' in pages[0] and "under way or stopped: 20 of 60 steps" in pages[0]
    last = output.read_text()
    assert "data-every" not in last.split("<script")[0] and "finished, 60 of 60 steps" in last
    assert "watching; Ctrl-C ends it" in said and "finished, 60 of 60 steps" in said


def test_ctrl_c_leaves_a_page_that_rests(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", ended=False)

    def interrupted(folders, every):
        yield
        raise KeyboardInterrupt

    monkeypatch.setattr("llmkd.evaluation.report.watching.changes", interrupted)
    assert call(folder, "--watch") == 0
    assert "data-every" not in (folder / "report.html").read_text().split("<script")[0]


def test_only_what_a_page_shows_wakes_it(tmp_path):
    folder = write_run(tmp_path / "run", ended=False)
    before = state_of([folder])
    (folder / "report.html").write_text("a page")
    assert state_of([folder]) == before
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "loss": 1.0}\n')
    assert state_of([folder]) != before
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            write_lines(folder / "samples.jsonl", [])

    woken = changes([folder], 2.0, sleep)
    next(woken)
    next(woken)
    assert slept == [2.0] * 3
