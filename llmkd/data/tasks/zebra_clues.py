"""The clues of a zebra puzzle, and an exact solver for them: propagation, and a search where that is not enough.

A puzzle has `houses` houses in a row and `attributes` categories of `houses` values each. A value is a number: value j
of category c is `c * houses + j`. A domain is a mask of the houses where a value may still be: bit 0 is house 1. An
arrangement gives every value its house, counted from 0; within a category all houses differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

Arrangement = tuple[int, ...]
MOST_BRANCHES = 20_000  # of one search; drawn puzzles need a few dozen


@dataclass(frozen=True)
class Clue:
    """What is true of one or two values: `at` and `not_at` name a house, all other kinds a second value."""

    kind: str
    first: int
    second: int = -1
    house: int = -1


@dataclass(frozen=True)
class Step:
    """A step of a solution: `value` is not in the houses `removed`; `left` remain.

    `clue` is the index of the clue that says so, RULE for "one house, one value" within a category, or ASSUMED where
    the opposite, once assumed, contradicts the clues.
    """

    clue: int
    value: int
    removed: int
    left: int


RULE, ASSUMED = -1, -2


def _above_lowest(mask: int) -> int:
    return ~(((mask & -mask) << 1) - 1)


def _below_highest(mask: int) -> int:
    return (1 << (mask.bit_length() - 1)) - 1


def _unless_single(mask: int) -> int:
    return ~mask if mask & (mask - 1) == 0 else ~0


# For each kind of clue on two values: where the second may be, given the first's domain; and the first, given the
# second's. Bits past the last house fall away when the mask meets a domain.
REACHES: dict[str, tuple[Callable[[int], int], Callable[[int], int]]] = {
    "same": (lambda mask: mask, lambda mask: mask),
    "different": (_unless_single, _unless_single),
    "next_to": (lambda mask: mask << 1 | mask >> 1, lambda mask: mask << 1 | mask >> 1),
    "two_apart": (lambda mask: mask << 2 | mask >> 2, lambda mask: mask << 2 | mask >> 2),
    "directly_left": (lambda mask: mask << 1, lambda mask: mask >> 1),
    "left": (_above_lowest, _below_highest),
}


def allowed(clue: Clue, domains: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The clue's values, each with the mask of the houses that the clue leaves it."""
    if clue.kind == "at":
        yield clue.first, 1 << clue.house
    elif clue.kind == "not_at":
        yield clue.first, ~(1 << clue.house)
    else:
        forth, back = REACHES[clue.kind]
        yield clue.second, forth(domains[clue.first])
        yield clue.first, back(domains[clue.second])


