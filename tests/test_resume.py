"""A run that is killed and run again ends as the run that was never stopped: same losses, bitwise the same weights.

All runs are of one machine and one thread, and do the same operations in the same order.
"""

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmkd.trainers.checkpoints import MARK, newest_complete

from runs import (
    Killed,
    assert_same_run,
    crashed,
    held_out,
    main_with,
    make_inputs,
    metrics,
    one_message,
    recipe,
    started,
)

START_SECONDS = 300
CHANCE = random.SystemRandom()  # a run in this process seeds the generator of `random`


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def long_run(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Sixty steps, a checkpoint every six, dropout in the student, evaluations, samples."""
    return recipe(inputs, output, {
        "run.resume": "auto", "train.max_steps": 60, "train.save_steps": 6, "train.logging_steps": 1,
        "train.eval_strategy": "steps", "train.eval_steps": 15, "eval.datasets": held_out(inputs), "eval.samples": 1,
        "student.lora": {"r": 4, "lora_dropout": 0.1}, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main_with(long_run(inputs, folder)) == 0
    return folder


def wait_for(process: subprocess.Popen, condition: Any, what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert process.poll() is None, f"the run ended (exit {process.returncode}) before {what}"
        assert time.monotonic() < deadline, f"no {what} after {START_SECONDS} s"
        time.sleep(0.002)


def kill(process: subprocess.Popen) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was to be killed, not to end"


# -- kill -9 of a real process -----------------------------------------------------------------------------------------


def test_killed_at_a_random_moment(inputs: Path, uninterrupted: Path, tmp_path: Path) -> None:
    data = long_run(inputs, tmp_path / "run")
    process = started(data)
    wait_for(process, lambda: newest_complete(tmp_path / "run"), "the first checkpoint")
    delay = CHANCE.uniform(0, 0.3)
    print(f"killed {delay:.3f} s after the first checkpoint")
    time.sleep(delay)
    kill(process)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert main_with(data) == 0
    assert_same_run(uninterrupted, tmp_path / "run")


def test_killed_while_it_saves_a_checkpoint(
    inputs: Path, uninterrupted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder is there, its mark is not: it is removed, and the checkpoint before it is the one to go on from."""
    data = long_run(inputs, tmp_path / "run")
    half = tmp_path / "run" / "checkpoint-12"
    process = started(data)
    wait_for(process, half.is_dir, "the second checkpoint")
    kill(process)
    assert not (half / MARK).exists()
    assert newest_complete(tmp_path / "run").name == "checkpoint-6"
    assert main_with(data) == 0
    assert f"{half} was not complete and has been removed" in caplog.text
    assert_same_run(uninterrupted, tmp_path / "run")


def written(folder: Path) -> tuple[int, int]:
    """When the metrics were last written to, and the step of their last whole line."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0, 0
    lines = path.read_text().rpartition("\n")[0].splitlines()
    return path.stat().st_mtime_ns, json.loads(lines[-1])["step"] if lines else 0


@pytest.mark.full
@pytest.mark.parametrize("round_", range(5))
def test_killed_again_and_again(inputs: Path, uninterrupted: Path, tmp_path: Path, round_: int) -> None:
    """Four kills in one run, each some steps after the one before: in a step, in a save, in an evaluation, at the
    end."""
    folder = tmp_path / "run"
    data = long_run(inputs, folder)
    for _ in range(4):
        last = newest_complete(folder)
        target = min(60, CHANCE.randint(1, 20) + (int(last.name.split("-")[1]) if last else 0))
        before = written(folder)[0]
        process = started(data)

        def reached(before: int = before, target: int = target) -> bool:
            time_, step = written(folder)
            return time_ != before and step >= target

        wait_for(process, reached, f"step {target}")
        delay = CHANCE.uniform(0, 0.15)
        time.sleep(delay)
        process.kill()
        print(f"round {round_}: killed {delay:.3f} s after step {target}, at {written(folder)[1]}")
        if process.wait() == 0:
            break
    assert main_with(data) == 0
    assert_same_run(uninterrupted, folder)


# -- what a resumed run goes on with -----------------------------------------------------------------------------------


def compared(monkeypatch: Any, inputs: Path, folder: Path, changes: dict[str, Any], step: int) -> Path:
    """Train without a stop, and broken off in the step after `step` and resumed; the two must be the same."""
    changes = {"run.resume": "auto", "train.max_steps": 12, "train.save_steps": 3, **changes}
    whole, broken = (recipe(inputs, folder / name, changes) for name in ("whole", "broken"))
    assert main_with(whole) == 0
    crashed(monkeypatch, broken, step)
    assert main_with(broken) == 0
    assert_same_run(folder / "whole", folder / "broken")
    return folder / "whole"


def test_killed_before_the_first_checkpoint(monkeypatch: Any, inputs: Path, tmp_path: Path) -> None:
    compared(monkeypatch, inputs, tmp_path, {}, 2)


def test_fresh_student_starts_from_the_weights_of_the_seed(monkeypatch: Any, inputs: Path, tmp_path: Path) -> None:
    """Whatever the process did before: here it trained another model."""
    fresh = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1,
    }  # fmt: skip
    student = {"from_config": fresh, "tokenizer_name_or_path": str(inputs / "student")}
    compared(monkeypatch, inputs, tmp_path, {"student": student}, 1)


def test_log_lines_that_span_a_checkpoint(monkeypatch: Any, inputs: Path, tmp_path: Path) -> None:
    """A line every five steps, a checkpoint every three: what the steps since the last line measured is not lost."""
    folder = compared(monkeypatch, inputs, tmp_path, {"train.logging_steps": 5}, 8)
    assert [line["step"] for line in metrics(folder)] == [5, 10]


def test_evaluation_after_the_checkpoint_is_logged_once(monkeypatch: Any, inputs: Path, tmp_path: Path) -> None:
    """Metrics and samples of step 4, from before the kill, are written again by the run that goes on from step 3."""
    changes = {
        "train.eval_strategy": "steps", "train.eval_steps": 4, "eval.datasets": held_out(inputs), "eval.samples": 1,
    }  # fmt: skip
    folder = compared(monkeypatch, inputs, tmp_path, changes, 5)
    steps = [json.loads(line)["step"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert steps == [4, 4, 8, 8, 12, 12]


def test_muon(monkeypatch: Any, inputs: Path, tmp_path: Path) -> None:
    compared(monkeypatch, inputs, tmp_path, {"train.muon_learning_rate": 1e-2, "train.lr_scheduler_type": "cosine"}, 7)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_streaming_data(monkeypatch: Any, inputs: Path, tmp_path: Path, packing: bool) -> None:
    """Two streams of 60 and 45 rows: the run passes over them more than once, and is broken off in a later pass."""
    sources = [
        {"path": str(inputs / f"{d}.jsonl"), "domain": d, "weight": w, "streaming": True}
        for d, w in (("prose", 0.25), ("chats", 0.75))
    ]
    changes = {
        "data.datasets": sources, "train.packing": packing, "train.max_steps": 40, "train.save_steps": 10,
        "train.gradient_accumulation_steps": 2, "train.per_device_train_batch_size": 4, "train.logging_steps": 4,
    }  # fmt: skip
    compared(monkeypatch, inputs, tmp_path, changes, 34)


def test_weighted_sampling_with_accumulation(monkeypatch: Any, inputs: Path, tmp_path: Path) -> None:
    sources = [
        {"path": str(inputs / f"{d}.jsonl"), "domain": d, "weight": w} for d, w in (("prose", 0.1), ("chats", 0.9))
    ]
    changes = {
        "data.datasets": sources, "train.gradient_accumulation_steps": 4, "train.per_device_train_batch_size": 2,
    }  # fmt: skip
    compared(monkeypatch, inputs, tmp_path, changes, 8)


def stopping(inputs: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A student that learns next to nothing, so that the evaluations after the first are never better."""
    return {
        "train.learning_rate": 1e-12, "train.max_steps": 30, "train.save_steps": 2, "train.eval_strategy": "steps",
        "train.eval_steps": 2, "train.early_stopping_patience": 3, "train.metric_for_best_model": "eval/mean/kl",
        "train.load_best_model_at_end": True, "eval.datasets": held_out(inputs), **(changes or {}),
    }  # fmt: skip


def test_patience_is_counted_over_a_resumption(monkeypatch: Any, inputs: Path, tmp_path: Path) -> None:
    folder = compared(monkeypatch, inputs, tmp_path, stopping(inputs), 7)
    last = metrics(folder)[-1]["step"]
    assert 8 <= last < 30


def test_run_that_stopped_early_stays_stopped(monkeypatch: Any, inputs: Path, tmp_path: Path) -> None:
    """Killed after its early stop, while it saves the final model: not one step more is trained."""
    changes = {"run.resume": "auto", **stopping(inputs)}
    whole, broken = (recipe(inputs, tmp_path / name, changes) for name in ("whole", "broken"))
    assert main_with(whole) == 0
    with monkeypatch.context() as patch:
        patch.setattr("llmkd.job.save_final", lambda job: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            main_with(broken)
    assert main_with(broken) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_killed_while_the_final_model_is_saved(monkeypatch: Any, inputs: Path, tmp_path: Path) -> None:
    changes = {
        "run.resume": "auto", "train.eval_strategy": "steps", "train.eval_steps": 2, "train.save_steps": 2,
        "eval.datasets": held_out(inputs), "eval.samples": 2, "train.eval_on_start": True,
    }  # fmt: skip
    whole, broken = (recipe(inputs, tmp_path / name, changes) for name in ("whole", "broken"))
    assert main_with(whole) == 0
    with monkeypatch.context() as patch:
        patch.setattr("llmkd.job.save_final", lambda job: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            main_with(broken)
    assert main_with(broken) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    one, other = (json.loads((tmp_path / n / "summary.json").read_text())["results"] for n in ("whole", "broken"))
    assert one["student"]["held_out"] == other["student"]["held_out"]
    assert one["student"]["tokens"] == other["student"]["tokens"]


@pytest.mark.parametrize("where", ["baseline", "student"])
def test_run_with_a_baseline(monkeypatch: Any, inputs: Path, tmp_path: Path, where: str) -> None:
    """Killed during the baseline, and during the main part, when the baseline is there already."""
    changes = {
        "run.resume": "auto", "train.max_steps": 6, "train.save_steps": 2, "eval.baseline": True,
        "eval.datasets": held_out(inputs),
    }  # fmt: skip
    whole, broken = (recipe(inputs, tmp_path / name, changes) for name in ("whole", "broken"))
    assert main_with(whole) == 0
    crashed(monkeypatch, broken, 3, "baseline" if where == "baseline" else "broken")
    assert (tmp_path / "broken" / "baseline" / "summary.json").exists() == (where == "student")
    assert main_with(broken) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert_same_run(tmp_path / "whole" / "baseline", tmp_path / "broken" / "baseline")
    results = [json.loads((tmp_path / n / "summary.json").read_text())["results"] for n in ("whole", "broken")]
    assert [list(r) for r in results] == [["teacher", "baseline", "student"]] * 2
    for name in results[0]:
        assert results[0][name]["held_out"] == results[1][name]["held_out"]


# -- what is refused, and what is done at once -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = recipe(inputs, tmp_path_factory.mktemp("finished") / "run", {"eval.datasets": held_out(inputs)})
    assert main_with(data) == 0
    return data


def test_finished_run_shows_its_table_at_once(
    finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(finished["run"]["output_dir"])
    before = (folder / "metrics.jsonl").read_bytes(), (folder / "summary.json").read_bytes()
    monkeypatch.setattr("llmkd.job.build", lambda *_, **__: pytest.fail("nothing is to be built"))
    assert main_with(finished, "run.resume=auto") == 0
    shown = capsys.readouterr().out
    assert "Held-out results" in shown and "bits per byte: prose" in shown and "student" in shown
    assert str(folder) in shown
    assert ((folder / "metrics.jsonl").read_bytes(), (folder / "summary.json").read_bytes()) == before


def test_used_folder_is_refused_without_resume(finished: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_with(finished) == 2
    message = one_message(capsys)
    assert finished["run"]["output_dir"] in message and "run.resume=auto" in message


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.learning_rate=5e-4", "train.learning_rate"),
        ("run.seed=4", "run.seed"),
        ("objective.terms.kd.weight=0.5", "objective.terms.kd.weight"),
        ("data.datasets.0.max_rows=5", "data.datasets.0.max_rows"),
        ("train.weight_decay=0.1", "train.weight_decay"),
    ],
)
def test_changed_recipe_is_refused_with_its_key(
    finished: dict[str, Any], capsys: pytest.CaptureFixture[str], override: str, key: str
) -> None:
    assert main_with(finished, "run.resume=auto", override) == 2
    message = one_message(capsys)
    assert f" {key}: " in message and "another run.output_dir" in message
    written = yaml.safe_load((Path(finished["run"]["output_dir"]) / "recipe.yaml").read_text())
    assert written["train"]["learning_rate"] == 1e-3 and written["run"]["seed"] == 3, "the folder is as it was"


def test_where_it_reports_to_may_change(finished: dict[str, Any]) -> None:
    assert main_with(finished, "run.resume=auto", "run.name=another", "train.logging_steps=2") == 0


def test_half_written_checkpoint_is_removed(
    monkeypatch: Any, inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that looks newer, but has no mark: not used, and out of the way when its step is saved again."""
    changes = {"run.resume": "auto", "train.max_steps": 8, "train.save_steps": 2}
    whole, broken = (recipe(inputs, tmp_path / name, changes) for name in ("whole", "broken"))
    assert main_with(whole) == 0
    crashed(monkeypatch, broken, 5)
    half = tmp_path / "broken" / "checkpoint-6"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half of a file")
    (tmp_path / "broken" / "metrics.jsonl").open("a").write('{"step": 6, "lo')
    assert main_with(broken) == 0
    assert f"{half} was not complete" in caplog.text
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_mistake_before_the_first_step_leaves_the_folder_free(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = recipe(inputs, tmp_path / "run", {"train.max_steps": 1})
    assert main_with(data, f"data.datasets.0.path={inputs / 'prosa.jsonl'}") == 2
    assert "prosa.jsonl" in one_message(capsys)
    assert main_with(data) == 0


def test_checkpoints_of_another_program_are_left_alone(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "run" / "checkpoint-500"
    foreign.mkdir(parents=True)
    (foreign / "model.safetensors").write_bytes(b"somebody's work")
    for resume in ("never", "auto"):
        assert main_with(recipe(inputs, tmp_path / "run", {"run.resume": resume})) == 2
        assert "checkpoint-500" in one_message(capsys)
    assert (foreign / "model.safetensors").read_bytes() == b"somebody's work"
