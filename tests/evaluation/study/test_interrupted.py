"""A study that is killed, at any moment, goes on and ends with the table of the one that was not."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmkd.evaluation.study import compare, folder

CHANCE = random.SystemRandom()


def wait_for(running: Any, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline and psutil.pid_exists(running.pid), running.out.read_text()
        time.sleep(0.01)


def kill(running: Any, everything: bool) -> None:
    """SIGKILL to the study alone, or to all it has started as well, as a machine that goes off would."""
    processes = [psutil.Process(running.pid)]
    processes += processes[0].children(recursive=True) if everything else []
    for process in processes:
        process.kill()
    assert running.wait() == 137


def moments(out: Path) -> dict[str, Callable[[], bool]]:
    return {
        "while the first arm starts": lambda: (out / "arms/ce/seed-3.log").exists(),
        "while the first arm trains": lambda: (out / "arms/ce/seed-3/metrics.jsonl").exists(),
        "between arms": lambda: (out / "arms/ce/seed-3/summary.json").exists(),
        "while the last arm trains": lambda: (out / "arms/kl/seed-4/metrics.jsonl").exists(),
    }


@pytest.mark.parametrize("everything", [pytest.param(False, marks=pytest.mark.full), True], ids=["alone", "with all"])
def test_killed_study_ends_with_the_same_table(desk: Any, whole: Any, everything: bool) -> None:
    """Three kills of one study."""
    path, out = desk.study(), desk.folder / "out"
    for moment in ["while the first arm trains", "between arms", "while the last arm trains"]:
        running = desk.started(path)
        wait_for(running, moments(out)[moment])
        kill(running, everything)
    assert not (out / "arms/kl/seed-4/summary.json").exists()
    assert desk.compare(path) == 0, desk.err
    assert desk.without_seconds() == whole.without_seconds()


@pytest.mark.full
@pytest.mark.parametrize("attempt", range(8))
def test_killed_at_any_moment(desk: Any, whole: Any, attempt: int) -> None:
    path = desk.study()
    for _ in range(4):
        running = desk.started(path, "--jobs", CHANCE.choice("12"))
        time.sleep(CHANCE.uniform(0.0, 4.0))
        if psutil.pid_exists(running.pid):
            kill(running, CHANCE.random() < 0.5)
    assert desk.compare(path) == 0, desk.err
    assert desk.without_seconds() == whole.without_seconds()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_stopped_study_says_how_to_go_on_and_does(desk: Any, whole: Any, number: int) -> None:
    path = desk.study()
    running = desk.started(path)
    wait_for(running, moments(desk.folder / "out")["while the first arm trains"])
    os.kill(running.pid, number)
    assert running.wait() == 130
    said = running.out.read_text()
    assert "stopping: runs save a checkpoint" in said and "The same command goes on." in said and "failed" not in said
    assert {run["state"] for run in desk.table()["arms"]["kl"]["runs"].values()} == {"missing"}
    assert not list((desk.folder / "out").glob("arms/*/seed-4/summary.json"))
    assert desk.compare(path) == 0
    assert desk.without_seconds() == whole.without_seconds()


def test_runs_of_a_killed_study_end_before_the_next_one_begins(desk: Any) -> None:
    """They keep the lock, save a checkpoint and end."""
    path = desk.study(recipe_changes={"train.max_steps": 3000, "train.save_steps": 3000})
    running = desk.started(path)
    run = desk.folder / "out/arms/ce/seed-3"
    wait_for(running, (run / "metrics.jsonl").exists)
    kill(running, everything=False)
    with folder.locked(desk.folder / "out", lambda text: None):
        saved = [int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")]
    assert len(saved) == 1 and 0 < saved[0] < 3000


class Killed(BaseException):
    """Stands for the end of a process in the middle of a write."""


@pytest.mark.parametrize("name", ["study.yaml", "commands.sh", "curves.json", "table.json", "table.md"])
def test_killed_while_it_writes(desk: Any, whole: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of the finished study's files: half of one is there under another name, the rest is old or missing."""
    path, out = desk.study(), desk.folder / "out"
    out.mkdir()
    (out / "arms").symlink_to(whole.folder / "out" / "arms")

    def breaks_off(target: Path, text: str) -> None:
        if Path(target).name == name:
            (out / f"{name}.half").write_text(text[: len(text) // 2])
            raise Killed
        write_whole(target, text)

    write_whole = folder.write_whole
    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_whole", breaks_off)
        patch.setattr(compare, "write_whole", breaks_off)
        with pytest.raises(Killed):
            compare.compare(str(path), [], None, [], False, str(out))
    assert not (out / name).exists()
    assert desk.compare(path) == 0
    assert desk.without_seconds() == whole.without_seconds()
