"""Searches: real trials of tiny recipes, and what is chosen for them."""

import json
from typing import Any

import pytest

from llmkd.evaluation.study.sections import Distribution, Search
from llmkd.evaluation.study.space import active, changes, grid, read_space

pytest.importorskip("optuna")

SEARCH = {
    "space": {
        "objective.terms.kd.term": {"choices": ["forward_kl", "jsd"]},
        "objective.terms.kd.beta": {"low": 0.2, "high": 0.8, "when": {"objective.terms.kd.term": ["jsd"]}},
        "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "train.warmup_steps": {"low": 0, "high": 2},
    },
    "sampler": "tpe",
    "seed": 7,
    "n_trials": 4,
    "metric": "held_out.prose.kl",
    "direction": "minimize",
}


def trials(desk: Any) -> list[dict[str, Any]]:
    return json.loads((desk.folder / "out" / "search.json").read_text())["trials"]


def study(desk: Any, arms: Any = None, **changes: Any) -> Any:
    changes = {"search": {**SEARCH, **changes}, "seeds": [3], "arms": arms or {}, "varies": []}
    return desk.study(changes, {"train.max_steps": 1})


def test_search_goes_on_where_it_was_stopped(desk: Any) -> None:
    """One trial, then three, then one of them lost: the same three as those of a search that nothing happened to; the
    trials are arms, the best first."""
    assert desk.compare(study(desk, n_trials=3), to="straight") == 0, desk.err
    assert desk.compare(study(desk, n_trials=1)) == 0
    assert len(trials(desk)) == 1
    assert desk.compare(study(desk, n_trials=3)) == 0
    straight = json.loads((desk.folder / "straight" / "search.json").read_text())["trials"]
    assert trials(desk) == straight and len(straight) == 3
    assert desk.without_seconds() == desk.without_seconds("straight")
    (desk.folder / "out/arms/trial-001/seed-3").rename(desk.folder / "lost")
    assert desk.compare(study(desk, n_trials=3)) == 0
    assert "trial-001, seed 3: started" in desk.out and "trial-002, seed 3: started" not in desk.out
    assert trials(desk) == straight and desk.without_seconds() == desk.without_seconds("straight")


def test_trials_are_arms_the_best_first(desk: Any) -> None:
    assert desk.compare(study(desk, {"plain": {}}, n_trials=3, sampler="random", seed=1)) == 0
    found, chosen = desk.table(), trials(desk)
    names = list(found["arms"])
    assert names[0] == "plain" == found["reference"] and sorted(names[1:]) == [f"trial-{n:03d}" for n in range(3)]
    values = [found["arms"][name]["measures"]["held_out.prose.kl"]["mean"] for name in names[1:]]
    assert values == sorted(values) and len(set(values)) > 1
    assert found["arms"][names[1]]["measures"]["held_out.prose.kl"]["difference"] is not None
    for number, values in enumerate(chosen):
        assert found["arms"][f"trial-{number:03d}"]["overrides"] == values
        assert ("objective.terms.kd.beta" in values) == (values["objective.terms.kd.term"] == "jsd")
        assert 1e-4 <= values["train.learning_rate"] <= 1e-2 and values["train.warmup_steps"] in (0, 1, 2)


def test_grid_is_every_combination_once() -> None:
    space = {
        "term": Distribution(choices=["kl", "jsd"]),
        "beta": Distribution(low=0.25, high=0.75, step=0.25, when={"term": ["jsd"]}),
        "warmup": Distribution(low=1, high=2),
    }
    found = grid(space)
    assert len(found) == 2 + 3 * 2
    assert {"term": "kl", "warmup": 2} in found and {"term": "jsd", "beta": 0.75, "warmup": 1} in found
    assert all(active(values, space["beta"]) == ("beta" in values) for values in found)


def test_entry_may_set_several_keys() -> None:
    space = {"temperature": Distribution(low=1.0, high=4.0, keys=["a.student", "a.teacher"])}
    assert changes({"temperature": 2.5}, space) == {"a.student": 2.5, "a.teacher": 2.5}


@pytest.mark.parametrize("changes, said", [
    ({"n_trials": None}, "search.n_trials: is missing"),
    ({"sampler": "bayes"}, "search.sampler: 'bayes' is not one of tpe, random, grid"),
    ({"space": "nowhere"}, "search.space: nowhere is none of"),
    ({"space": {"train.learning_rat": {"choices": [1e-3]}}}, "did you mean learning_rate?"),
    ({"space": {"train.learning_rate": {"low": 1e-3, "high": -1.0}}}, "low 0.001 is above high -1: swap them"),
    ({"space": {"train.learning_rate": {"low": 1e-3, "high": 1.0, "choices": [1]}}}, "both choices and a range"),
    ({"space": {"train.learning_rate": {"low": 1e-3, "high": 1.0}}, "sampler": "grid"}, "grid needs choices"),
    ({"space": {"train.learning_rate": {"choices": [1.0], "when": {"x": [1]}}}}, "when: x does not stand before it"),
    ({"space": {"objective.terms.kd.beta": {"low": 0.2, "high": 0.8}}}, "is not a knob of forward_kl"),
])  # fmt: skip
def test_mistake_in_a_search(desk: Any, changes: dict[str, Any], said: str) -> None:
    assert desk.compare(study(desk, **changes)) == 2, desk.out
    assert said in desk.err and len(desk.err.splitlines()) == 1, desk.err
    assert not (desk.folder / "out").exists()


def test_named_space_is_the_file_beside_the_study(tmp_path: Any) -> None:
    (tmp_path / "mine_space.yaml").write_text("overrides: {a.b: 1}\nspace: {train.learning_rate: {choices: [1, 2]}}\n")
    search = Search(space="mine", metric="held_out.x.kl", direction="minimize", overrides={"a.c": 2})
    found = read_space(search, tmp_path / "study.yaml")
    assert found.overrides == {"a.b": 1, "a.c": 2} and list(found.space) == ["train.learning_rate"]
