"""Recipe -> live objects.  The only file that knows all of them.

tokenizer -> student -> teachers -> rows -> objective -> trainer
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from transformers import set_seed

from llmkd import modelling
from llmkd.backbone import check_family, head_rows
from llmkd.config import Recipe, Schedule, TemperatureColumn
from llmkd.config import Term as TermSection
from llmkd.data.collate import Collator
from llmkd.data.pipeline import Prepared, Rows, prepare
from llmkd.data.sampling import MixtureSampler
from llmkd.data.vocabulary import compare
from llmkd.objectives.compiled import check_compiler
from llmkd.objectives.objective import Objective, Term, TokenWeight, needs_teacher
from llmkd.objectives.schedules import CURVES, Adaptive, piecewise
from llmkd.teachers.local import LocalTeacher
from llmkd.terms import SEQUENCE_TERMS
from llmkd.trainers.callbacks import CheckFamily
from llmkd.trainers.held_out import HeldOut
from llmkd.trainers.offpolicy import OffPolicyTrainer
from llmkd.trainers.sequence_columns import IMPORTANCE, future_column
from llmkd.trainers.settings import OffPolicySettings, settings_of
from llmkd.trl_compat import wrap_frozen

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """A recipe's live objects, ready to train."""

    recipe: Recipe
    trainer: Any
    tokenizer: Any
    teachers: dict[str, Any]
    held_out: list[HeldOut]
    rows: Rows


def build(
    recipe: Recipe, callbacks: list[Any] | None = None, rows: Rows | None = None, draws: int | None = None
) -> Job:
    """Everything a run needs, or ValueError saying which key of the recipe does not fit the models or the data.

    ``rows``: those of another job with the same data and student, to be used again; ``draws``: how many draws of the
    run's order will be looked at, of a run that is not trained: a teacher writes to no others.
    """
    if recipe.train.method == "rl":
        from llmkd.build_rl import build_rl

        return build_rl(recipe, callbacks, rows)
    if recipe.train.method == "onpolicy":
        from llmkd.build_onpolicy import build_onpolicy

        return build_onpolicy(recipe, callbacks, rows, draws)
    return _build_offpolicy(recipe, callbacks, rows)


def _build_offpolicy(recipe: Recipe, callbacks: list[Any] | None, rows: Rows | None) -> Job:
    args = settings_of(recipe)
    check_best_metric(recipe, args)
    set_seed(recipe.run.seed)  # a fresh student starts from the same weights, whatever it is trained on
    tokenizer = modelling.load_tokenizer(recipe.student)
    student = modelling.load_student(recipe.student, tokenizer)
    teachers = {t.name: modelling.load_teacher(t) for t in recipe.teachers} if asks_teacher(recipe) else {}
    teacher_tokenizers = {t.name: modelling.load_teacher_tokenizer(t) for t in recipe.teachers if t.name in teachers}
    packed = bool(args.packing)
    unchecked = {id(model) for model in (student, *teachers.values()) if not modelling.runs_as_loaded(model)}
    for where, model in [("student", student), *((f"teachers.{n}", m) for n, m in teachers.items())]:
        if id(model) not in unchecked:
            check_family(model, packed=packed, where=where)
    vocabulary = shared_vocabulary(recipe, student, tokenizer, teachers, teacher_tokenizers)
    _warn_small_teachers(student, teachers)
    own = {t.name: teacher_tokenizers[t.name] for t in recipe.teachers if t.template == "own" and t.name in teachers}
    domains = domains_of(recipe)
    numbers = columns_read(recipe)
    if rows is None or rows.own != tuple(own) or not set(numbers) <= set(rows.numbers):
        rows = prepare(recipe.data, recipe.eval, args, tokenizer, own, domains, seed=recipe.run.seed, numbers=numbers)
    attention = recipe.student.attn_implementation
    collate_held_out = _collator(args, tokenizer, own, bool(args.eval_packing), attention)
    held_out = [HeldOut(domain, held, collate_held_out, args.eval_batch_size) for domain, held in rows.held_out.items()]
    args = with_steps(args, rows.training)
    trainer = OffPolicyTrainer(
        model=student,
        args=args,
        data_collator=_collator(args, tokenizer, own, packed, attention, numbers),
        train_dataset=rows.training.dataset,
        processing_class=tokenizer,
        peft_config=modelling.lora_config(recipe.student.lora, student),
        callbacks=callbacks or [],
        objective=build_objective(recipe, domains, vocabulary, args.max_steps),
        yardstick=build_yardstick(recipe, domains, vocabulary, list(teachers)),
        teachers={},
        order=None if rows.training.streaming else _order(rows.training, recipe.run.seed),
        held_out=held_out,
    )
    check_can_save(trainer)
    if id(student) in unchecked:
        trainer.add_callback(CheckFamily(trainer, packed))
    live = {name: live_teacher(name, model, trainer, name in own) for name, model in teachers.items()}
    for name, teacher in live.items():
        if id(teacher.model) in unchecked:
            check_family(teacher.model, packed=packed, where=f"teachers.{name}", wrapper=teacher.wrapped)
    trainer.teachers = live
    return Job(recipe, trainer, tokenizer, live, held_out, rows)


