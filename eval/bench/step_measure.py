"""One trainer, one case, one process: ``python step_measure.py JOB``, started by ``step.py``.

The trainer trains; between two steps it waits.  The first line that comes back says what the first steps computed; then
it answers each line ``round`` with what a step took, in whole and by phase.  Lines are JSON objects.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import TrainerCallback

from measure import cpu_seconds
from step_arms import ARMS, CHECKED, Case

PHASES = ("generate", "reward", "teacher", "train", "sync", "prepare")
"""``train``: forward, backward and update of the student, and whatever is not in another; ``sync``: weights to vLLM;
``prepare``: rows, padding, advantages, metrics."""
Function = Callable[..., Any]


class Clock:
    """Seconds by phase, of which the innermost is running: CPU-seconds of this process, on a GPU those of the wall with
    all work done."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.start()

    def _now(self) -> float:
        if not self.cuda:
            return cpu_seconds()
        torch.cuda.synchronize()
        return time.perf_counter()

    def start(self) -> None:
        self.stack, self.seconds = ["train"], dict.fromkeys(PHASES, 0.0)
        self.last = self._now()

    def read(self) -> dict[str, float]:
        """What was spent since the start."""
        now = self._now()
        self.seconds[self.stack[-1]] += now - self.last
        self.last = now
        return dict(self.seconds)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.read()
        self.stack.append(name)
        try:
            yield
        finally:
            self.read()
            self.stack.pop()

    def of(self, name: str, function: Function, where: Callable[..., bool] = lambda *_, **__: True) -> Function:
        """The function, its time counted to a phase where ``where`` says so of its arguments."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not where(*args, **kwargs):
                return function(*args, **kwargs)
            with self.phase(name):
                return function(*args, **kwargs)

        return timed


class Seen:
    """What a step drew and computed: a digest of the completions, the loss as it went into the backward pass."""

    def __init__(self) -> None:
        self.drawn, self.loss, self.rollouts = "", 0.0, {}  # type: ignore[var-annotated]

    def completions(self, function: Function) -> Function:
        def noted(prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            found = function(prompt_ids, *args, **kwargs)
            ids = found[0] if isinstance(found, tuple) else found
            self.drawn = hashlib.sha256(json.dumps([prompt_ids, ids]).encode()).hexdigest()[:16]
            self.lengths = sorted({len(row) for row in ids})
            return found

        return noted

    def losses(self, function: Function) -> Function:
        def noted(*args: Any, **kwargs: Any) -> Any:
            found = function(*args, **kwargs)
            self.loss = found.detach()
            return found

        return noted

    def scored(self, function: Function) -> Function:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.rollouts = function(*args, **kwargs)
            return self.rollouts

        return noted


def watch(trainer: Any, clock: Clock) -> Seen:
    """Count the trainer's own functions to the phases, without a change to what they do."""
    seen = Seen()
    trainer.compute_loss = seen.losses(trainer.compute_loss)
    trainer._generate_and_score_completions = seen.scored(trainer._generate_and_score_completions)
    trainer._generate_single_turn = clock.of("generate", seen.completions(trainer._generate_single_turn))
    trainer._prepare_inputs = clock.of("prepare", trainer._prepare_inputs)
    trainer.get_batch_samples = clock.of("prepare", trainer.get_batch_samples)
    for name, phase in (("_calculate_rewards", "reward"), ("_ask", "teacher")):
        if hasattr(trainer, name):
            setattr(trainer, name, clock.of(phase, getattr(trainer, name)))
    for teacher in getattr(trainer, "teachers", {}).values():
        teacher.score = clock.of("teacher", teacher.score)
    if hasattr(trainer, "_get_last_hidden_state"):
        theirs = trainer.accelerator.unwrap_model(getattr(trainer, "teacher_model", None) or trainer.model)
        hidden = trainer._get_last_hidden_state
        trainer._get_last_hidden_state = clock.of("teacher", hidden, lambda model, *_, **__: model is theirs)
    if getattr(trainer, "vllm_generation", None) is not None:
        vllm = trainer.vllm_generation
        vllm.sync_weights = clock.of("sync", vllm.sync_weights)
    return seen


