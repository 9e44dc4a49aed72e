"""The options of ``llmkd-eval`` as values, in lm_eval's spelling; ValueError says what is wrong and what allowed."""

from __future__ import annotations

import argparse
import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkd.config.values import shown

MODELS = ("hf", "vllm")
SEEDS = (0, 1234, 1234, 1234)
"""lm_eval's seeds of Python, NumPy, torch and the choice of examples."""
IF_PRESENT = "if_present"


@dataclass(frozen=True)
class Settings:
    """What changes the numbers of one task.  None: as the task's own YAML says."""

    num_fewshot: int | None = None
    limit: int | float | None = None
    gen_kwargs: Mapping[str, Any] | None = None
    apply_chat_template: bool | str | None = None

    def over(self, base: Settings) -> Settings:
        """These settings, and where they say nothing those of ``base``."""
        own = {name: value for name, value in vars(self).items() if value is not None}
        return Settings(**{**vars(base), **own})


@dataclass(frozen=True)
class Options:
    model_or_run: str
    tasks: Sequence[str] = ()
    suite: str | None = None
    settings: Settings = field(default_factory=Settings)
    model: str = "hf"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | str = "auto"
    device: str | None = None
    seeds: Sequence[int | None] = SEEDS
    include_path: Sequence[Path] = ()
    output_path: Path | None = None
    log_samples: bool = False
    teacher: str | None = None
    baseline: str | None = None
    data: str | None = None
    confirm_run_unsafe_code: bool = False


def read(given: argparse.Namespace) -> Options:
    """ValueError for a value that is not one of its option."""
    tasks = [name for word in given.tasks or () for name in word.split(",") if name]
    if bool(tasks) == bool(given.suite):
        raise ValueError("give --tasks or --suite, one of them: such as --suite eval/suites/offline.yaml")
    if given.model not in MODELS:
        raise ValueError(f"--model: {given.model!r} is not one of {', '.join(MODELS)}: give one of them")
    folders = [Path(folder) for folder in given.include_path or ()]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"--include_path: {folder} is not a folder: give one with task YAMLs")
    settings = Settings(
        num_fewshot=None if given.num_fewshot is None else whole("--num_fewshot", given.num_fewshot, 0),
        limit=None if given.limit is None else limit(given.limit),
        gen_kwargs=pairs("--gen_kwargs", given.gen_kwargs) or None,
        apply_chat_template=given.apply_chat_template,
    )
    return Options(
        model_or_run=given.model_or_run, tasks=tasks, suite=given.suite, settings=settings, model=given.model,
        model_args=model_args(given.model_args), batch_size=batch_size(given.batch_size),
        device=None if given.device is None else device(given.device),
        seeds=SEEDS if given.seed is None else seeds(given.seed), include_path=folders,
        output_path=Path(given.output_path) if given.output_path else None, log_samples=given.log_samples,
        teacher=given.teacher, baseline=given.baseline, data=given.data,
        confirm_run_unsafe_code=given.confirm_run_unsafe_code,
    )  # fmt: skip


def whole(option: str, text: str, least: int) -> int:
    if not text.lstrip("-").isdigit() or int(text) < least:
        raise ValueError(f"{option}: {text!r} is not a whole number of at least {least}: give one")
    return int(text)


def limit(text: str) -> int | float:
    """A number of questions, or a share of them; 0 is refused, which lm_eval takes for all of them."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0 or math.isinf(value) or (value >= 1 and not value.is_integer()):
        raise ValueError(f"--limit: {text!r} is neither a number of questions nor a share in (0, 1): give one of them")
    return int(value) if value >= 1 else value


def batch_size(text: str) -> int | str:
    head, _, rounds = text.partition(":")
    if head == "auto" and (text == "auto" or rounds.isdigit()):
        return text
    if text.isdigit() and int(text) >= 1:
        return int(text)
    raise ValueError(f"--batch_size: {text!r} is not a number from 1 on, auto or auto:N: give one of them")


def device(text: str) -> str:
    """A device of this machine: lm_eval takes another one where it does not know the name."""
    import torch

    try:
        kind = torch.device(text).type
    except RuntimeError:
        raise ValueError(f"--device: {text!r} is no device of torch: give such as cuda, cuda:0, cpu or mps") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device: {text}: this machine has no CUDA device: leave --device out, or give cpu")
    return text


def seeds(text: str) -> tuple[int | None, ...]:
    """One for all four, or four of them, ``None`` leaving one unset."""
    words = [word.strip() for word in text.split(",")]
    if len(words) not in (1, len(SEEDS)) or not all(word == "None" or word.lstrip("-").isdigit() for word in words):
        raise ValueError(f"--seed: {text!r} is neither a whole number nor four (or None), such as 0,1234,1234,1234")
    found = tuple(None if word == "None" else int(word) for word in words)
    return found * len(SEEDS) if len(found) == 1 else found


def model_args(words: Sequence[str] | None) -> dict[str, Any]:
    found = pairs("--model_args", words)
    if "pretrained" in found:
        raise ValueError("--model_args: pretrained is what MODEL_OR_RUN names: leave it out")
    return found


def pairs(option: str, words: Sequence[str] | None) -> dict[str, Any]:
    """``key=value,key=value``, several such words, or one JSON object, as lm_eval reads them."""
    found: dict[str, Any] = {}
    for word in words or ():
        if word.lstrip().startswith("{"):
            found |= _json(option, word)
            continue
        for item in _split(word):
            key, equals, value = item.partition("=")
            if not equals or not key.strip():
                raise ValueError(f"{option}: {shown(item)} is not key=value: write such as dtype=float32")
            found[key.strip()] = _value(value)
    return found


def _json(option: str, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{option}: {shown(text)} is not a JSON object ({error}): write key=value") from None


def _split(text: str) -> list[str]:
    """At the commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += letter
    return [part for part in parts if part]


def _value(text: str) -> Any:
    """A number, true or false, a Python literal, else the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read_as in (int, float, ast.literal_eval):
        try:
            return read_as(text)
        except (ValueError, SyntaxError):
            continue
    return text