def build_objective(recipe: Recipe, domains: list[str], vocabulary: int, steps: int) -> Objective:
    """The recipe's terms, with names turned into ids and schedules into functions; ``steps``: those of the run."""
    only = recipe.teachers[0].name if len(recipe.teachers) == 1 else None
    terms = []
    for name, term in recipe.objective.terms.items():
        mask = term.mask
        # A term of whole completions is, to the engine, the log-probability of what was drawn, times a column.
        kind = "cross_entropy" if term.term in SEQUENCE_TERMS else term.term
        terms.append(
            Term(
                name=name,
                kind=kind,
                weight=schedule_of(term.weight, steps),
                domains=tuple(domains.index(d) for d in mask.domains) if mask and mask.domains else None,
                positions=tuple(mask.positions) if mask and mask.positions else None,
                completions=term.completions,
                normalize=term.normalize,
                teacher=(term.teacher or only) if needs_teacher(kind) else None,
                knobs={knob: schedule_of(value, steps) for knob, value in term.knobs.items()},
                token_weight=_token_weight(name, term),
            )
        )
    objective = recipe.objective
    if objective.compiled:
        check_compiler()
    tau = [t if isinstance(t, float) else t.column for t in vars(objective.temperature).values()]
    return Objective(
        terms, domains, vocabulary, *tau, standardize=objective.logit_standardize, compiled=objective.compiled
    )


def _token_weight(name: str, term: TermSection) -> TokenWeight | None:
    if term.term in SEQUENCE_TERMS:
        return TokenWeight("column", column=future_column(name), in_value=True)
    if term.token_weight is None:
        return None
    if term.token_weight.by == "importance":
        return TokenWeight("column", column=IMPORTANCE)
    return TokenWeight(**term.token_weight.model_dump())


def schedule_of(value: Any, steps: int) -> Any:
    """A section that describes a schedule as a function of the step; anything else as it is."""
    if not isinstance(value, Schedule):
        return value
    length = value.steps or steps
    if value.schedule == "constant":
        return value.start
    if value.schedule == "piecewise":
        return partial(piecewise, points=value.points)
    if value.schedule == "adaptive":
        given = {"alpha": value.alpha, "beta": value.beta}
        start, stop = (x if x is not None else d for x, d in ((value.start, 0.4), (value.stop, 1.0)))
        return Adaptive(start, stop, length, **{k: v for k, v in given.items() if v is not None})
    return partial(CURVES[value.schedule], start=value.start, stop=value.stop, steps=length)


def columns_read(recipe: Recipe) -> tuple[str, ...]:
    """The columns of numbers that the loss reads from the training data."""
    weights = [t.token_weight.column for t in recipe.objective.terms.values() if t.token_weight]
    tau = recipe.objective.temperature
    columns = [*weights, *(t.column for t in (tau.student, tau.teacher) if isinstance(t, TemperatureColumn))]
    return tuple(dict.fromkeys(column for column in columns if column))


def build_yardstick(recipe: Recipe, domains: list[str], vocabulary: int, teachers: list[str]) -> Objective:
    """What held-out rows are measured by, whatever is trained on: cross-entropy and forward KL at temperature 1."""
    terms = [Term("ce", "cross_entropy")]
    if recipe.eval.fidelity:
        terms += [Term("kl" if len(teachers) == 1 else f"kl@{t}", "forward_kl", teacher=t) for t in teachers]
    return Objective(terms, domains, vocabulary)


def domains_of(recipe: Recipe) -> list[str]:
    """Names of the domains, in the order in which the recipe first names them; a domain's id is its place here."""
    return list(dict.fromkeys(source.domain for source in [*recipe.data.datasets, *recipe.eval.datasets]))


def check_best_metric(recipe: Recipe, args: OffPolicySettings) -> None:
    """Refuse at the start a metric for the best checkpoint that no evaluation will measure."""
    best = args.metric_for_best_model
    if best is None:
        return
    teachers = [t.name for t in recipe.teachers] if asks_teacher(recipe) and recipe.eval.fidelity else []
    suffix = [""] if len(teachers) == 1 else [f"@{t}" for t in teachers]
    beside = ("kl", "agreement", "teacher_entropy")
    measures = ["ce", "bits_per_byte", "entropy", *(f"{m}{s}" for s in suffix for m in beside)]
    domains = list(dict.fromkeys(s.domain for s in recipe.eval.datasets))
    known = [f"eval/{d}/{m}" for d in [*domains, "mean"] for m in measures] if domains else []
    if "eval/" + best.removeprefix("eval_") not in known:
        raise ValueError(
            f"train.metric_for_best_model: eval/{best.removeprefix('eval_')} is not measured: give one of "
            f"{', '.join(known) or 'the metrics of eval.datasets, of which there are none'}"
        )


