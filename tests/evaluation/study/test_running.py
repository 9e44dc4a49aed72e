"""Many commands at once, and their end, whatever way it comes."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmkd.evaluation.study.running import Ended, Job, Slot, Stop, last_lines, run_all, slots

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)
SAVES = """
import signal, sys, time
def save(number, frame):
    print('saved', flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
print('ready', flush=True)
time.sleep(60)
"""
# As `accelerate launch` does, a program that starts another one and does not survive the signal itself.
LAUNCHES = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SAVES!r}])"


def job(folder: Path, *codes: str, arm: str = "a") -> Job:
    return Job(arm, 0, [[sys.executable, "-c", code] for code in codes], folder / arm / "seed-0")


def run(jobs: list[Job], places: list[Slot], stop_after: Any = None, times: int = 1) -> tuple[dict[str, Ended], bool]:
    """How each job ended; `stop_after` is asked at every tick, and stands for as many Ctrl-C."""
    found: dict[str, Ended] = {}
    stop, lock = Stop(), os.open(os.devnull, os.O_RDONLY)

    def tick(active: Any) -> None:
        if stop_after is not None and stop.asked < times and stop_after():
            os.kill(os.getpid(), signal.SIGINT)

    with stop.listening():
        complete = run_all(jobs, places, stop, lock, lambda end: found.update({end.job.arm: end}), tick)
    os.close(lock)
    return found, complete


def test_one_slot_a_gpu_or_a_share_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert slots(None, []) == [Slot(8)]
    assert slots(3, []) == [Slot(2)] * 3
    assert slots(None, ["0", "3"]) == [Slot(4, "0"), Slot(4, "3")]
    assert slots(4, ["0", "3"]) == [Slot(2, "0"), Slot(2, "3")] * 2
    assert Slot(2, "3").environment() == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "3"}


def test_every_job_sees_its_own_gpu(tmp_path: Path) -> None:
    code = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(0.5)"
    jobs = [job(tmp_path, code, arm=name) for name in "abcd"]
    found, complete = run(jobs, slots(None, ["0", "1"]))
    assert complete and {end.code for end in found.values()} == {0}
    assert sorted(each.log.read_text().strip() for each in jobs) == ["0", "0", "1", "1"]


def test_commands_of_a_job_follow_each_other_until_one_fails(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "print('one')", "print('two'); exit(3)", "print('three')"),
        job(tmp_path, "print(4)", arm="b"),
    ]
    found, complete = run(jobs, [Slot(1)])
    assert complete and found["a"].code == 3 and found["b"].code == 0
    assert jobs[0].log.read_text() == "one\ntwo\n" and found["a"].last_lines == "one\ntwo"


def test_program_that_is_not_there_is_a_failed_job(tmp_path: Path) -> None:
    found, _ = run([Job("a", 0, [["no-such-program"]], tmp_path / "run")], [Slot(1)])
    assert found["a"].code == 127 and found["a"].last_lines == "no-such-program: No such file or directory"


@pytest.mark.parametrize("code", [SAVES, LAUNCHES], ids=["alone", "behind a launcher"])
def test_stop_waits_until_a_run_has_saved(tmp_path: Path, code: str) -> None:
    first, second = job(tmp_path, code), job(tmp_path, "print('never')", arm="b")
    found, complete = run([first, second], [Slot(1)], lambda: first.log.exists() and "ready" in first.log.read_text())
    assert not complete and "b" not in found
    assert "saved" in first.log.read_text() and found["a"].code != 0


def test_second_stop_ends_what_does_not_listen(tmp_path: Path) -> None:
    first, started = job(tmp_path, STUBBORN), time.monotonic()
    found, complete = run([first], [Slot(1)], lambda: first.log.exists() and "deaf" in first.log.read_text(), times=2)
    assert not complete and found["a"].code == 128 + signal.SIGKILL and time.monotonic() - started < 30


def test_last_lines_are_those_of_this_attempt_and_the_last_state_of_a_bar(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old\n10%\r20%\r30%\nerror: why\n")
    assert last_lines(log, 4) == "30%\nerror: why"
