"""Rules that hold between keys: what no single field can tell."""

import re
from collections.abc import Iterator

from llmkd.config.objective_section import POLICY_TERMS, TEACHERLESS_TERMS, Mask, Schedule, TemperatureColumn, Term
from llmkd.config.rules_of_onpolicy import onpolicy_problems, sequence_problems
from llmkd.config.rules_of_policy import of_recipe, policy_problems
from llmkd.config.rules_of_rewards import reward_problems
from llmkd.config.rules_of_tasks import task_problems
from llmkd.config.rules_of_terms import NOT_NEGATIVE, UNIT, schedule_problems, token_weight_problems
from llmkd.config.sections import DatasetSource, Quantization, Recipe, Student
from llmkd.config.unknown_keys import EXPLAINED
from llmkd.config.values import closest, one_of, shown
from llmkd.terms import SEQUENCE_TERMS, TERMS, knob_problems

Problem = tuple[str, str]  # (dotted path, sentence)

OUR_COLUMNS = ("messages", "prompt", "completion", "text")
# Names become parts of metric names (`eval/<domain>/kl`), of columns and of dotted overrides.
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def problems(recipe: Recipe) -> Iterator[Problem]:
    """Every broken rule of a recipe whose single fields are all valid."""
    yield from _student(recipe.student)
    yield from _teachers(recipe)
    yield from _data(recipe)
    for name, term in recipe.objective.terms.items():
        yield from _name(f"objective.terms.{name}", name)
        yield from _term(f"objective.terms.{name}", term, recipe)
    yield from _shapes_of_objective(recipe)
    if not any(term.weight for term in recipe.objective.terms.values()):
        yield "objective.terms", "every weight is 0, so nothing is trained: give one term a weight above 0"
    yield from of_recipe(recipe)
    yield from onpolicy_problems(recipe)
    yield from reward_problems(recipe.rewards)
    yield from task_problems(recipe.eval.tasks)
    if recipe.rewards and recipe.train.method != "rl":
        yield "rewards", f"read by method: rl only, not by {recipe.train.method}: leave the section out"
    if recipe.eval.baseline and recipe.train.method == "sft":
        yield "eval.baseline", "true, but method: sft is that baseline itself: leave it out"
    if recipe.eval.baseline and recipe.train.method == "onpolicy":
        yield "eval.baseline", "true, but its training on the data has other options: make it a recipe of its own"


def _name(path: str, name: str) -> Iterator[Problem]:
    if not _NAME.fullmatch(name):
        yield path, f"{shown(name)} is not a name: use letters, digits, _ and - only"


def _student(student: Student) -> Iterator[Problem]:
    if student.model_name_or_path and student.from_config is not None:
        yield "student", "both model_name_or_path and from_config are given: give one of them"
    if not student.model_name_or_path and student.from_config is None:
        yield "student", "neither model_name_or_path nor from_config is given: give one of them"
    if student.from_config is not None and not isinstance(student.from_config.get("model_type"), str):
        yield "student.from_config.model_type", "is missing: give the architecture, such as llama or qwen2"
    if student.from_config is not None and not student.tokenizer_name_or_path:
        yield "student.tokenizer_name_or_path", "is missing: a model from_config has no tokenizer of its own, name one"
    if student.quantization is not None and student.lora is None:
        yield "student.quantization", "quantised weights cannot be trained: add student.lora, or leave it out"
    if student.quantization is not None:
        yield from _quantization("student.quantization", student.quantization)


def _quantization(path: str, quantization: Quantization) -> Iterator[Problem]:
    if quantization.load_in_4bit == quantization.load_in_8bit:
        given = "both" if quantization.load_in_4bit else "neither"
        yield path, f"{given} of load_in_4bit and load_in_8bit is true: set one of them to true"


def _teachers(recipe: Recipe) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, teacher in enumerate(recipe.teachers):
        path = f"teachers.{index}.name"
        yield from _name(path, teacher.name)
        if teacher.name in seen:
            yield path, f"{shown(teacher.name)} is the name of another teacher: give each its own"
        seen.add(teacher.name)
        if teacher.quantization is not None:
            yield from _quantization(f"teachers.{index}.quantization", teacher.quantization)


