"""Rules of reinforcement learning: its terms, their estimators and masks, and what the rewards must say for them."""

from collections.abc import Iterator

from llmkd.config.objective_section import POLICY_TERMS, Mask, Schedule, TemperatureColumn, Term
from llmkd.config.sections import Recipe
from llmkd.config.values import number_or, shown
from llmkd.terms import TERMS

Problem = tuple[str, str]  # (dotted path, sentence)


def policy_problems(path: str, term: Term, recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with a term of method rl, or with one that only method rl has."""
    method = recipe.train.method
    if method != "rl":
        yield f"{path}.term", f"{term.term} is a term of method: rl, not of {method}: give a divergence, or method: rl"
        return
    if isinstance(term.mask, Mask):
        yield (
            f"{path}.mask",
            "domains and positions are not read by method: rl: give correct, incorrect or group_all_wrong",
        )
    for key in ("token_weight",):
        if getattr(term, key) is not None:
            yield f"{path}.{key}", "is not read by method: rl: leave it out"
    yield from _of_nft(path, term)
    if term.term in POLICY_TERMS:
        yield from _policy(path, term)
    elif not TERMS[term.term].divergence:  # type: ignore[index]
        yield f"{path}.term", f"{term.term} is no divergence, and there is no data to learn from: give a divergence"
    else:
        yield from _estimator(path, term)


def _of_nft(path: str, term: Term) -> Iterator[Problem]:
    """Knobs that negative-aware fine-tuning alone reads."""
    for key in ("advantage", "negative_weight"):
        if term.term != "nft" and getattr(term, key) is not None:
            yield f"{path}.{key}", f"is read by the term nft, not by {term.term}: leave it out"


def _policy(path: str, term: Term) -> Iterator[Problem]:
    for key in ("estimator", "k", "teacher"):
        if getattr(term, key) is not None:
            yield f"{path}.{key}", f"is not read by {term.term}, which hears no teacher: leave it out"
    if term.normalize != "all":
        yield f"{path}.normalize", f"{term.term} divides by its loss_type: leave it out"
    for knob in term.knobs:
        yield f"{path}.{knob}", f"is not a knob of {term.term}: leave it out"
    if term.term == "nft" and term.mask == "group_all_wrong":
        yield f"{path}.mask", "group_all_wrong keeps the groups that nft learns nothing from: give another"


def _estimator(path: str, term: Term) -> Iterator[Problem]:
    given = term.estimator
    if term.term != "reverse_kl" and given not in (None, "exact"):
        yield f"{path}.estimator", f"{given} estimates reverse_kl, not {term.term}: give exact, or leave it out"
    if term.k is not None and given != "topk":
        yield f"{path}.k", "is read with estimator: topk: leave it out"
    t = term.knobs.get("t")
    if isinstance(t, Schedule) and t.schedule == "adaptive":
        yield f"{path}.t", "adaptive (its default) is not read by method: rl: give a number or another schedule"


def of_recipe(recipe: Recipe) -> Iterator[Problem]:
    """What no single term can tell."""
    if recipe.train.method != "rl":
        yield from _of_other_methods(recipe)
        return
    if recipe.eval.baseline:
        yield "eval.baseline", "true, but its training on the data has other options: make it a recipe of its own"
    terms = recipe.objective.terms
    policies = [name for name, term in terms.items() if term.term in POLICY_TERMS]
    if len(policies) > 1:
        yield "objective.terms", f"{', '.join(policies)} are all a policy's own loss: keep one of them"
    marked = [reward for reward in recipe.rewards if reward.correct]
    for name, term in terms.items():
        needs = f"mask: {term.mask}" if isinstance(term.mask, str) else "nft" if term.term == "nft" else None
        if needs and not marked:
            yield (
                f"objective.terms.{name}",
                (f"{needs} asks which completions are right, and no reward says so: mark one with correct: true"),
            )
    if policies and not recipe.rewards:
        yield "rewards", "are missing: a policy learns from them: give some, such as [{kind: math, correct: true}]"
    yield from _temperatures(recipe)
    yield from _not_read(recipe)


def _of_other_methods(recipe: Recipe) -> Iterator[Problem]:
    method = recipe.train.method
    for name, term in recipe.objective.terms.items():
        where = f"objective.terms.{name}"
        for key, value in (("estimator", term.estimator), ("k", term.k)):
            if value is not None:
                yield f"{where}.{key}", f"is read by method: rl, not by {method}: leave it out"
        yield from _of_nft(where, term)
        if isinstance(term.mask, str):
            said = f"{term.mask} needs rewards, which method: {method} has not: give domains or positions"
            yield f"{where}.mask", said


def _temperatures(recipe: Recipe) -> Iterator[Problem]:
    tau = recipe.objective.temperature
    for side in ("student", "teacher"):
        if isinstance(getattr(tau, side), TemperatureColumn):
            yield f"objective.temperature.{side}", "a column of the data is not read by method: rl: give a number"
            return
    sampled = [n for n, t in recipe.objective.terms.items()
               if t.term == "reverse_kl" and t.estimator in (None, "k1_reward", "k2", "k3")]  # fmt: skip
    drawn = number_or(recipe.train.options.get("temperature"), 1.0)
    if sampled and tau.student != drawn:
        yield (
            "objective.temperature.student",
            (
                f"{shown(tau.student)}, but tokens are drawn at train.temperature: {drawn:g}, and the estimator of "
                f"{sampled[0]} looks at the distribution they are drawn from: give the same to both"
            ),
        )
    liked = [n for n, t in recipe.objective.terms.items() if t.estimator == "topk"]
    if liked and tau.teacher != 1:
        yield (
            "objective.temperature.teacher",
            f"{shown(tau.teacher)}, but {liked[0]} hears the likeliest tokens of the teacher as it is: give 1, or "
            "estimator: exact",
        )


def _not_read(recipe: Recipe) -> Iterator[Problem]:
    """Keys of the whole objective that would change nothing, or the wrong way."""
    beta = number_or(recipe.train.options.get("beta"), 0.0)
    if beta < 0:
        yield "train.beta", f"{beta:g} would reward leaving the reference model: give 0 or more"
    if recipe.objective.compiled and not any(_made_whole(term) for term in recipe.objective.terms.values()):
        said = "true, but no term is made over the whole vocabulary (estimator: exact or topk): leave it out"
        yield "objective.compiled", said
    if recipe.objective.logit_standardize:
        yield "objective.logit_standardize", "is not read by method: rl: leave it out"


def _made_whole(term: Term) -> bool:
    if term.term in POLICY_TERMS:
        return False
    return term.estimator in ("exact", "topk") or (term.estimator is None and term.term != "reverse_kl")
