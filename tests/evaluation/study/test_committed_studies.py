"""The studies of eval/studies: whole, and about what they say."""

from pathlib import Path

import pytest

from llmkd.evaluation.study.arms import arm_of, resolve
from llmkd.evaluation.study.loading import load_study
from llmkd.evaluation.study.search import corners
from llmkd.evaluation.study.space import changes, read_space
from llmkd.terms import TERMS
from llmkd.trainers.settings import train_fields

STUDIES = Path(__file__).resolve().parents[3] / "eval" / "studies"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_resolves(path: Path) -> None:
    if path.stem.endswith("_space"):
        return
    study = load_study(path)
    arms = resolve(study, path, train_fields)
    assert arms and all(arm.resolved.eval.baseline is False for arm in arms)


def test_divergences_has_an_arm_for_every_term() -> None:
    path = STUDIES / "divergences.yaml"
    arms = resolve(load_study(path), path, train_fields)
    terms = [term.term for arm in arms for term in arm.resolved.objective.terms.values()]
    assert terms == [arm.name for arm in arms] and sorted(terms) == sorted(TERMS)


def test_every_corner_of_the_distiller_space_is_a_recipe() -> None:
    path = STUDIES / "distiller.yaml"
    study = load_study(path)
    assert study.search is not None
    space = read_space(study.search, path)
    found = [arm_of(study, path, "trial", changes(values, space.space), train_fields, common=space.overrides)
             for values in corners(space.space)]  # fmt: skip
    assert {arm.resolved.objective.terms["kd"].term for arm in found} == set(
        space.space["objective.terms.kd.term"].choices or []
    )
    assert all(
        arm.resolved.objective.temperature.student == arm.resolved.objective.temperature.teacher for arm in found
    )