def left_by_category(houses: int, first: int, domains: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The values of the category that begins at `first`, with the houses that the others of it leave them."""
    members = range(first, first + houses)
    for value in members:
        elsewhere = taken = 0
        for other in members:
            if other != value:
                elsewhere |= domains[other]
                taken |= domains[other] if domains[other] & (domains[other] - 1) == 0 else 0
        alone = domains[value] & ~elsewhere  # no other value can be there
        yield value, alone or ~taken


def propagate(houses: int, clues: Sequence[Clue], domains: list[int], steps: list[Step] | None = None) -> bool:
    """Narrow the domains in place until nothing follows any more; False where a value is left without a house."""

    def narrow(cause: int, masks: Iterator[tuple[int, int]]) -> bool:
        """Whether something changed."""
        changed = False
        for value, mask in masks:
            left = domains[value] & mask
            if left != domains[value]:
                if steps is not None:
                    steps.append(Step(cause, value, domains[value] & ~left, left))
                domains[value] = left
                changed = True
            if left == 0:
                break
        return changed

    changed = True
    while changed and all(domains):
        changed = False
        for index, clue in enumerate(clues):
            changed |= narrow(index, allowed(clue, domains))
            if 0 in domains:
                return False
        for first in range(0, len(domains), houses):
            changed |= narrow(RULE, left_by_category(houses, first, domains))
            if 0 in domains:
                return False
    return all(domains)


def arrangements(
    houses: int, attributes: int, clues: Sequence[Clue], most: int = 2, domains: Sequence[int] | None = None
) -> list[Arrangement] | None:
    """Up to `most` arrangements that fit all clues; None if more than MOST_BRANCHES branches were needed.

    Depth first, the value with the fewest houses left branched on. `domains` restricts where values may be.
    """
    start = list(domains) if domains is not None else [(1 << houses) - 1] * (houses * attributes)
    found: list[Arrangement] = []
    stack, branches = [start], 0
    while stack and len(found) < most:
        branches += 1
        if branches > MOST_BRANCHES:
            return None
        current = stack.pop()
        if not propagate(houses, clues, current):
            continue
        open_values = [value for value, mask in enumerate(current) if mask & (mask - 1)]
        if not open_values:
            found.append(tuple(mask.bit_length() - 1 for mask in current))
            continue
        value = min(open_values, key=lambda v: current[v].bit_count())
        for house in range(houses):
            if current[value] >> house & 1:
                stack.append([*current[:value], 1 << house, *current[value + 1 :]])
    return found


def true_clues(kind: str, houses: int, where: Arrangement) -> list[Clue]:
    """All clues of a kind that are true of an arrangement, in a fixed order."""
    values = range(len(where))
    if kind == "at":
        return [Clue(kind, value, house=where[value]) for value in values]
    if kind == "not_at":
        return [Clue(kind, v, house=house) for v in values for house in range(houses) if house != where[v]]
    pairs = [(a, b) for a in values for b in values if a != b]
    if kind in ("same", "different"):
        pairs = [(a, b) for a, b in pairs if a // houses < b // houses]
        return [Clue(kind, a, b) for a, b in pairs if (where[a] == where[b]) == (kind == "same")]
    distances = {"next_to": (-1, 1), "two_apart": (-2, 2), "directly_left": (1,), "left": range(1, houses)}[kind]
    if kind in ("next_to", "two_apart"):
        pairs = [(a, b) for a, b in pairs if a < b]
    return [Clue(kind, a, b) for a, b in pairs if where[b] - where[a] in distances]


def draw_clues(rng: Random, houses: int, where: Arrangement, weights: dict[str, int]) -> list[Clue] | None:
    """Clues that leave `where` alone, none of which may be dropped; None where clues of these kinds cannot do it.

    True clues are drawn, a kind with probability proportional to its weight, until one arrangement is left; then each
    is dropped, in random order, if one arrangement is still left without it. One such pass is enough: a clue that was
    needed beside more clues is needed beside fewer.
    """
    attributes = len(where) // houses

    def enough(clues: list[Clue]) -> bool:
        found = arrangements(houses, attributes, clues)
        return found is not None and len(found) == 1

    piles = {kind: true_clues(kind, houses, where) for kind in weights}
    for pile in piles.values():
        rng.shuffle(pile)
    drawn: list[Clue] = []
    while not enough(drawn):
        left = [kind for kind in piles if piles[kind]]
        if not left:
            return None
        kind = rng.choices(left, [weights[kind] for kind in left])[0]
        drawn.append(piles[kind].pop())
    kept = list(drawn)
    for clue in rng.sample(drawn, len(drawn)):
        fewer = [other for other in kept if other != clue]
        kept = fewer if enough(fewer) else kept
    return kept


def explain(houses: int, attributes: int, clues: Sequence[Clue]) -> list[Step]:
    """The steps from the clues to their one arrangement: what follows directly, and contradictions where that ends."""
    domains = [(1 << houses) - 1] * (houses * attributes)
    steps: list[Step] = []
    propagate(houses, clues, domains, steps)
    while any(mask & (mask - 1) for mask in domains):
        value, house = _contradiction(houses, attributes, clues, domains)
        domains[value] &= ~(1 << house)
        steps.append(Step(ASSUMED, value, 1 << house, domains[value]))
        propagate(houses, clues, domains, steps)
    return steps


def _contradiction(houses: int, attributes: int, clues: Sequence[Clue], domains: list[int]) -> tuple[int, int]:
    """A value and a house that cannot be: first where propagation alone shows it, else by search."""
    guesses = [
        (value, house)
        for value, mask in enumerate(domains)
        for house in range(houses)
        if mask & (mask - 1) and mask >> house & 1
    ]
    for value, house in guesses:
        if not propagate(houses, clues, [*domains[:value], 1 << house, *domains[value + 1 :]]):
            return value, house
    for value, house in guesses:
        guess = [*domains[:value], 1 << house, *domains[value + 1 :]]
        if arrangements(houses, attributes, clues, most=1, domains=guess) == []:
            return value, house
    raise AssertionError("explain: the clues leave more than one arrangement")
