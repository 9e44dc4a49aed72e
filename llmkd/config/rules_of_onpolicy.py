"""Rules of on-policy distillation: what can be asked of samples that nobody has written before."""

from collections.abc import Iterator

from llmkd.config.sections import Recipe, TemperatureColumn
from llmkd.terms import TERMS

Problem = tuple[str, str]  # (dotted path, sentence)
OF_TARGETS = frozenset(str(name) for name, row in TERMS.items() if "target" in row.inputs)


def onpolicy_problems(recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with a recipe of method onpolicy; nothing of another."""
    if recipe.train.method != "onpolicy":
        return
    for name, term in recipe.objective.terms.items():
        where = f"objective.terms.{name}"
        if term.term in OF_TARGETS:
            yield (
                f"{where}.term",
                f"{term.term} looks at the tokens of the data, and those of method: onpolicy are the student's own: "
                "give a divergence, or method: offpolicy",
            )
        if term.token_weight is not None and term.token_weight.column is not None:
            yield f"{where}.token_weight", "a column of the data is not read by method: onpolicy: give another weight"
    tau = recipe.objective.temperature
    for side in ("student", "teacher"):
        if isinstance(getattr(tau, side), TemperatureColumn):
            said = "a column of the data is not read by method: onpolicy: give a number"
            yield f"objective.temperature.{side}", said
    yield from _seq_kd(recipe)


def _seq_kd(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.train.options.get("seq_kd"):
        return
    if recipe.train.options.get("lmbda", 1.0) == 1:
        yield "train.seq_kd", "no step reads the teacher's completions with lmbda: 1: give train.lmbda below 1"
    if len(recipe.teachers) > 1:
        yield "train.seq_kd", f"true, and there are {len(recipe.teachers)} teachers: keep the one that writes"
