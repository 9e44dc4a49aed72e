"""The steps that solve a puzzle of knights and knaves, in words; each is valid.

Sets of assignments are integers, as in ``knights_and_knaves``. What is known is a set too: all assignments that are
still possible. A step looks at one person's statement beside what is known: whoever is of one kind in every assignment
that is left is of that kind. Where no statement says anything new, one person is supposed to be of one kind, and steps
of the same sort lead to a contradiction; the shortest such way is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

Step = tuple[int, int, bool]  # by whose statement, who, is a knight


def explain(names: Sequence[str], speakers: Sequence[int], sets: Sequence[int]) -> list[str]:
    """The lines of a derivation. names, sets: of each person, and of what each says; speakers: the order they have.

    A line is `From what X says: Y is a knight.`, or `Suppose Y is a knight. From what X says: ... Then what Z says does
    not fit. So Y is a knave.`, or, where only all statements together contradict what is supposed, one that says so.
    """
    people = len(names)
    limits = {person: _everything(people) ^ _knights(people)[person] ^ sets[person] for person in speakers}
    known, lines = _everything(people), []
    while len(settled := _settled(known, people)) < people:
        found = _next(known, limits, people)
        if found is not None:
            lines.append(_words(names, found))
        else:
            line, found = _supposition(names, known, limits, [p for p in speakers if p not in settled])
            lines.append(line)
        _, person, knight = found
        known &= _are(people, person, knight)
    return lines


@lru_cache
def _knights(people: int) -> tuple[int, ...]:
    """For each person the assignments in which they are a knight."""
    return tuple(sum(1 << a for a in range(1 << people) if a >> person & 1) for person in range(people))


def _everything(people: int) -> int:
    return (1 << (1 << people)) - 1


def _are(people: int, person: int, knight: bool) -> int:
    return _knights(people)[person] if knight else _everything(people) ^ _knights(people)[person]


def _settled(known: int, people: int) -> dict[int, bool]:
    """Everybody who is of one kind in all of these assignments."""
    found = {}
    for person, knights in enumerate(_knights(people)):
        if known & knights == known or known & knights == 0:
            found[person] = bool(known & knights)
    return found


def _next(known: int, limits: dict[int, int], people: int) -> Step | None:
    """What one statement says beside what is known: its first news, by the order of the speakers."""
    before = _settled(known, people)
    for speaker, limit in limits.items():
        for person, knight in _settled(known & limit, people).items():
            if person not in before:
                return speaker, person, knight
    return None


def _supposition(names: Sequence[str], known: int, limits: dict[int, int], open_: Sequence[int]) -> tuple[str, Step]:
    """The shortest contradicted supposition about one of the people that are open, in words, and what it shows."""
    people, best = len(names), None
    for person in open_:
        for knight in (True, False):
            steps = _contradiction(known & _are(people, person, knight), limits, people)
            if steps is not None and (best is None or len(steps) < len(best[1])):
                best = (person, steps, knight)
    if best is None:
        best = _impossible(known, limits, people, open_)
    person, steps, knight = best
    shown = [f"Suppose {names[person]} is a {_kind(knight)}.", *_in_words(names, steps)]
    return " ".join([*shown, f"So {names[person]} is a {_kind(not knight)}."]), (person, person, not knight)


def _contradiction(known: int, limits: dict[int, int], people: int) -> list[Step] | None:
    """The steps up to a statement that nothing known is left beside; it is the last step, about its own speaker."""
    steps: list[Step] = []
    while True:
        for speaker, limit in limits.items():
            if known & limit == 0:
                return [*steps, (speaker, -1, False)]
        found = _next(known, limits, people)
        if found is None:
            return None
        steps.append(found)
        known &= _are(people, found[1], found[2])


def _impossible(known: int, limits: dict[int, int], people: int, open_: Sequence[int]) -> tuple[int, list[Step], bool]:
    """A supposition that all statements together contradict: there is one wherever the solution is the only one."""
    for limit in limits.values():
        known &= limit
    person, knight = next((p, k) for p, k in _settled(known, people).items() if p in open_)
    return person, [], not knight


def _in_words(names: Sequence[str], steps: Sequence[Step]) -> list[str]:
    """The inside of a supposition."""
    if not steps:
        return ["Try each kind for everybody else: no assignment fits all statements."]
    *ways, (speaker, _, _) = steps
    return [*(_words(names, step) for step in ways), f"Then what {names[speaker]} says does not fit."]


def _words(names: Sequence[str], step: Step) -> str:
    speaker, person, knight = step
    return f"From what {names[speaker]} says: {names[person]} is a {_kind(knight)}."


def _kind(knight: bool) -> str:
    return "knight" if knight else "knave"
