"""A recipe of reinforcement learning -> live objects: prompts, rewards, a policy and the teachers beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import set_seed

from llmkd import build, modelling
from llmkd.backbone import head_rows
from llmkd.build_rewards import reward_functions
from llmkd.build_rollouts import keep_to_shared, listeners, prompt_rows
from llmkd.config import Recipe
from llmkd.data.collate import Collator
from llmkd.data.pipeline import Prepared, Rows
from llmkd.data.prompts import GroupedOrder
from llmkd.data.sampling import MixtureSampler
from llmkd.objectives import policy, sampled
from llmkd.objectives.compiled import check_compiler
from llmkd.objectives.negative_aware import GroupWeight, negative_aware
from llmkd.objectives.objective import Objective, Term, TokenWeight
from llmkd.trainers.held_out import HeldOut
from llmkd.trainers.policy_terms import WHOLE, Formulas, PolicyTerm, TeacherTerm
from llmkd.trainers.rl import RLTrainer
from llmkd.trainers.settings import settings_of

logger = logging.getLogger(__name__)

FORMULAS = Formulas(
    estimators={"k2": policy.k2, "k3": policy.k3},
    advantage=policy.teacher_advantage,
    sampled=sampled.sampled_logp,
    likeliest=sampled.likeliest,
    negative_aware=negative_aware,
)


WEIGHTS: dict[str | None, GroupWeight] = {None: "grpo", "normalised": "grpo", "plain": "dr_grpo", "unweighted": "none"}
"""Of nft: which weight of a group makes the advantage that the recipe names."""


def build_rl(recipe: Recipe, callbacks: list[Any] | None = None, rows: Rows | None = None) -> build.Job:
    """Everything a run needs, or ValueError saying which key of the recipe does not fit the models or the data."""
    args = settings_of(recipe)
    build.check_best_metric(recipe, args)
    if recipe.objective.compiled:
        check_compiler()
    set_seed(recipe.run.seed)
    tokenizer = modelling.load_tokenizer(recipe.student)
    student = modelling.load_student(recipe.student, tokenizer)
    teachers = listeners(recipe, student, tokenizer)
    vocabulary = teachers.vocabulary
    domains = build.domains_of(recipe)
    rows = rows or prompt_rows(recipe, args, tokenizer, student, domains)
    args = _with_steps(args, rows.training)
    args.generation_kwargs = keep_to_shared(args.generation_kwargs, head_rows(student), vocabulary, args.use_vllm)
    functions, weights = reward_functions(recipe.rewards)
    args.reward_weights = weights
    marked = [i for i, reward in enumerate(recipe.rewards) if reward.correct]
    own, terms = terms_of(recipe, args.max_steps)
    held_out = [HeldOut(domain, held, Collator(tokenizer.pad_token_id, False), args.eval_batch_size)
                for domain, held in rows.held_out.items()]  # fmt: skip
    trainer = RLTrainer(
        model=student,
        args=args,
        reward_funcs=functions,
        train_dataset=rows.training.dataset,
        processing_class=tokenizer,
        peft_config=modelling.lora_config(recipe.student.lora, student),
        callbacks=callbacks or [],
        policy=own,
        terms=terms,
        whole={t.name: _whole(t, recipe, args.max_steps, domains, vocabulary) for t in terms if t.estimator in WHOLE},
        formulas=formulas_of(recipe),
        teachers={},
        ends=teachers.ends,
        correct=marked[0] if marked else None,
        vocabulary=vocabulary,
        tau_teacher=float(recipe.objective.temperature.teacher),
        domains=domains,
        order=_order(rows.training, args, recipe.run.seed),
        held_out=held_out,
        yardstick=build.build_yardstick(recipe, domains, vocabulary, teachers.names),
    )
    build.check_can_save(trainer)
    trainer.teachers = live = teachers.live(trainer)
    return build.Job(recipe, trainer, tokenizer, live, held_out, rows)


def terms_of(recipe: Recipe, steps: int) -> tuple[PolicyTerm | None, list[TeacherTerm]]:
    """The policy's own term, and those that hear a teacher."""
    own, terms = None, []
    only = recipe.teachers[0].name if len(recipe.teachers) == 1 else None
    for name, term in recipe.objective.terms.items():
        weight = build.schedule_of(term.weight, steps)
        if term.term in ("grpo", "nft"):
            own = PolicyTerm(name, term.term, weight, term.mask)
            continue
        estimator = term.estimator or ("k2" if term.term == "reverse_kl" else "exact")
        teacher = term.teacher or only
        assert teacher is not None
        terms.append(TeacherTerm(name, teacher, term.term, estimator, weight, term.mask, term.normalize, term.k or 64))
    return own, terms


def formulas_of(recipe: Recipe) -> Formulas:
    """The mathematics of the terms, negative-aware fine-tuning with the recipe's knobs."""
    for term in recipe.objective.terms.values():
        if term.term == "nft":
            negative = 1.0 if term.negative_weight is None else term.negative_weight
            made = partial(negative_aware, weight=WEIGHTS[term.advantage], negative_weight=negative)
            return replace(FORMULAS, negative_aware=made)
    return FORMULAS


def _whole(term: TeacherTerm, recipe: Recipe, steps: int, domains: Sequence[str], vocabulary: int) -> Objective:
    """The objective with this term alone, weighed by a column that the trainer makes."""
    knobs = {k: build.schedule_of(v, steps) for k, v in recipe.objective.terms[term.name].knobs.items()}
    weight = TokenWeight("column", column="weight")
    tau = recipe.objective.temperature
    return Objective(
        [Term(term.name, term.kind, teacher=term.teacher, knobs=knobs, token_weight=weight)], domains, vocabulary,
        float(tau.student), float(tau.teacher), compiled=recipe.objective.compiled,
    )  # fmt: skip


def _with_steps(args: Any, rows: Prepared) -> Any:
    """Turn epochs into steps: the run is one pass over an order that holds every draw."""
    dataset = rows.dataset
    assert isinstance(dataset, Dataset)
    per_round = args.generation_batch_size // args.num_generations
    batches = args.steps_per_generation * args.num_iterations

    def updates(epochs: float) -> int:
        rounds = max(1, round(len(dataset) * epochs / per_round))
        return max(1, int(rounds * batches // args.gradient_accumulation_steps))

    if args.max_steps <= 0:
        args.max_steps = updates(args.num_train_epochs)
    return build.epochs_as_steps(args, updates(1))


def _order(rows: Prepared, args: Any, seed: int) -> Callable[[int], GroupedOrder]:
    per_round = args.generation_batch_size // args.num_generations
    times = args.steps_per_generation * args.num_iterations

    def order(prompts: int) -> GroupedOrder:
        drawn = MixtureSampler(rows.lengths, rows.weights, prompts, seed)
        return GroupedOrder(drawn, per_round, args.num_generations, times)

    return order