def asks_teacher(recipe: Recipe) -> bool:
    writes = any(recipe.train.options.get(key) for key in ("seq_kd", "teacher_mixture"))
    trains = writes or any(needs_teacher(t.term) for t in recipe.objective.terms.values())
    return bool(recipe.teachers) and (trains or (recipe.eval.fidelity and bool(recipe.eval.datasets)))


def shared_vocabulary(
    recipe: Recipe, student: nn.Module, tokenizer: Any, teachers: Mapping[str, nn.Module], tokenizers: Mapping[str, Any]
) -> int:
    rows = head_rows(student)
    if len(tokenizer) > rows:
        raise ValueError(
            f"student: the tokenizer has {len(tokenizer)} entries, the model only {rows} rows: the tokenizer of "
            "another model? Give student.tokenizer_name_or_path"
        )
    for name, teacher in teachers.items():
        shared, note = compare(
            tokenizer,
            tokenizers[name],
            student_rows=head_rows(student),
            teacher_rows=head_rows(teacher),
            names=(_tokenizer_name(recipe.student), _tokenizer_name(_teacher(recipe, name))),
        )
        if note:
            logger.warning(note)
        rows = min(rows, shared)
    return rows


def _teacher(recipe: Recipe, name: str) -> Any:
    return next(t for t in recipe.teachers if t.name == name)


def _tokenizer_name(section: Any) -> str:
    return getattr(section, "tokenizer_name_or_path", None) or section.model_name_or_path


def _warn_small_teachers(student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
    mine = modelling.parameter_count(student)
    for name, teacher in teachers.items():
        theirs = modelling.parameter_count(teacher)
        if theirs < mine:
            logger.warning(
                "teachers.%s has %s parameters, fewer than the student's %s: are they the wrong way round?",
                name, f"{theirs:,}", f"{mine:,}",
            )  # fmt: skip


def _collator(
    args: OffPolicySettings, tokenizer: Any, own: Mapping[str, Any], packed: bool, attention: str | None,
    numbers: tuple[str, ...] = (),
) -> Collator:  # fmt: skip
    multiple = args.pad_to_multiple_of if isinstance(args.pad_to_multiple_of, int) else None
    return Collator(
        pad_id=tokenizer.pad_token_id,
        packed=packed,
        teachers=tuple(own),
        teacher_pad_ids=tuple(t.pad_token_id for t in own.values()),
        pad_to_multiple_of=multiple,
        flatten=packed and bool(attention) and "flash" in attention,
        numbers=numbers,
    )


def with_steps(args: OffPolicySettings, rows: Prepared) -> OffPolicySettings:
    """Turn epochs into steps: the run is one pass over an order that holds every draw."""
    if rows.streaming:
        if args.max_steps <= 0:
            raise ValueError("train.max_steps: needed with streaming data, whose length is not known")
        for what in ("eval", "save", "logging"):
            if getattr(args, f"{what}_strategy") == "epoch":
                raise ValueError(
                    f"train.{what}_strategy: epoch, but a stream has no length: use steps, and train.{what}_steps"
                )
        return args
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    per_epoch = max(1, -(-len(rows.dataset) // per_step))
    if args.max_steps <= 0:
        args.max_steps = max(1, round(per_epoch * args.num_train_epochs))
    return epochs_as_steps(args, per_epoch)


def epochs_as_steps(args: Any, per_epoch: int) -> Any:
    """Evaluate, save and log after so many steps, where that was asked for once an epoch."""
    for what in ("eval", "save", "logging"):
        strategy = getattr(args, f"{what}_strategy")
        if strategy == "epoch":
            setattr(args, f"{what}_strategy", type(strategy)("steps"))
            setattr(args, f"{what}_steps", min(per_epoch, args.max_steps))
    return args


def _order(rows: Prepared, seed: int) -> Any:
    return lambda total: MixtureSampler(rows.lengths, rows.weights, total, seed)


def check_can_save(trainer: Any) -> None:
    """Refuse at the start a ZeRO-3 configuration that cannot write a whole model at the end."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    zero = plugin.deepspeed_config["zero_optimization"] if plugin is not None else {}
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise ValueError(
            "ZeRO-3 would write a model that from_pretrained cannot read: set zero3_save_16bit_model: true in the "
            "configuration of accelerate (stage3_gather_16bit_weights_on_model_save in one of DeepSpeed), as in "
            "recipes/accelerate/zero3.yaml"
        )


def live_teacher(name: str, model: nn.Module, trainer: Any, own_rendering: bool) -> LocalTeacher:
    wrapped = wrap_frozen(model, trainer.accelerator)
    whole_head = modelling.whole_head(model)
    return LocalTeacher(name, model, own_rendering, wrapped=wrapped, whole_head=whole_head)
