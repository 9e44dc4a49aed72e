"""Rules of on-policy distillation: what can be asked of samples that nobody has written before."""

from collections.abc import Iterator

from llmkd.config.objective_section import TemperatureColumn, Term
from llmkd.config.sections import Recipe
from llmkd.config.values import number_or, shown
from llmkd.terms import SEQUENCE_TERMS, TERMS

Problem = tuple[str, str]  # (dotted path, sentence)
# What changes the distribution that completions are drawn from, and where it leaves it alone.
AS_IT_IS: dict[str, tuple[object, ...]] = {
    "temperature": (1,), "top_p": (1,), "top_k": (0, None), "min_p": (0, None), "repetition_penalty": (1,),
    "generation_kwargs": (None, {}, ""),
}  # fmt: skip
OF_TARGETS = frozenset(str(name) for name, row in TERMS.items() if "target" in row.inputs)


def onpolicy_problems(recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with a recipe of method onpolicy, or with what only method onpolicy has."""
    if recipe.train.method != "onpolicy":
        for name, term in recipe.objective.terms.items():
            if term.completions is not None:
                said = f"is read by method: onpolicy, not by {recipe.train.method}: leave it out"
                yield f"objective.terms.{name}.completions", said
        return
    for name, term in recipe.objective.terms.items():
        where = f"objective.terms.{name}"
        if term.term in OF_TARGETS and term.completions != "data":
            yield (
                f"{where}.term",
                f"{term.term} looks at the tokens of the data, and those of method: onpolicy are the student's own: "
                "give completions: data, a divergence, or method: offpolicy",
            )
        if term.token_weight is not None and term.token_weight.column is not None:
            yield f"{where}.token_weight", "a column of the data is not read by method: onpolicy: give another weight"
    tau = recipe.objective.temperature
    for side in ("student", "teacher"):
        if isinstance(getattr(tau, side), TemperatureColumn):
            said = "a column of the data is not read by method: onpolicy: give a number"
            yield f"objective.temperature.{side}", said
    yield from _seq_kd(recipe)
    yield from _mixture(recipe)
    yield from _own_distribution(recipe)
    yield from _pairs(recipe) if recipe.train.options.get("pairs") else _share(recipe)


def _share(recipe: Recipe) -> Iterator[Problem]:
    """Which steps are on the student's own completions, and which terms look at them."""
    options = recipe.train.options
    share, adaptive = number_or(options.get("lmbda"), 1.0), options.get("lmbda_schedule") == "adaptive"
    where = "train.lmbda_schedule"
    if adaptive and share == 1:
        yield where, "adaptive raises the share, and with lmbda: 1 it is at its end: give train.lmbda: 0.0 to start at"
    if adaptive and options.get("eval_strategy", "no") == "no":
        yield where, "adaptive follows evaluations, and there are none: give train.eval_strategy: steps and eval_steps"
    if adaptive and not recipe.eval.datasets:
        yield where, "adaptive follows the cross-entropy of held-out rows, and there are none: give eval.datasets"
    if options.get("replay_capacity") and share == 0 and not adaptive:
        yield "train.replay_capacity", "with lmbda: 0 the student writes nothing to keep: give train.lmbda above 0"
    read = {"data": share < 1, "own": share > 0 or adaptive}
    for name, term in recipe.objective.terms.items():
        where = f"objective.terms.{name}"
        otherwise = f"and with train.lmbda: {share:g} no step is on them: give another"
        if term.completions is not None and not read[term.completions]:
            yield f"{where}.completions", f"{term.completions}, {otherwise} lmbda, or train.pairs: true"
        elif term.term in SEQUENCE_TERMS and not read["own"]:
            yield f"{where}.term", f"{term.term} reads the student's own completions, {otherwise} lmbda"


def _pairs(recipe: Recipe) -> Iterator[Problem]:
    """Every step is on both kinds, so nothing is left to share out."""
    for key, off in (("lmbda", 1.0), ("lmbda_schedule", "constant"), ("replay_capacity", 0)):
        if recipe.train.options.get(key, off) != off:
            yield f"train.{key}", "is not read with pairs: true, where every step has both completions: leave it out"


def _seq_kd(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.train.options.get("seq_kd"):
        return
    if recipe.train.options.get("lmbda", 1.0) == 1 and not recipe.train.options.get("pairs"):
        yield "train.seq_kd", "no step reads the teacher's completions with lmbda: 1: give train.lmbda below 1"
    if len(recipe.teachers) != 1:
        yield "train.seq_kd", f"true, and there are {len(recipe.teachers)} teachers: give the one that writes"


def _mixture(recipe: Recipe) -> Iterator[Problem]:
    """Of completions that the teacher has a share in."""
    options, path = recipe.train.options, "train.teacher_mixture"
    share = number_or(options.get("teacher_mixture"), 0.0)
    if not share:
        return
    if options.get("use_vllm"):
        yield (
            path,
            f"{share:g} asks the teacher at every token that is drawn, which vLLM cannot: give train.use_vllm: false, "
            "or leave it out",
        )
    if len(recipe.teachers) != 1:
        yield path, f"{share:g}, and there are {len(recipe.teachers)} teachers: give the one that has the share"
    if options.get("lmbda", 1.0) == 0 and options.get("lmbda_schedule") != "adaptive":
        yield path, f"{share:g}, but no step draws completions with lmbda: 0: give train.lmbda above 0"
    for name, term in recipe.objective.terms.items():
        if term.term in SEQUENCE_TERMS and (term.token_weight is None or term.token_weight.by != "importance"):
            yield (
                f"objective.terms.{name}.token_weight",
                f"is missing: with teacher_mixture: {share:g} its tokens are not drawn from the student alone: give "
                "{by: importance}",
            )


def _own_distribution(recipe: Recipe) -> Iterator[Problem]:
    """Where it counts with which probability a token was drawn."""
    options, terms = recipe.train.options, recipe.objective.terms
    weighed = [n for n, t in terms.items() if t.token_weight is not None and t.token_weight.by == "importance"]
    asking = [f"{term.term} of {name}" for name, term in terms.items() if term.term in SEQUENCE_TERMS]
    asking += [f"the importance weight of {name}" for name in weighed]
    if options.get("teacher_mixture"):
        asking.insert(0, "teacher_mixture")
    elif weighed and options.get("teacher_mixture") is None:
        yield (
            f"objective.terms.{weighed[0]}.token_weight.by",
            "importance is 1 where the student alone draws its tokens: give train.teacher_mixture (0.0 to compare "
            "with), or leave it out",
        )
    if not asking:
        return
    for key in ("pairs", "replay_capacity"):
        if options.get(key):
            yield (
                f"train.{key}",
                f"{asking[0]} is of completions that were drawn in the step alone: leave one of them out",
            )
    for key, allowed in AS_IT_IS.items():
        if key in options and options[key] not in allowed:
            yield (
                f"train.{key}",
                f"{shown(options[key])} changes what tokens are drawn from, and {asking[0]} counts on the "
                "distributions of the models as they are: leave it out",
            )


def sequence_problems(path: str, term: Term, recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with a term of whole completions, and with keys that look at how they were drawn."""
    method, how = recipe.train.method, term.token_weight
    if how is not None and how.by == "importance" and method not in ("onpolicy", "rl"):  # rl reads no token_weight
        yield (
            f"{path}.token_weight.by",
            f"importance is of completions that the student writes, and method: {method} has none: leave it out",
        )
    if term.term not in SEQUENCE_TERMS:
        if term.returns is not None:
            yield f"{path}.returns", f"is read by {', '.join(SEQUENCE_TERMS)}, not by {term.term}: leave it out"
        return
    if method != "onpolicy":
        yield (
            f"{path}.term",
            f"{term.term} is a term of method: onpolicy, not of {method}: give reverse_kl, or method: onpolicy",
        )
        return
    if term.completions == "data":
        yield (
            f"{path}.completions",
            f"data, of which {term.term} is 0, since nobody drew them: give own, or leave it out",
        )
    if how is not None and how.by != "importance":
        yield f"{path}.token_weight.by", f"{how.by} is not read by {term.term}: give importance, or leave it out"
    for knob in term.knobs:
        yield f"{path}.{knob}", f"is not a knob of {term.term}: leave it out"
    tau = recipe.objective.temperature
    for side in ("student", "teacher"):
        if (given := getattr(tau, side)) != 1.0 and not isinstance(given, TemperatureColumn):
            yield f"objective.temperature.{side}", f"{shown(given)}, but {term.term} is made at temperature 1: give 1"
    if recipe.objective.logit_standardize:
        yield "objective.logit_standardize", f"is not read by {term.term}: leave it out"
