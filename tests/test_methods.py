"""The table of methods says what is true of the recipes and of the losses in this tree."""

import math
from pathlib import Path
from typing import get_args

import pytest
import yaml

from llmkd import config
from llmkd.config.objective_section import Term
from llmkd.config.sections import Train
from llmkd.methods import ALGORITHM, ELICITATION, EVIDENCE, HEADINGS, METHODS, Method, markdown, plain

from runs import make_inputs, recipe, trained

ROOT = Path(__file__).resolve().parent.parent
BUILT = [m for m in METHODS if m.evidence != "planned"]
PLANNED = [m for m in METHODS if m.evidence == "planned"]


def named(method: Method) -> str:
    return f"{method.method}: {method.terms}"


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_tags_are_those_of_the_survey(method: Method) -> None:
    assert method.elicitation in ELICITATION
    assert method.algorithm in ALGORITHM
    assert method.evidence in EVIDENCE


@pytest.mark.parametrize("method", BUILT, ids=named)
def test_recipe_of_a_built_method_uses_its_terms(method: Method) -> None:
    recipe = config.load(ROOT / method.recipe, method.changes)
    assert recipe.train.method == method.method
    assert {term.term for term in recipe.objective.terms.values()} == set(method.terms.split(" + "))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("method", [m for m in BUILT if m.changes], ids=named)
def test_recipe_with_its_changes_trains(method: Method, inputs: Path, tmp_path: Path) -> None:
    """Two steps of tiny models, with all that the changes make of the objective."""
    terms = config.load(ROOT / method.recipe, method.changes).to_dict()["objective"]["terms"]
    lines = trained(recipe(inputs, tmp_path / "run", {"objective.terms": terms, "train.max_steps": 2}))
    assert [line["step"] for line in lines] == [1, 2]
    # TAID starts from a target that is the student's own for the most part, but not wholly.
    assert all(math.isfinite(line["loss"]) and line["loss"] > 0 for line in lines)


@pytest.mark.parametrize("method", PLANNED, ids=named)
def test_planned_method_is_refused_by_the_recipe(method: Method) -> None:
    assert method.recipe == ""
    plain_recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    plain_recipe["train"]["method"] = method.method
    with pytest.raises(config.RecipeError, match="not built yet"):
        config.from_dict(plain_recipe)


def test_every_built_method_and_term_has_a_row() -> None:
    assert {m.method for m in BUILT} == set(get_args(Train.model_fields["method"].annotation))
    terms = {term for m in BUILT for term in m.terms.split(" + ")}
    assert terms == set(get_args(Term.model_fields["term"].annotation))


def test_markdown_has_a_row_for_each_method() -> None:
    lines = markdown().splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 1 + len(METHODS)
    assert {line.count("|") for line in lines[: 2 + len(METHODS)]} == {len(HEADINGS) + 1}


def test_plain_names_every_paper() -> None:
    text = plain()
    assert all(method.paper in text for method in METHODS)
