"""The solver of zebra puzzles against all arrangements, one by one."""

from itertools import permutations, product
from random import Random

import pytest

from llmkd.data.tasks import zebra_clues
from llmkd.data.tasks.zebra_clues import Clue, arrangements, draw_clues, explain, true_clues

KINDS = ("at", "not_at", "same", "different", "next_to", "two_apart", "directly_left", "left")


def all_arrangements(houses, attributes):
    for orders in product(permutations(range(houses)), repeat=attributes):
        yield tuple(house for order in orders for house in order)


def holds(clue, where):
    a, b = where[clue.first], where[clue.second]
    return {
        "at": a == clue.house, "not_at": a != clue.house, "same": a == b, "different": a != b,
        "next_to": abs(a - b) == 1, "two_apart": abs(a - b) == 2, "directly_left": b - a == 1, "left": a < b,
    }[clue.kind]  # fmt: skip


def any_clue(rng, houses, where):
    """A clue on values that may be the same: true of the arrangement, or in one of ten cases perhaps not."""
    while True:
        kind = rng.choice(KINDS)
        first, second = rng.choices(range(len(where)), k=2)
        clue = Clue(kind, first, house=rng.randrange(houses)) if kind.endswith("at") else Clue(kind, first, second)
        if holds(clue, where) or rng.random() < 0.1:
            return clue


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (3, 3), (4, 2)])
def test_all_arrangements_that_fit_are_found_and_no_other(size):
    rng, everything = Random(f"solver/{size}"), list(all_arrangements(*size))
    counts = set()
    for _ in range(100):
        where = rng.choice(everything)
        clues = [any_clue(rng, size[0], where) for _ in range(rng.randint(0, 8))]
        expected = [where for where in everything if all(holds(clue, where) for clue in clues)]
        assert sorted(arrangements(*size, clues, most=10_000)) == expected, clues
        counts.add(min(2, len(expected)))
    assert counts == {0, 1, 2}


def test_no_more_arrangements_are_sought_than_asked_for():
    assert [len(arrangements(4, 4, [], most=most)) for most in (1, 2, 7)] == [1, 2, 7]


def test_a_search_past_its_bound_says_so(monkeypatch):
    monkeypatch.setattr(zebra_clues, "MOST_BRANCHES", 3)
    assert arrangements(4, 2, [], most=2) is None
    monkeypatch.setattr(zebra_clues, "MOST_BRANCHES", 100)
    assert len(arrangements(4, 2, [], most=2)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_clues_are_all_true_and_no_true_one_is_missing(kind):
    where = (0, 1, 2, 3, 2, 0, 3, 1)
    found = true_clues(kind, 4, where)
    assert len(set(found)) == len(found) and all(holds(clue, where) for clue in found)
    pairs = [(a, b) for a in range(8) for b in range(8) if a != b and holds(Clue(kind, a, b, 0), where)]
    if kind in ("same", "different"):  # once a pair, and of two categories
        pairs = [(a, b) for a, b in pairs if a < 4 <= b]
    elif kind in ("next_to", "two_apart"):
        pairs = [(a, b) for a, b in pairs if a < b]
    assert len(found) == {"at": 8, "not_at": 24}.get(kind, len(pairs))


def test_every_kind_of_clue_is_needed_by_some_puzzle():
    where, kinds = (0, 1, 2, 3, 2, 0, 3, 1, 1, 2, 0, 3), set()
    for seed in range(25):
        kinds |= {clue.kind for clue in draw_clues(Random(seed), 4, where, dict.fromkeys(KINDS, 1))}
    assert kinds == set(KINDS)


def test_clues_that_cannot_do_it_give_none():
    assert draw_clues(Random(0), 3, (0, 1, 2, 2, 1, 0), {"same": 1}) is None


@pytest.mark.parametrize("size", [(4, 4), (5, 4)])
def test_steps_never_remove_the_house_of_a_value_and_leave_one_for_each(size):
    """Clues so weak that propagation and one guess do not do it: contradictions are found by search."""
    houses, attributes = size
    for seed in range(3 if houses == 4 else 1):
        rng = Random(seed)
        where = tuple(house for _ in range(attributes) for house in rng.sample(range(houses), houses))
        steps = explain(houses, attributes, draw_clues(rng, houses, where, {"different": 1, "not_at": 1}))
        assert any(step.clue == zebra_clues.ASSUMED for step in steps)
        assert not any(step.removed >> where[step.value] & 1 for step in steps)
        assert {step.value: step.left for step in steps} == {value: 1 << house for value, house in enumerate(where)}
