"""What a recipe may say of a term: its knobs, schedules, token weights, and temperatures from a column."""

from typing import Any

import pytest

from llmkd.config import from_dict
from llmkd.terms import TERMS

from config_recipe import FIELDS, changed, only_problem, plain

KD = "objective.terms.kd"
LINEAR = {"schedule": "linear", "from": 1, "to": 0, "steps": 3}


def recipe_with(term: dict[str, Any]):
    data = plain()
    data["objective"]["terms"]["kd"] = term
    return from_dict(data, source="x.yaml", train_fields=FIELDS)


def problem_of(term: dict[str, Any]) -> str:
    return only_problem(KD, term)


GIVEN = {
    "alpha_beta": {"alpha": 0.2, "beta": 0.7},
    "mixture": {"of": {"forward_kl": 0.5, "jsd": 0.5}},
}


@pytest.mark.parametrize("term", TERMS)
def test_every_term_of_the_table_is_accepted(term: str) -> None:
    recipe = recipe_with({"term": term, **GIVEN.get(term, {})})
    assert recipe.objective.terms["kd"].term == term


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"term": "skew_forward_kl", "alpha": 1.4}, f"{KD}.alpha: 1.4 is outside [0, 1): give a number inside it"),
        ({"term": "skew_reverse_kl", "alpha": 1}, f"{KD}.alpha: 1 is outside [0, 1)"),
        ({"term": "jsd", "beta": 0}, f"{KD}.beta: 0 is outside (0, 1)"),
        ({"term": "jsd", "alpha": 0.5}, f"{KD}.alpha: is not a knob of jsd: it takes beta; "),
        ({"term": "forward_kl", "mu": 0.5}, f"{KD}.mu: is not a knob of forward_kl: leave it out"),
        ({"term": "alpha_beta", "alpha": 0.5}, f"{KD}.beta: is missing: alpha_beta needs a number in [-2, 2]"),
        ({"term": "nkd", "gamma": -1}, f"{KD}.gamma: -1 is outside [0, inf)"),
        ({"term": "taid", "t": 1.5}, f"{KD}.t: 1.5 is outside [0, 1]"),
        ({"term": "mixture"}, f"{KD}.of: is missing: give divergences and their weights"),
        ({"term": "mixture", "of": {"jsd": 0.5, "forward_kl": 0.6}}, f"{KD}.of: the weights sum to 1.1"),
        ({"term": "mixture", "of": {"nkd": 1.0}}, f"{KD}.of.nkd: is not one of forward_kl, reverse_kl"),
        ({"term": "forward_kl", "detach_mixture": True}, f"{KD}.detach_mixture: is not a knob of forward_kl"),
        ({"term": "jsd", "beta": "half"}, f"{KD}.beta: 'half' is not a number: give a number"),
    ],
)
def test_knobs_are_checked_against_the_table(term: dict[str, Any], said: str) -> None:
    assert said in problem_of(term)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        ({"schedule": "linear", "from": 1.0}, f"{KD}.weight.to: is missing: linear needs from, to"),
        ({**LINEAR, "points": [[0, 1]]}, f"{KD}.weight.points: is not read by linear"),
        ({"schedule": "switch_at", "from": 1, "to": 0}, f"{KD}.weight.steps: is missing: switch_at needs"),
        ({"schedule": "lin", "from": 1}, f"{KD}.weight.schedule: 'lin' is not one of constant, linear"),
        ({**LINEAR, "to": -1}, f"{KD}.weight.to: -1 is outside [0, inf)"),
        ({**LINEAR, "steps": 0}, f"{KD}.weight.steps: 0 is outside [1, inf)"),
        ({**LINEAR, "end": 0}, f"{KD}.weight.end: is not a key of {KD}.weight"),
        ({"schedule": "piecewise", "points": [[0, 1], [0, 2]]}, f"{KD}.weight.points: the steps [0.0, 0.0] do"),
        ({"schedule": "piecewise", "points": [[0, 1, 2]]}, f"{KD}.weight.points: [[0.0, 1.0, 2.0]] are not pairs"),
        ({"schedule": "adaptive"}, f"{KD}.weight.schedule: adaptive is the schedule of taid's t"),
        (-1.0, f"{KD}.weight: -1 is outside [0, inf)"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(weight: Any, said: str) -> None:
    assert said in problem_of({"term": "forward_kl", "weight": weight})


def test_an_adaptive_t_only_rises() -> None:
    term = {"term": "taid", "t": {"schedule": "adaptive", "from": 0.9, "to": 0.5}}
    assert f"{KD}.t.to: 0.5 is below from, 0.9" in problem_of(term)


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ({"token_weight": {"by": "position"}}, "token_weight.half_life: is missing: by: position needs it"),
        ({"token_weight": {"by": "column"}}, "token_weight.column: is missing"),
        ({"token_weight": {"by": "student_entropy", "column": "c"}}, "token_weight.column: is not read with by: st"),
        ({"token_weight": {"by": "column", "column": "c", "floor": 0.5}}, "token_weight: floor and power are not read"),
        ({"token_weight": {"by": "entropy"}}, "token_weight.by: 'entropy' is not one of student_entropy"),
        ({"token_weight": {"by": "student_entropy", "floor": 2}}, "token_weight.floor: 2 is outside [0, 1]"),
        ({"term": "cross_entropy", "token_weight": {"by": "teacher_confidence"}}, "cross_entropy reads no teacher"),
    ],
)
def test_a_token_weight_that_does_not_fit_is_refused(term: dict[str, Any], said: str) -> None:
    assert said in problem_of({"term": "forward_kl"} | term)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "objective.temperature.student: 0 is outside (0, inf)"),
        ({"colum": "c"}, "objective.temperature.student.colum: is not a key of objective.temperature.student"),
    ],
)
def test_a_temperature_is_above_zero_or_a_column(value: Any, said: str) -> None:
    data = changed("objective.temperature.student", value)
    from config_recipe import problems

    assert any(said in line for line in problems(data))


def test_a_resolved_recipe_keeps_its_schedules_and_columns() -> None:
    data = plain()
    data["objective"]["temperature"]["teacher"] = {"column": "tau"}
    data["objective"]["terms"]["kd"] = {
        "term": "taid", "t": {"schedule": "adaptive", "from": 0.3}, "weight": LINEAR,
        "token_weight": {"by": "position", "half_life": 8},
    }  # fmt: skip
    recipe = from_dict(data, source="x.yaml", train_fields=FIELDS)
    again = from_dict(recipe.to_dict(), source="x.yaml", train_fields=FIELDS)
    assert again == recipe
    assert recipe.to_dict()["objective"]["terms"]["kd"]["weight"]["from"] == 1.0


def test_taid_without_t_is_adaptive() -> None:
    assert recipe_with({"term": "taid"}).objective.terms["kd"].knobs["t"].schedule == "adaptive"


def test_a_number_in_yaml_1_1_is_read_as_one() -> None:
    assert recipe_with({"term": "forward_kl", "weight": "1e-3"}).objective.terms["kd"].weight == 1e-3
    assert recipe_with({"term": "jsd", "beta": "1e-3"}).objective.terms["kd"].beta == 1e-3


@pytest.mark.parametrize(("key", "value"), [("advantage", "plain"), ("negative_weight", 0.5)])
def test_what_nft_alone_reads_is_refused_elsewhere(key: str, value: Any) -> None:
    said = problem_of({"term": "forward_kl", key: value})
    assert f"{KD}.{key}: is read by the term nft, not by forward_kl: leave it out" in said
