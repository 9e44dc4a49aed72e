"""Names of tasks: lm_eval's and those of ``eval/tasks``, with the versions their numbers belong to."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmkd.evaluation.harness.local import files

OWN = Path(__file__).parents[3] / "eval" / "tasks"
NEAR = 3


def need_lm_eval() -> None:
    if find_spec("lm_eval") is None:
        raise ValueError("benchmarks need the lm_eval package: pip install 'llmkd[eval]'")


def manager(names: Sequence[str], include: Sequence[Path], own: Collection[str], metadata: dict[str, Any]) -> Any:
    """lm_eval's TaskManager that knows all ``names``; ValueError for one that nobody knows, with the nearest.

    lm_eval's own list takes seconds to read, and is read only where a name is not found without it.
    """
    need_lm_eval()
    from lm_eval.tasks import TaskManager

    folders = [str(folder) for folder in (OWN, *include) if folder.is_dir()]
    found = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
    if all(_known(found, name) for name in names):
        return found
    found = TaskManager(include_path=folders, metadata=metadata)
    for name in names:
        if not _known(found, name):
            near = difflib.get_close_matches(name, [*found.all_tasks, *own], n=NEAR, cutoff=0.6)
            advice = f"the nearest are {', '.join(near)}" if near else "`lm_eval ls tasks` lists lm_eval's"
            raise ValueError(f"--tasks: {name}: no task of this name in lm_eval, eval/tasks or our own: {advice}")
    return found


def _known(manager: Any, name: str) -> bool:
    return name in manager.task_index or bool(_matches(manager, name)) or _is_file(name)


def _is_file(name: str) -> bool:
    return name.endswith(".yaml") and Path(name).is_file()


def _matches(manager: Any, name: str) -> list[str]:
    return list(manager.match_tasks([name])) if "*" in name else []


def expand(manager: Any, name: str) -> list[str]:
    """The tasks that a name stands for: those of a tag or a pattern; a group is one task."""
    if "*" in name:
        return [match for match in _matches(manager, name) if manager.task_index[match].kind.name != "TAG"]
    entry = manager.task_index.get(name)
    return sorted(entry.tags) if entry is not None and entry.kind.name == "TAG" else [name]


def version(manager: Any, name: str) -> str:
    """The YAML's own version; for what is not lm_eval's, also a digest of its text, its folder's code and its files."""
    path = Path(name) if _is_file(name) else manager.task_index[name].yaml_path
    config = _config(manager, name)
    said = str((config.get("metadata") or {}).get("version", 0))
    if path is None or "lm_eval" in Path(path).parts:
        return said
    folder = Path(path).resolve().parent
    # With its includes, and wherever the folder lies: functions stand in it by their path.
    whole = json.dumps(config, sort_keys=True, default=str).replace(str(folder), "")
    digest = hashlib.blake2b(whole.encode(), digest_size=5)
    for beside in sorted(folder.glob("*.py")):
        digest.update(beside.read_bytes())
    for file in ((config.get("dataset_kwargs") or {}).get("files") or {}).values():
        digest.update(files.find(file).read_bytes())
    if "math_verify" in json.dumps(config.get("metric_list", []), default=str):
        digest.update(str(find_spec("math_verify") is not None).encode())
    return f"{said}+{digest.hexdigest()}"


def _config(manager: Any, name: str) -> dict[str, Any]:
    if not _is_file(name):
        return manager.task_index[name].cfg or {}
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(name, resolve_func=False)
