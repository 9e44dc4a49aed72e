"""A recipe of on-policy distillation -> live objects: prompts, a student that writes, teachers that listen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import GenerationConfig, set_seed

from llmkd import build, modelling
from llmkd.backbone import head_rows
from llmkd.build_rollouts import AS_USER, Listeners, fully_sharded, keep_to_shared, listeners, prompt_rows, where
from llmkd.config import Recipe
from llmkd.data.collate import Collator
from llmkd.data.completions import completions_of, rows_of_tokens
from llmkd.data.pipeline import Prepared, Rows
from llmkd.data.prompts import GroupedOrder
from llmkd.data.sampling import MixtureSampler
from llmkd.objectives import sequence
from llmkd.objectives.sampled import sampled_logp
from llmkd.teachers.local import WithoutAdapters
from llmkd.terms import SEQUENCE_TERMS
from llmkd.trainers.held_out import HeldOut
from llmkd.trainers.mixed_sampling import check_can_mix
from llmkd.trainers.onpolicy import OnPolicyTrainer
from llmkd.trainers.own_share import on_policy
from llmkd.trainers.sequence_columns import FutureTerm, SequenceFormulas, Sequences
from llmkd.trainers.settings import settings_of
from llmkd.trainers.teacher_samples import drawn
from llmkd.trl_compat import whole_for_generation

TEACHERS_FILE = "teacher_completions.jsonl"


def build_onpolicy(
    recipe: Recipe, callbacks: list[Any] | None = None, rows: Rows | None = None, draws: int | None = None
) -> build.Job:
    """As ``build.build``."""
    args = settings_of(recipe)
    if args.teacher_mixture and fully_sharded():
        raise ValueError(
            "train.teacher_mixture: not under FSDP, where a process that has written its completions leaves the "
            "others waiting for its part of the teacher: use DDP or ZeRO (recipes/accelerate), or leave it out"
        )
    build.check_best_metric(recipe, args)
    set_seed(recipe.run.seed)
    tokenizer = modelling.load_tokenizer(recipe.student)
    student = modelling.load_student(recipe.student, tokenizer)
    teachers = listeners(recipe, student, tokenizer)
    domains = build.domains_of(recipe)
    rows = rows or _rows(recipe, args, tokenizer, student, domains)
    args = build.with_steps(args, rows.training)
    _check_replay(args)
    args.eval_on_start |= args.lmbda_schedule == "adaptive"  # the first evaluation to compare with
    args.generation_kwargs = keep_to_shared(
        args.generation_kwargs, head_rows(student), teachers.vocabulary, args.use_vllm
    )
    collate = Collator(tokenizer.pad_token_id, False, pad_to_multiple_of=args.pad_to_multiple_of)
    held_out = [HeldOut(domain, held, Collator(tokenizer.pad_token_id, False), args.eval_batch_size)
                for domain, held in rows.held_out.items()]  # fmt: skip
    trainer = OnPolicyTrainer(
        model=student,
        args=args,
        train_dataset=rows.training.dataset,
        processing_class=tokenizer,
        peft_config=modelling.lora_config(recipe.student.lora, student),
        callbacks=callbacks or [],
        objective=build.build_objective(recipe, domains, teachers.vocabulary, args.max_steps),
        teachers={},
        ends=teachers.ends,
        collate=collate,
        order=_order(rows.training, args, recipe.run.seed),
        held_out=held_out,
        yardstick=build.build_yardstick(recipe, domains, teachers.vocabulary, teachers.names),
        sequences=sequences_of(recipe, teachers.vocabulary),
    )
    build.check_can_save(trainer)
    trainer.teachers = live = teachers.live(trainer)
    if args.teacher_mixture:
        check_can_mix(live[teachers.names[0]].model, where(teachers.names[0]))
    if args.seq_kd:
        trainer.train_dataset = _of_teacher(recipe, trainer, teachers, live, draws)
    return build.Job(recipe, trainer, tokenizer, live, held_out, rows)


def sequences_of(recipe: Recipe, vocabulary: int) -> Sequences | None:
    """What a recipe asks of whole completions, beside what they are token by token; None for nothing."""
    share = recipe.train.options.get("teacher_mixture", 0.0)
    only = recipe.teachers[0].name if recipe.teachers else ""
    weighed = {name: term.token_weight is not None and term.token_weight.by == "importance"
               for name, term in recipe.objective.terms.items()}  # fmt: skip
    futures = [
        FutureTerm(name, term.teacher or only, term.returns or "normalised", weighed[name])
        for name, term in recipe.objective.terms.items() if term.term in SEQUENCE_TERMS
    ]  # fmt: skip
    others = any(weighed[name] for name in weighed if name not in {future.name for future in futures})
    if not (share or futures or others):
        return None
    formulas = SequenceFormulas(
        sampled=sampled_logp,
        mixture=partial(sequence.teacher_mixed, share=share),
        importance=partial(sequence.importance_weight, share=share),
        reward=sequence.token_reward,
        returns={"normalised": sequence.normalised_return, "plain": sequence.future_return},
    )
    return Sequences(formulas, vocabulary, futures, only if share else None, others)


def _rows(recipe: Recipe, args: Any, tokenizer: Any, student: nn.Module, domains: list[str]) -> Rows:
    """Prompts, and beside each the tokens of the data's completion where some step will look at it."""
    rows = prompt_rows(recipe, args, tokenizer, student, domains)
    if args.seq_kd or (args.lmbda == 1 and not args.pairs):
        return rows
    as_user = AS_USER[args.text_prompts]
    given = completions_of(
        recipe.data, tokenizer, domains, max_length=args.max_length, system=args.system_prompt,
        as_user=bool(tokenizer.chat_template) if as_user is None else as_user,
    )  # fmt: skip
    both = concatenate_datasets([rows.training.dataset, given], axis=1)
    return Rows(Prepared(both, rows.training.lengths, rows.training.weights), rows.held_out, ())


