"""What is no mistake but may go wrong: a full disk, Ctrl-C, a stop by the system. Nothing is lost but the step.

Kills without a warning are in test_resume.py.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkd.trainers.checkpoints import MARK, newest_complete
from llmkd.trainers.offpolicy import OffPolicyTrainer

from runs import (
    assert_same_run,
    main_with,
    make_inputs,
    metrics,
    one_message,
    recipe,
    said,
    started,
    write_recipe,
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


# -- a full disk -------------------------------------------------------------------------------------------------------


def saving_run(inputs: Path, output: Path) -> dict[str, Any]:
    return recipe(inputs, output, {"train.max_steps": 8, "train.save_steps": 2, "run.resume": "auto"})


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main_with(saving_run(inputs, folder)) == 0
    return folder


def private_mount() -> list[str]:
    """A command that runs another where it may mount, [] where that is not allowed."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        try:
            test = [*command, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
            if subprocess.run(test, capture_output=True, timeout=20).returncode == 0:
                return command
        except (OSError, subprocess.TimeoutExpired):
            continue
    return []


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=3500k tmpfs "$DISK" || exit 99
"$@" 2> "$COPIES/stderr"; echo $? > "$COPIES/code"
cp -a "$DISK/run" "$COPIES/full"
mount -o remount,size=64m "$DISK" || exit 99
"$@"; echo $? >> "$COPIES/code"
cp -a "$DISK/run" "$COPIES/resumed"
"""


def test_disk_full_while_saving_a_checkpoint(inputs: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """A real file system of 3.5 MB: the third checkpoint does not fit, the second is whole and goes on to the end."""
    allowed = private_mount()
    if not allowed:
        pytest.skip("no file system may be mounted here")
    disk = tmp_path / "disk"
    disk.mkdir()
    path = write_recipe(saving_run(inputs, disk / "run"), tmp_path / "recipe.yaml")
    command = [*allowed, "sh", "-c", ON_A_SMALL_DISK, "sh", sys.executable, "-m", "llmkd.train", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=550,
        env={**os.environ, "DISK": str(disk), "COPIES": str(tmp_path)},
    )  # fmt: skip
    assert (tmp_path / "code").read_text().split() == ["2", "0"], done.stderr
    message = one_message((tmp_path / "stderr").read_text())
    full = tmp_path / "full"
    whole = newest_complete(full)
    assert whole is not None and sorted(p.name for p in full.glob("checkpoint-*")) == [
        f"checkpoint-{s}" for s in range(2, int(whole.name.split("-")[1]) + 1, 2)
    ]
    assert str(disk / "run" / whole.name) in message and "is whole" in message and "run.resume=auto" in message
    assert f"checkpoint-{int(whole.name.split('-')[1]) + 2}" in message
    assert_same_run(uninterrupted, tmp_path / "resumed")


@pytest.fixture
def file_limit() -> Iterator[Any]:
    """Set the largest file that this process may write, as a quota would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [600_000, 200_000, 300], ids=["optimizer", "weights", "everything"])
def test_quota_met_while_saving_a_checkpoint(
    inputs: Path, uninterrupted: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch,
    file_limit: Any, size: int,
) -> None:  # fmt: skip
    """The weights, the optimizer's state and small files are written by different libraries, each in its own way."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]

    def then_full(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 5:
            file_limit(size)
        return compute_loss(self, *args, **kwargs)

    compute_loss = OffPolicyTrainer.compute_loss
    data = saving_run(inputs, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(OffPolicyTrainer, "compute_loss", then_full)
        code = main_with(data)
        file_limit(limit)
    assert code == 2
    message = one_message(capsys)
    assert str(tmp_path / "run" / "checkpoint-4") in message and "is whole" in message and "resume=auto" in message
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert main_with(data) == 0
    assert_same_run(uninterrupted, tmp_path / "run")


def test_quota_met_while_saving_the_final_model(
    inputs: Path, uninterrupted: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, file_limit: Any
) -> None:
    import llmkd.job

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    save_final = llmkd.job.save_final
    data = saving_run(inputs, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(llmkd.job, "save_final", lambda job: (file_limit(200_000), save_final(job)))
        code = main_with(data)
        file_limit(limit)
    assert code == 2
    message = one_message(capsys)
    assert "checkpoint-8 is whole" in message and "run.resume=auto" in message
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main_with(data) == 0
    assert_same_run(uninterrupted, tmp_path / "run")


# -- Ctrl-C and a stop by the system -----------------------------------------------------------------------------------


def test_ctrl_c(inputs: Path, tmp_path: Path) -> None:
    """A real SIGINT to a real process: it ends its step, saves, says how to go on, and exits with 130."""
    data, whole = (
        recipe(inputs, tmp_path / name, {"train.max_steps": 200, "train.logging_steps": 3}) for name in ("run", "whole")
    )
    process = started(data)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline, said(data)
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130, said(data)
    assert "Traceback" not in said(data)
    assert "run.resume=auto" in said(data).splitlines()[-1]
    saved = newest_complete(tmp_path / "run")
    assert saved is not None
    assert metrics(tmp_path / "run")[-1]["step"] // 3 == int(saved.name.split("-")[1]) // 3, "not one step is lost"
    assert main_with(data, "run.resume=auto") == 0
    assert main_with(whole) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def stopped_by(signals: list[int], step: int, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any]) -> int:
    """The exit code of a run that gets real signals in the middle of the step after `step`."""
    compute_loss = OffPolicyTrainer.compute_loss

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            for number in signals:
                os.kill(os.getpid(), number)
        return compute_loss(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(OffPolicyTrainer, "compute_loss", interrupted)
        return main_with(data)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_a_checkpoint_at_the_end_of_the_step(
    inputs: Path, uninterrupted: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    data = saving_run(inputs, tmp_path / "run")
    assert stopped_by([number], 4, monkeypatch, data) == 130
    assert "run.resume=auto" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoint-5" / MARK).is_file()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert main_with(data) == 0
    assert_same_run(uninterrupted, tmp_path / "run")


def test_second_ctrl_c_stops_at_once(
    inputs: Path, uninterrupted: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saving_run(inputs, tmp_path / "run")
    assert stopped_by([signal.SIGINT, signal.SIGINT], 4, monkeypatch, data) == 130
    error = capsys.readouterr().err
    assert "Traceback" not in error and "run.resume=auto" in error
    assert newest_complete(tmp_path / "run").name == "checkpoint-4"
    assert main_with(data) == 0
    assert_same_run(uninterrupted, tmp_path / "run")


def test_ctrl_c_in_the_last_step_ends_the_run(
    inputs: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stopped_by([signal.SIGINT], 7, monkeypatch, saving_run(inputs, tmp_path / "run")) == 0
    assert_same_run(uninterrupted, tmp_path / "run")


def test_ctrl_c_while_the_models_are_loaded(
    inputs: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkd import modelling

    load_teacher = modelling.load_teacher
    data = recipe(inputs, tmp_path / "run", {"train.max_steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(modelling, "load_teacher", lambda t: (os.kill(os.getpid(), signal.SIGINT), load_teacher(t))[1])
        assert main_with(data) == 130
    error = capsys.readouterr().err
    assert "Traceback" not in error and "stopped" in error
    assert main_with(data) == 0, "nothing of a run is in the way"
