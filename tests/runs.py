"""Small recipes to train in tests, in this process or in one of their own, and what is looked at afterwards.

changed = recipe(folder, {"train.max_steps": 4})   # a plain dict over models and rows of `make_inputs`
job = built(changed)                               # its live objects
lines = trained(changed)                           # the log lines of its training, in this process
code = main_with(changed)                          # the whole command, in this process
process = started(changed)                         # the whole command, in a process that can be killed
"""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from llmkd import config, train
from llmkd.build import Job, build
from llmkd.trainers.settings import train_fields

from tiny import sentences, tiny_llama, tiny_tokenizer

VOCABULARY = 384
MAX_LENGTH = 48
Rows = Iterable[Mapping[str, Any]]


def write_rows(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prose(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Plain texts of about 2 to 20 tokens."""
    lines = sentences()
    return [{"text": lines[(37 * i) % 900][: 6 + 7 * (i % 9)]} for i in range(first, first + count)]


def chats(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Conversations of one question and one answer, both of different lengths."""
    lines = sentences()
    return [
        {
            "messages": [
                {"role": "user", "content": lines[(53 * i + 1) % 900][: 4 + 9 * (i % 5)]},
                {"role": "assistant", "content": lines[(71 * i + 2) % 900][: 2 + 8 * (i % 6)]},
            ]
        }
        for i in range(first, first + count)
    ]


def make_inputs(folder: Path) -> Path:
    """Two domains of training rows and of held-out rows (no multiples of a batch), a student, a wider teacher that has
    nothing to do with it, and a `near` one, which often agrees with it: its own weights and some noise."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "prose.jsonl", prose(60))
    write_rows(folder / "chats.jsonl", chats(45))
    write_rows(folder / "held_prose.jsonl", prose(7, 1000))
    write_rows(folder / "held_chats.jsonl", chats(5, 1000))
    for name, settings in {"student": {"seed": 1}, "teacher": {"seed": 2, "hidden": 96, "tie": False}}.items():
        tiny_tokenizer(folder / name, VOCABULARY)
        tiny_llama(folder / name, vocab=VOCABULARY, initializer_range=0.1, **settings)
    tiny_tokenizer(folder / "near", VOCABULARY)
    near = AutoModelForCausalLM.from_pretrained(folder / "student")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in near.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    near.save_pretrained(folder / "near")
    return folder


def recipe(inputs: Path, output: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Forward KL and cross-entropy on two domains, 8 rows a step; `changes` are dotted keys, None takes one out."""
    data = {
        "run": {"output_dir": str(output), "seed": 3},
        "student": {"model_name_or_path": str(inputs / "student")},
        "teachers": [{"model_name_or_path": str(inputs / "teacher")}],
        "data": {
            "datasets": [
                {"path": str(inputs / "prose.jsonl"), "domain": "prose"},
                {"path": str(inputs / "chats.jsonl"), "domain": "chats"},
            ]
        },
        "objective": {
            "terms": {"kd": {"term": "forward_kl", "weight": 0.75}, "ce": {"term": "cross_entropy", "weight": 0.5}}
        },
        "train": {
            "method": "offpolicy", "use_cpu": True, "max_length": MAX_LENGTH, "max_steps": 4,
            "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1, "disable_tqdm": True,
        },
        "eval": {},
    }  # fmt: skip
    for key, value in (changes or {}).items():
        put(data, key, value)
    return data


def held_out(inputs: Path) -> list[dict[str, str]]:
    return [{"path": str(inputs / f"held_{d}.jsonl"), "domain": d} for d in ("prose", "chats")]


def put(data: dict[str, Any], key: str, value: Any) -> None:
    *way, last = key.split(".")
    place: Any = data
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    if value is None:
        place.pop(last, None)
    elif isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value


def built(data: Mapping[str, Any], **arguments: Any) -> Job:
    return build(config.from_dict(copy.deepcopy(dict(data)), train_fields=train_fields), **arguments)


def trained(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The log lines of a training, without its rates."""
    job = built(data)
    job.trainer.train()
    return training_lines(job.trainer.state.log_history)


def training_lines(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in line.items() if k not in ("epoch", "seconds", "peak_memory")}
        for line in lines
        if "loss" in line
    ]


def close(a: float, b: float, relative: float = 1e-5) -> bool:
    return abs(a - b) <= relative * max(abs(a), abs(b))


def first_rows(job: Any, count: int) -> list[dict[str, Any]]:
    """The rows of the first step, as the trainer draws them."""
    sampler = job.trainer._get_train_sampler()
    return [job.trainer.train_dataset[i] for i, _ in zip(sampler, range(count), strict=False)]


def loaded(folder: Path) -> Any:
    """A saved model in float32, in eval mode."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def one_step(job: Job, rows: Sequence[Mapping[str, Any]]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one optimizer step over one batch of prepared rows, without the optimizer."""
    trainer = job.trainer
    batch = trainer.data_collator(list(rows))
    counts = trainer.objective.counts(batch)
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    return loss.item(), gradients


def norm(gradients: Mapping[str, Tensor]) -> float:
    return float(torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt())


@torch.no_grad()
def log_probs(model: nn.Module, ids: Sequence[int], vocabulary: int = VOCABULARY) -> Tensor:
    """`[T - 1, V]` float64: what the model's own forward says of the tokens after the first, from one row alone."""
    logits = model(input_ids=torch.tensor([list(ids)])).logits[0, :-1, :vocabulary]
    return logits.double().log_softmax(-1)


def row_formulas(
    student: nn.Module, teacher: nn.Module, row: Mapping[str, Any], vocabulary: int = VOCABULARY
) -> dict[str, Tensor]:
    """Forward KL and cross-entropy at each counted token of one unpacked row, in float64."""
    ids, counted = row["input_ids"], torch.tensor(row["counted"][1:]).bool()
    logq, logp = log_probs(student, ids, vocabulary)[counted], log_probs(teacher, ids, vocabulary)[counted]
    targets = torch.tensor(ids[1:])[counted]
    return {
        "forward_kl": (logp.exp() * (logp - logq)).sum(-1),
        "cross_entropy": -logq.gather(-1, targets[:, None])[:, 0],
        "agreement": (logp.argmax(-1) == logq.argmax(-1)).double(),
        "entropy": -(logq.exp() * logq).sum(-1),
        "teacher_entropy": -(logp.exp() * logp).sum(-1),
    }


# -- whole commands ----------------------------------------------------------------------------------------------------


def write_recipe(data: Mapping[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(data), sort_keys=False))
    return path


def main_with(data: Mapping[str, Any], *overrides: str) -> int:
    """`python -m llmkd.train` in this process; the recipe stands beside the run folder."""
    output = Path(data["run"]["output_dir"])
    return train.main([str(write_recipe(data, output.parent / f"{output.name}.yaml")), *overrides])


def started(data: Mapping[str, Any], *overrides: str, before: Sequence[str] = ()) -> subprocess.Popen:
    """The same in a process of its own, its output in `<run folder>.log`; `before` stands in front of the command."""
    output = Path(data["run"]["output_dir"])
    path = write_recipe(data, output.parent / f"{output.name}.yaml")
    log = (output.parent / f"{output.name}.log").open("ab")
    command = [*before, sys.executable, "-m", "llmkd.train", str(path), *overrides]
    with log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=dict(os.environ))


def said(data: Mapping[str, Any]) -> str:
    """What the processes of a recipe wrote on their standard output and error."""
    output = Path(data["run"]["output_dir"])
    return (output.parent / f"{output.name}.log").read_text()


def one_message(error: Any) -> str:
    """The one line that a run ended with, out of what it wrote on its standard error (a text, or capsys)."""
    text = error if isinstance(error, str) else error.readouterr().err
    assert "Traceback" not in text, text
    found = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(found) == 1 and text.splitlines()[-1] == found[0], text
    return found[0]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_clock(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "peak_memory")} for line in lines]


