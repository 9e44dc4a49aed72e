"""MODEL_OR_RUN: which weights are measured, what identifies them, and where the results go."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmkd.evaluation.results import FILES_OF_A_MODEL, fingerprint
from llmkd.modelling import resolve

HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How transformers ends the names of models that generate text."""
RESULTS = Path("eval-results")


@dataclass(frozen=True)
class Candidate:
    """name: what tables call it; folder: its weights; adapter: a LoRA adapter upon them; fingerprint: of both; run: the
    run folder that it is the result of."""

    name: str
    folder: Path
    fingerprint: str
    adapter: Path | None = None
    run: Path | None = None

    def results(self, output_path: Path | None) -> Path:
        """The folder of the results."""
        if self.run is not None:
            return self.run / "eval"
        if output_path is not None:
            return output_path.parent if output_path.suffix == ".json" else output_path
        return RESULTS / self.name.replace("/", "__")

    def has_chat_template(self) -> bool:
        config = self.folder / "tokenizer_config.json"
        saved = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        return (self.folder / "chat_template.jinja").is_file() or bool(saved.get("chat_template"))

    def trained_length(self) -> int | None:
        """The longest row that the run trained on, where a run is known."""
        return (self.recipe().get("train") or {}).get("max_length")

    def recipe(self) -> dict[str, Any]:
        """The run's recipe, empty where no run is known."""
        if self.run is None:
            return {}
        return yaml.safe_load((self.run / "recipe.yaml").read_text(encoding="utf-8")) or {}


def find(given: str, revision: str | None = None) -> Candidate:
    """ValueError where there are no weights of a model that generates text."""
    path = Path(resolve(given)).expanduser()
    if (path / "recipe.yaml").is_file():
        return _of_run(path)
    folder = weights(given, revision)
    return Candidate(_name(given, folder), folder, fingerprint(folder))


def weights(given: str, revision: str | None = None) -> Path:
    """The folder of a model: a saved one, the embedded teacher, or a hub name's snapshot.  ValueError otherwise."""
    path = Path(resolve(given)).expanduser()
    if path.is_dir():
        folder = path
    elif path.exists():
        raise ValueError(f"{given}: is a file: give a hub name, the folder of a saved model, or a run folder")
    elif re.fullmatch(r"[\w.-]*\w[\w.-]*(/[\w.-]+)?", given) and not given.startswith("."):
        folder = _snapshot(given, revision)
    else:
        raise ValueError(f"{given}: no such folder: give a hub name, the folder of a saved model, or a run folder")
    _check_head(given, folder)
    return folder


def _of_run(run: Path) -> Candidate:
    """The result of a run that has ended: its merged model, or its base with its adapter."""
    if not (run / "summary.json").is_file():
        raise ValueError(
            f"{run}: the run has not ended (no summary.json): wait for it, go on with it (run.resume=auto), or give "
            "one of its checkpoints"
        )
    name = run.resolve().name
    if (run / "model").is_dir():
        _check_head(str(run / "model"), run / "model")
        return Candidate(name, run / "model", fingerprint(run / "model"), run=run)
    if not (run / "adapter").is_dir():
        raise ValueError(f"{run}: holds neither model/ nor adapter/: run its recipe again in another folder")
    student = (yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")) or {}).get("student") or {}
    if not student.get("model_name_or_path"):
        raise ValueError(f"{run}: holds an adapter/ alone, of a base made fresh: set student.merged_export: true")
    base = weights(student["model_name_or_path"], student.get("revision"))
    both = fingerprint(base) + fingerprint(run / "adapter")
    digest = hashlib.blake2b(both.encode(), digest_size=16).hexdigest()
    return Candidate(name, base, digest, adapter=run / "adapter", run=run)


def _snapshot(name: str, revision: str | None) -> Path:
    """A hub name's files, fetched where they are not there yet.  ValueError says whether the network is missing."""
    from huggingface_hub import snapshot_download

    patterns = [pattern for pattern in FILES_OF_A_MODEL if pattern != "*.bin"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES_OF_A_MODEL)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if offline():
            raise ValueError(
                f"{name}: no folder of this name, and HF_HUB_OFFLINE forbids to fetch it from the hub: give a folder, "
                "or fetch it once with HF_HUB_OFFLINE=0"
            ) from None
        raise ValueError(f"{name}: no folder of this name, nor can it be fetched from the hub: {reason}") from None
    return folder


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON")


def _check_head(given: str, folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{given}: is no saved model (no config.json): give a folder that save_pretrained wrote, or a run folder"
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): save the model again") from None
    named = config.get("architectures") or []
    if named and not any(name.endswith(HEADS) for name in named):
        raise ValueError(
            f"{given}: {', '.join(named)} has no head to generate text: give a model whose class ends in "
            f"{' or '.join(HEADS)}"
        )


def _name(given: str, folder: Path) -> str:
    """A hub name as it is; a folder's own name, with its parent's where it says nothing alone."""
    if not Path(given).expanduser().exists():
        return given
    resolved = folder.resolve()
    bare = resolved.name in ("model", "adapter") or resolved.name.startswith("checkpoint-")
    return f"{resolved.parent.name}-{resolved.name}" if bare else resolved.name