def _check_replay(args: Any) -> None:
    """Refuse a buffer that holds less than a step draws from it, ValueError."""
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if 0 < args.replay_capacity < per_step:
        raise ValueError(
            f"train.replay_capacity: {args.replay_capacity} is less than the {per_step} completions that a step draws "
            "from the buffer: raise it (DistiLLM: 1000), or give 0 for none"
        )


def _order(rows: Prepared, args: Any, seed: int) -> Callable[[int], GroupedOrder]:
    times = args.gradient_accumulation_steps
    per_step = args.train_batch_size * times * args.world_size

    def order(total: int) -> GroupedOrder:
        return GroupedOrder(MixtureSampler(rows.lengths, rows.weights, total, seed), per_step, 1, times)

    return order


# -- completions of the teacher ---------------------------------------------------------------------------------------


def _of_teacher(recipe: Recipe, trainer: Any, teachers: Listeners, live: dict[str, Any], draws: int | None) -> Dataset:
    """The prompts with what the teacher writes to those that a step on the data will draw; the others stay bare."""
    args, prompts = trainer.args, trainer.train_dataset
    name = teachers.names[0]
    ends, pad = teachers.ends[name], trainer.processing_class.pad_token_id
    rows = head_rows(teachers.models[name]) if name in teachers.models else teachers.vocabulary
    asked_for = {**trainer.generation_kwargs, "eos_token_id": ends, "disable_compile": True}
    config = GenerationConfig(**keep_to_shared(asked_for, rows, teachers.vocabulary, vllm=False))
    asked = trainer.prompt_ids(list(prompts))
    how = {key: value for key, value in config.to_diff_dict().items() if key != "transformers_version"}

    def write(rows: Sequence[int]) -> list[list[int]]:
        return _completed(model, [asked[row] for row in rows], config, ends, pad)

    said = {
        "by": recipe.teachers[0].model_dump(), "seed": recipe.run.seed, "how": how,
        "prompts": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
    }  # fmt: skip
    with _writing(live[name], trainer) as model:
        found = drawn(
            Path(args.output_dir) / TEACHERS_FILE, _rows_of_data_steps(trainer, draws), said, write,
            trainer.processing_class.decode, recipe.run.seed, trainer.accelerator,
        )  # fmt: skip
    own, end = set(trainer.eos_token_ids), trainer.processing_class.eos_token_id
    written = [[end if token in ends and token not in own else token for token in found.get(row, [])]
               for row in range(len(prompts))]  # fmt: skip
    given = rows_of_tokens(asked, written, prompts["domain_id"])
    return concatenate_datasets([prompts, given], axis=1)


def _rows_of_data_steps(trainer: Any, draws: int | None) -> list[int]:
    """Which rows the steps on the data draw, in the order of their numbers; under a share that rises, some more.
    draws: those of so many first draws instead."""
    args = trainer.args
    if draws is not None:
        return sorted(set(islice(trainer._get_train_sampler(), draws)))
    share = 0.0 if args.pairs else args.lmbda
    each = trainer.rows_per_step * args.gradient_accumulation_steps  # they come once for each micro-batch
    drawn_by_step = enumerate(trainer._get_train_sampler())
    return sorted({row for i, row in drawn_by_step if not on_policy(args.seed, i // each, share)})


@contextmanager
def _writing(teacher: Any, trainer: Any) -> Iterator[nn.Module]:
    """A teacher's model, ready for ``generate``."""
    if isinstance(teacher, WithoutAdapters):
        was_training = trainer.model.training
        with trainer.whole() as model, model.disable_adapter():  # type: ignore[operator]
            yield model.eval()
        trainer.model.train(was_training)
        return
    with whole_for_generation(teacher.wrapped or teacher.model, trainer.accelerator) as model:
        yield model


@torch.no_grad()
def _completed(
    model: nn.Module, prompts: Sequence[Sequence[int]], config: GenerationConfig, ends: Sequence[int], pad: int
) -> list[list[int]]:
    """A completion for each prompt, up to the first end and with it."""
    width = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
    stops = [next((i + 1 for i, token in enumerate(line) if token in ends), len(line)) for line in written]
    return [line[:stop] for line, stop in zip(written, stops, strict=True)]
