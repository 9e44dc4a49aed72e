"""Rules of on-policy distillation: what can be asked of samples that nobody has written before."""

from collections.abc import Iterator

from llmkd.config.sections import Recipe, TemperatureColumn
from llmkd.terms import TERMS

Problem = tuple[str, str]  # (dotted path, sentence)
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
    yield from _pairs(recipe) if recipe.train.options.get("pairs") else _share(recipe)


def _share(recipe: Recipe) -> Iterator[Problem]:
    """Which steps are on the student's own completions, and which terms look at them."""
    options = recipe.train.options
    share, adaptive = options.get("lmbda", 1.0), options.get("lmbda_schedule") == "adaptive"
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
        if term.completions is not None and not read[term.completions]:
            given = f"{term.completions}, and with train.lmbda: {share:g} no step is on them"
            yield f"objective.terms.{name}.completions", f"{given}: give another lmbda, or train.pairs: true"


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
    if len(recipe.teachers) > 1:
        yield "train.seq_kd", f"true, and there are {len(recipe.teachers)} teachers: keep the one that writes"