@torch.no_grad()
def teacher_forward(model: Any, rollouts: dict[str, Any], size: int) -> None:
    """The floor of a teacher's term: its logits of the completions, a micro-batch at a time."""
    ids = torch.cat([rollouts["prompt_ids"], rollouts["completion_ids"]], 1)
    attention = torch.cat([rollouts["prompt_mask"], rollouts["completion_mask"]], 1)
    width = rollouts["completion_ids"].shape[1]
    for rows in range(0, ids.shape[0], size):
        part = slice(rows, rows + size)
        model(input_ids=ids[part], attention_mask=attention[part], logits_to_keep=width + 1, use_cache=False)


def head_products(head: torch.Tensor, rows: int) -> None:
    """The student's products of a divergence over all of the vocabulary: logits, and the gradients of hidden states and
    head.  Those of the policy are its own."""
    hidden = head.new_ones(rows, head.shape[1])
    logits = hidden @ head.T
    logits @ head
    logits.T @ hidden


def steps_of_a_round(trainer: Any) -> int:
    """One that is not timed, one that is; and where a term hears a teacher one without it."""
    return 3 if getattr(trainer, "terms", None) else 2


class Rounds(TrainerCallback):
    """Stops the training after each step, says what it was, and goes on when it is asked to."""

    def __init__(self, trainer: Any, clock: Clock, seen: Seen, commands: Iterator[str], say: Function) -> None:
        self.trainer, self.clock, self.seen, self.commands, self.say = trainer, clock, seen, commands, say
        self.checked: list[dict[str, Any]] = []
        self.timed: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A step ends with its line in the log.  The first of a round is not timed: a machine takes back what lies idle
        while others have theirs."""
        if not logs or "loss" not in logs:
            return
        phases, done = self.clock.read(), state.global_step
        if done <= CHECKED:
            self.checked.append(self._said(logs))
        else:
            self.timed.append({"seconds": sum(phases.values()), "phases": phases})
        if done == CHECKED:
            self.say({"status": "ok", "checked": self.checked, "lengths": self.seen.lengths})
        elif len(self.timed) == (steps := steps_of_a_round(self.trainer)):
            alone = {"alone": self.timed[2]} if steps == 3 else {}
            self.say({**self.timed[1], **alone, **self._floor(args)})
            self.timed = []
        if done >= CHECKED and not self.timed and next(self.commands, None) is None:
            control.should_training_stop = True
        self.clock.start()

    def _said(self, logs: dict[str, Any]) -> dict[str, Any]:
        term = {"term": logs["kd/loss"]} if "kd/loss" in logs else {}
        return {"drawn": self.seen.drawn, "loss": float(self.seen.loss), "grad_norm": float(logs["grad_norm"]), **term}

    def _floor(self, args: Any) -> dict[str, float]:
        """``forward``: seconds of the teacher's forward on the same rollouts; ``products``: those of the student's
        products, where the term needs them.  Each the second of two; neither where no term hears a teacher."""
        if not getattr(self.trainer, "terms", None):
            return {}
        (term,) = self.trainer.terms
        teacher, student = self.trainer.teachers[term.teacher].model, self.trainer.model
        size, rows = args.per_device_train_batch_size, self.seen.rollouts["completion_ids"].numel()
        found = {"forward": self._second(lambda: teacher_forward(teacher, self.seen.rollouts, size)), "products": 0.0}
        if term.estimator == "exact":
            head = student.get_output_embeddings().weight.detach()
            found["products"] = self._second(lambda: head_products(head, rows))
        return found

    def _second(self, function: Callable[[], None]) -> float:
        for _ in range(2):
            self.clock.start()
            function()
        return sum(self.clock.read().values())


def serve(job: dict[str, Any], commands: Iterator[str], answers: TextIO) -> None:
    """Build the trainer and let it train, ``job``: ``arm``, ``case``, ``threads``, ``rounds``."""

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    torch.set_num_threads(job["threads"])
    case = Case.from_json(job["case"])
    with tempfile.TemporaryDirectory(prefix="llmkd-step-") as folder:
        trainer = ARMS[job["arm"]](case, Path(folder), CHECKED + 3 * job["rounds"])
        clock = Clock(case.device)
        seen = watch(trainer, clock)
        trainer.add_callback(Rounds(trainer, clock, seen, commands, say))
        trainer.train()


def main(arguments: Sequence[str]) -> None:
    # Libraries may print: what they say goes where errors go, and the answers stay alone on their line.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(json.loads(arguments[0]), iter(sys.stdin), answers)


if __name__ == "__main__":
    main(sys.argv[1:])
