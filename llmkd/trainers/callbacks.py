"""What a run writes and shows while it trains: metrics as lines of JSON, a progress bar, samples; and how it stops."""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback

from llmkd.backbone import check_family
from llmkd.trainers.checkpoints import write_whole

SHOWN = ("loss", "eval_mean/bits_per_byte", "eval_mean/kl")


def public_name(key: str) -> str:
    """``eval_code/kl`` -> ``eval/code/kl``, the name that every log shows."""
    return "eval/" + key.removeprefix("eval_") if key.startswith("eval_") else key


class MetricsFile(TrainerCallback):
    """Append every log line to ``metrics.jsonl``: ``{"step", "seconds", ...}``.

    ``seconds`` counts the time spent training this run, over all its resumptions; ``peak_memory``, beside the loss, is
    in bytes, of this process since it started.
    """

    def __init__(self, path: Path, seconds_before: float = 0.0) -> None:
        self.path = path
        self.seconds_before = seconds_before
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        # The line of the end has rates and means of this process alone, not of the run; the summary has the run's.
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        line = {public_name(k): v for k, v in logs.items() if k != "epoch"}
        if "loss" in logs:
            line["peak_memory"] = peak_memory(args.device)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, "seconds": round(self.seconds, 3), **line}) + "\n")


def seconds_of(trainer: Any) -> float:
    """Time spent training a run, as its metrics file counts it."""
    clocks = [c.seconds for c in trainer.callback_handler.callbacks if isinstance(c, MetricsFile)]
    return clocks[0] if clocks else 0.0


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: by PyTorch's allocator on a GPU, else by the process in resident pages."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after ``step``, which a resumed run will write again, and a last line that was cut short.

    ``path``: a file of JSON objects with a ``step`` each, such as ``metrics.jsonl`` and ``samples.jsonl``.
    """
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] <= step:
            kept.append(line)
    write_whole(path, "".join(line + "\n" for line in kept))


class ProgressBar(ProgressCallback):
    """The bar of transformers, with the latest loss beside it instead of a dictionary per log line."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self.training_bar is None or not logs:
            return
        shown = {public_name(k): f"{logs[k]:.4g}" for k in SHOWN if isinstance(logs.get(k), float)}
        self.training_bar.set_postfix({**getattr(self, "shown", {}), **shown})
        self.shown = {**getattr(self, "shown", {}), **shown}


class CheckFamily(TrainerCallback):
    """``check_family`` of a student that could not run before the trainer had placed it."""

    def __init__(self, trainer: Any, packed: bool) -> None:
        self.trainer = trainer
        self.packed = packed

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        student = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
        with self.trainer.accelerator.autocast():
            check_family(student, packed=self.packed, where="student", wrapper=self.trainer.model_wrapped)


class Unlogged(TrainerCallback):
    """Give a resumed trainer what the steps between its last log line and its checkpoint had measured."""

    def __init__(self, trainer: Any, unlogged: dict[str, Any]) -> None:
        self.trainer = trainer
        self.unlogged = unlogged

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._globalstep_last_logged = self.unlogged["since"]
        self.trainer._tr_loss.fill_(self.unlogged["loss"])
        if args.process_index == 0:
            self.trainer.measured.restore(self.unlogged["measured"], args.device)


class Patience(EarlyStoppingCallback):
    """Early stopping that counts on where a resumed run had got to."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__) or {}
        self.early_stopping_patience_counter = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class Stop(TrainerCallback):
    """On the first Ctrl-C or SIGTERM, save a checkpoint at the end of the step and stop; on the second, stop at once.

    With several processes the signal reaches them at different steps, so there the first one stops at once and the
    last checkpoint is the one to resume from.
    """

    def __init__(self, alone: bool) -> None:
        self.alone = alone
        self.asked = False
        self.before: dict[int, Any] = {}

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked or not self.alone:
            raise KeyboardInterrupt
        self.asked = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.asked:
            control.should_save = state.global_step < state.max_steps
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the signals back to whom they belonged to."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