class Killed(BaseException):
    """Stands for the end of a process inside a test: nothing in the package may catch it."""


def without_step_time(folders: Iterable[Path]) -> None:
    """TRL measures the time of a step, which no two runs share."""
    for folder in folders:
        lines = [{k: v for k, v in line.items() if k != "step_time"} for line in metrics(folder)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def crashed(
    monkeypatch: Any, data: Mapping[str, Any], step: int, folder: str = "", trainer: type | None = None
) -> None:
    """Run the command in this process and break it off in the middle of the step after `step`, where nothing is saved;
    with `folder` only in the run whose folder has that name (the baseline's, say)."""
    from llmkd.trainers.offpolicy import OffPolicyTrainer

    broken = trainer or OffPolicyTrainer
    compute_loss = broken.compute_loss

    def breaks_off(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step and Path(self.args.output_dir).name.endswith(folder):
            raise Killed
        return compute_loss(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(broken, "compute_loss", breaks_off)
        try:
            main_with(data)
        except Killed:
            return
    raise AssertionError(f"the run ended before step {step}")


def weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {f"{path.name}/{k}": v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def assert_same_run(one: Path, other: Path) -> None:
    """The same log lines (but for the clock), the same samples and bitwise the same final weights."""
    lines, others = without_clock(metrics(one)), without_clock(metrics(other))
    kinds = [(line["step"], "loss" in line) for line in others]
    assert len(kinds) == len(set(kinds)), "a step is logged twice"
    assert lines == others
    for name in ("model", "adapter"):
        mine, theirs = weights(one / name), weights(other / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert weights(one / "model") or weights(one / "adapter")
    samples = [path / "samples.jsonl" for path in (one, other)]
    assert samples[0].is_file() == samples[1].is_file()
    if samples[0].is_file():
        assert samples[0].read_text() == samples[1].read_text()


def noted(trainer: Any) -> list[dict[str, Tensor]]:
    """The micro-batches that a trainer will compute its loss of."""
    seen: list[dict[str, Tensor]] = []
    compute = trainer.compute_loss

    def noting(model: Any, inputs: Any, **rest: Any) -> Any:
        seen.append({k: v.clone() for k, v in inputs.items()})
        return compute(model, inputs, **rest)

    trainer.compute_loss = noting
    return seen