def _data(recipe: Recipe) -> Iterator[Problem]:
    for index, source in enumerate(recipe.data.datasets):
        yield from _source(f"data.datasets.{index}", source)
    for index, source in enumerate(recipe.eval.datasets):
        yield from _source(f"eval.datasets.{index}", source)
        if source.weight is not None:
            yield f"eval.datasets.{index}.weight", "held-out rows are all read, not drawn: leave it out"
    yield from _weights(recipe)


def _source(path: str, source: DatasetSource) -> Iterator[Problem]:
    yield from _name(f"{path}.domain", source.domain)
    for ours in source.columns or ():
        if ours not in OUR_COLUMNS:
            yield f"{path}.columns", f"{one_of(ours, OUR_COLUMNS)} (our column stands left of the colon)"


def _weights(recipe: Recipe) -> Iterator[Problem]:
    kind = recipe.data.sampling.kind
    for index, source in enumerate(recipe.data.datasets):
        path = f"data.datasets.{index}.weight"
        if kind == "weighted" and source.weight is None:
            yield path, "is missing: with sampling.kind: weighted every data set needs a weight above 0"
        if kind != "weighted" and source.weight is not None:
            yield path, f"not read with sampling.kind: {kind}: leave it out, or set data.sampling.kind to weighted"


def _shapes_of_objective(recipe: Recipe) -> Iterator[Problem]:
    objective = recipe.objective
    columns = [t for t in (objective.temperature.student, objective.temperature.teacher)
               if isinstance(t, TemperatureColumn)]  # fmt: skip
    if recipe.train.method == "sft" and (columns or objective.logit_standardize):
        yield "objective", "temperature and logit_standardize change divergences, and method: sft has none: leave them"


def _term(path: str, term: Term, recipe: Recipe) -> Iterator[Problem]:
    yield from sequence_problems(path, term, recipe)
    if term.term in SEQUENCE_TERMS and recipe.train.method != "onpolicy":
        return
    if recipe.train.method == "rl" or term.term in POLICY_TERMS:
        yield from policy_problems(path, term, recipe)
    for name, sentence in knob_problems(term.term, term.knobs) if term.term in TERMS else ():
        foreign = name in EXPLAINED and name not in TERMS[term.term].knobs  # type: ignore[index]
        yield f"{path}.{name}", f"{sentence}; {EXPLAINED[name]}" if foreign else sentence
    for name in ("weight", "t"):
        if isinstance(value := getattr(term, name), Schedule):
            yield from schedule_problems(f"{path}.{name}", value, UNIT if name == "t" else NOT_NEGATIVE)
    if term.token_weight is not None:
        yield from token_weight_problems(f"{path}.token_weight", term)
    if isinstance(term.mask, Mask):
        yield from _mask(f"{path}.mask", term.mask, {source.domain for source in recipe.data.datasets})
    if recipe.train.method == "sft" and term.term != "cross_entropy":
        yield f"{path}.term", f"{term.term} is not allowed with method: sft: use cross_entropy, or method: offpolicy"
        return
    if term.term in TEACHERLESS_TERMS:
        if term.teacher is not None:
            yield f"{path}.teacher", f"{shown(term.teacher)} is given, but {term.term} reads no teacher: leave it out"
        return
    names = [teacher.name for teacher in recipe.teachers]
    if not names:
        yield path, f"{term.term} needs a teacher and there is none: add one to teachers"
    elif term.teacher is None and len(names) > 1:
        yield f"{path}.teacher", f"is missing and there are several teachers: give one of {', '.join(names)}"
    elif term.teacher is not None and term.teacher not in names:
        yield f"{path}.teacher", one_of(term.teacher, names)


def _mask(path: str, mask: Mask, domains: set[str]) -> Iterator[Problem]:
    if (mask.domains is None) == (mask.positions is None):
        given = "neither" if mask.domains is None else "both"
        yield path, f"{given} of domains and positions is given: give one of them"
    for domain in mask.domains or ():
        if domain in domains:
            continue
        near = closest(domain, domains)
        advice = f"did you mean {near}?" if near else f"there are {', '.join(sorted(domains))}"
        yield f"{path}.domains", f"{shown(domain)} is the domain of no entry in data.datasets: {advice}"
