"""What the methods on a student's own samples are built from alike: prompts, and teachers that hear what it wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from torch import nn

from llmkd import build, modelling
from llmkd.backbone import check_family
from llmkd.config import Recipe
from llmkd.data.pipeline import Prepared, Rows, prepare_held_out, weights_of
from llmkd.data.prompts import prompts_of
from llmkd.teachers.local import WithoutAdapters
from llmkd.trainers.callbacks import CheckFamily
from llmkd.trainers.settings import OffPolicySettings


@dataclass
class Listeners:
    """The teachers that a recipe asks.  models: by name, but for those that are the student ``without_adapters``; ends:
    by which tokens each ends a turn; unchecked: what could not run before it was placed."""

    names: list[str]
    models: dict[str, nn.Module]
    without_adapters: list[str]
    ends: dict[str, list[int]]
    vocabulary: int
    unchecked: list[str]

    def live(self, trainer: Any) -> dict[str, Any]:
        """As the trainer asks them, placed as its student is."""
        found: dict[str, Any] = {n: build.live_teacher(n, m, trainer, False) for n, m in self.models.items()}
        if STUDENT in self.unchecked:
            trainer.add_callback(CheckFamily(trainer, packed=False))
        for name, teacher in found.items():
            if where(name) in self.unchecked:
                check_family(teacher.model, packed=False, where=where(name), wrapper=teacher.wrapped)
        return found | {name: WithoutAdapters(name, trainer.model) for name in self.without_adapters}


STUDENT = "student"


def where(teacher: str) -> str:
    return f"teachers.{teacher}"


def listeners(recipe: Recipe, student: nn.Module, tokenizer: Any) -> Listeners:
    """Load the teachers and compare them with the student; ValueError for one that cannot hear it."""
    asked = recipe.teachers if build.asks_teacher(recipe) else []
    # Sharded weights are whole only inside the wrapper's own forward: there the base is loaded once more.
    shared = [] if _sharded() else [t.name for t in asked if is_base(recipe, t)]
    models = {t.name: modelling.load_teacher(t) for t in asked if t.name not in shared}
    for teacher in asked:
        if teacher.template == "own":
            raise ValueError(
                f"{where(teacher.name)}.template: own, but what the student writes is scored as it stands: give "
                "template: student"
            )
    placed_later = []
    for place, model in [(STUDENT, student), *((where(name), model) for name, model in models.items())]:
        if modelling.runs_as_loaded(model):
            check_family(model, packed=False, where=place)
        else:
            placed_later.append(place)
    tokenizers = {t.name: modelling.load_teacher_tokenizer(t) for t in asked}
    vocabulary = build.shared_vocabulary(recipe, student, tokenizer, models, tokenizers)
    ends = {t.name: ends_of(tokenizers[t.name], models.get(t.name, student)) for t in asked}
    return Listeners([t.name for t in asked], models, shared, ends, vocabulary, placed_later)


def is_base(recipe: Recipe, teacher: Any) -> bool:
    """Whether a teacher is the student before its adapters: then its weights are those in memory already, and it is
    asked in the student's dtype where it names none of its own."""
    student, lora = recipe.student, recipe.student.lora
    if lora is None or lora.modules_to_save or lora.bias != "none":  # what is trained whole cannot be switched off
        return False
    return (
        student.quantization is None and teacher.quantization is None and teacher.dtype in ("auto", student.dtype)
        and all(getattr(student, key) == getattr(teacher, key) for key in ("model_name_or_path", "revision"))
    )  # fmt: skip


def _sharded() -> bool:
    return modelling.sharded_at_load() or fully_sharded()


def fully_sharded() -> bool:
    """Whether the run is one of FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def ends_of(tokenizer: Any, model: nn.Module) -> list[int]:
    """By which tokens a model ends a turn."""
    own = model.generation_config.eos_token_id
    listed = [own] if isinstance(own, int) else list(own or [])
    return sorted({*listed, tokenizer.eos_token_id} - {None})


def prompt_rows(recipe: Recipe, args: Any, tokenizer: Any, student: nn.Module, domains: list[str]) -> Rows:
    """The training rows as prompts, with the columns that rewards read; and the held-out rows."""
    context = getattr(student.config.get_text_config(), "max_position_embeddings", None)
    longest = None if context is None else context - args.max_completion_length
    if longest is not None and longest < 1:
        raise ValueError(
            f"train.max_completion_length: {args.max_completion_length} leaves no room for a prompt in the model's "
            f"context of {context} tokens: lower it"
        )
    references = tuple(dict.fromkeys(reward.column for reward in recipe.rewards if reward.column))
    prompts, lengths = prompts_of(
        recipe.data, tokenizer, domains, references, as_user=AS_USER[args.text_prompts], system=args.system_prompt,
        longest=longest,
    )  # fmt: skip
    defaults = {spec.name: spec.default for spec in fields(OffPolicySettings)}
    plain = SimpleNamespace(**{**defaults, "eval_packing": False, "max_length": context})
    held_out = prepare_held_out(recipe.eval, plain, tokenizer, {}, domains)
    return Rows(Prepared(prompts, lengths, weights_of(recipe.data)), held_out, ())


def keep_to_shared(given: Mapping[str, Any] | None, rows: int, vocabulary: int, vllm: bool) -> dict[str, Any]:
    """``generation_kwargs`` with which a model of so many head rows draws no token beyond the ``vocabulary`` that it
    shares: padding of its head, which the others may have no row for."""
    kept, beyond = dict(given or {}), range(vocabulary, rows)
    if beyond and vllm:
        return kept | {"logit_bias": {**kept.get("logit_bias", {}), **{token: -100.0 for token in beyond}}}
    return kept | {"suppress_tokens": [*(kept.get("suppress_tokens") or []), *beyond]} if beyond else kept


AS_USER = {"auto": None, "user": True, "raw": False}
"""``train.text_prompts`` as ``prompts_of`` has it."""
