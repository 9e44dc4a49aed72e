"""Recipes run by one process and by two, and what is compared between them.

One process is this one; two are started by the launchers that a user takes, with `tests/distributed/worker.py` as their
program, which runs several recipes one after the other and writes down what each process saw.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tiny import sentences, tiny_llama, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
WORKER = ROOT / "tests" / "distributed" / "worker.py"
STEPS = 12
MAX_LENGTH = 48


def write_rows(path: Path, count: int, first: int) -> Path:
    """Prompts and completions of 1 to 30 tokens; every third prompt alone is over `MAX_LENGTH`, so that its row has no
    counted token left."""
    lines = sentences()
    with path.open("w") as file:
        for i in range(first, first + count):
            prompt = "question: " * (60 if i % 3 == 0 else 1) + lines[(37 * i) % len(lines)]
            completion = (" " + lines[(101 * i + 7) % len(lines)])[: 4 + 11 * (i % 13)]
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    return path


def make_inputs(folder: Path) -> Path:
    """Rows, held-out rows (5 and 3: no multiples of a batch or of two), a teacher and two students, all in float32."""
    write_rows(folder / "a.jsonl", 40, 1)
    write_rows(folder / "b.jsonl", 23, 1001)
    write_rows(folder / "held_a.jsonl", 5, 2001)
    write_rows(folder / "held_b.jsonl", 3, 3001)
    for name, settings in {
        "tied": {"tie": True, "seed": 1},
        "untied": {"tie": False, "seed": 2},
        "teacher": {"tie": False, "seed": 3, "hidden": 96, "layers": 3},
        "tied_teacher": {"tie": True, "seed": 4, "hidden": 96, "layers": 3},
    }.items():
        tiny_tokenizer(folder / name)
        tiny_llama(folder / name, initializer_range=0.1, **settings)
    return folder


# Masks that empty some batches, a state that needs the mean over both processes, and weights from the models.
MANY_TERMS = {
    "kd": {"term": "taid", "t": {"schedule": "adaptive", "from": 0.2, "alpha": 0.05, "beta": 0.5}},
    "jsd": {"term": "jsd", "beta": 0.3, "mask": {"domains": ["b"]}, "normalize": "kept"},
    "skew": {"term": "skew_reverse_kl", "token_weight": {"by": "teacher_entropy", "floor": 0.2},
             "weight": {"schedule": "cosine", "from": 1.0, "to": 0.1}},
    "ce": {"term": "cross_entropy", "weight": 0.1, "mask": {"positions": [0, 4]}},
}  # fmt: skip


def recipe(inputs: Path, student: str = "untied", teacher: str = "teacher") -> dict[str, Any]:
    """Forward KL at two temperatures and cross-entropy on one domain alone, 8 rows a step in two micro-batches."""
    sources = [{"path": str(inputs / f"{d}.jsonl"), "domain": d} for d in "ab"]
    held = [{"path": str(inputs / f"held_{d}.jsonl"), "domain": d} for d in "ab"]
    return {
        "run": {"output_dir": "?", "seed": 5},
        "student": {"model_name_or_path": str(inputs / student)},
        "teachers": [{"model_name_or_path": str(inputs / teacher)}],
        "data": {"datasets": sources},
        "objective": {
            "temperature": {"student": 1.5, "teacher": 2.0},
            "terms": {
                "kd": {"term": "forward_kl", "weight": 0.7},
                "ce": {"term": "cross_entropy", "weight": 0.4, "mask": {"domains": ["b"]}, "normalize": "kept"},
            },
        },
        "train": {
            "method": "offpolicy", "use_cpu": True, "max_length": MAX_LENGTH, "max_steps": STEPS,
            "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 2,
            "learning_rate": 3e-3, "adam_epsilon": 1e-5, "max_grad_norm": 1.0, "lr_scheduler_type": "linear",
            "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5,
            "disable_tqdm": True,
        },
        "eval": {"datasets": held},
    }  # fmt: skip


def changed(base: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    """A recipe with keys of its sections replaced; a value of None takes the key away."""
    out = json.loads(json.dumps(base))
    for section, keys in sections.items():
        for key, value in keys.items():
            out[section][key] = value
            if value is None:
                del out[section][key]
    return out


def halved(base: dict[str, Any]) -> dict[str, Any]:
    """The same rows a step for two processes."""
    half = base["train"]["per_device_train_batch_size"] // 2
    return changed(base, train={"per_device_train_batch_size": half})


def write_recipe(path: Path, content: dict[str, Any]) -> Path:
    """The recipe as a file; its run folder is beside it, named like it."""
    content = changed(content, run={"output_dir": str(path.with_suffix(""))})
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run_here(path: Path, content: dict[str, Any]) -> Path:
    """Run a recipe in this process; its run folder."""
    from llmkd.train import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert main([str(write_recipe(path, content))]) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return path.with_suffix("")


def start(launcher: list[str], program: list[str]) -> subprocess.Popen[str]:
    """Start two processes, in a process group of their own; what they say goes to the pipe `stdout`."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": "cpu",
    }
    return subprocess.Popen(
        [*launcher, *program], cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def launch(launcher: list[str], program: list[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Start two processes and wait for them.  Past the timeout all of them are killed."""
    return finish(start(launcher, program), timeout)


def finish(process: subprocess.Popen[str], timeout: float) -> subprocess.CompletedProcess[str]:
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"two processes were not done after {timeout} s:\n{output[-6000:]}") from None
    except BaseException:  # the test itself was stopped
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def torchrun(*arguments: str) -> list[str]:
    port = f"--master_port={free_port()}"
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", port, *arguments]


def accelerate(config: str, folder: Path, **deepspeed: Any) -> list[str]:
    """`accelerate launch` with a config that is shipped, changed for two processes on the CPU."""
    settings = yaml.safe_load((ROOT / "recipes" / "accelerate" / config).read_text())
    settings |= {"use_cpu": True, "num_processes": 2}
    settings.get("deepspeed_config", {}).update(deepspeed)
    (folder / config).write_text(yaml.safe_dump(settings))
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / config),
            "--main_process_port", str(free_port())]  # fmt: skip


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def run_in_two(
    launcher: list[str], folder: Path, recipes: dict[str, dict[str, Any]], cut: dict[str, int] | None = None
) -> dict[str, Path]:
    """Run recipes by name, one after the other, in one pair of processes; their run folders.  Those in ``cut`` are cut
    off after so many steps and resumed."""
    arguments = []
    for name, content in recipes.items():
        path = write_recipe(folder / f"{name}.yaml", content)
        arguments.append(f"{path}@{cut[name]}" if cut and name in cut else str(path))
    done = launch(launcher, [str(WORKER), *arguments])
    assert done.returncode == 0, done.stdout[-8000:]
    (folder / "output.txt").write_text(done.stdout)
    return {name: folder / name for name in recipes}


def proofs(run: Path) -> list[dict[str, Any]]:
    """What each process saw of a run, by rank (`worker.Proof`)."""
    return [json.loads(run.with_name(f"{run.name}-rank{rank}.json").read_text()) for rank in range(2)]


def lines(run: Path, key: str) -> dict[int, dict[str, float]]:
    """The lines of metrics.jsonl that hold `key`, by step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if key in row}


def differences(one: Path, two: Path, key: str) -> dict[str, float]:
    """Largest relative difference of every number that two runs logged beside `key`."""
    first, second = lines(one, key), lines(two, key)
    assert first.keys() == second.keys() and first, (sorted(first), sorted(second))
    found: dict[str, float] = {}
    for step, row in first.items():
        assert row.keys() == second[step].keys(), row.keys() ^ second[step].keys()
        for name, value in row.items():
            scale = max(abs(value), abs(second[step][name]), 1e-30)
            found[name] = max(found.get(name, 0.0), abs(value - second[step][name]) / scale)
    return found
