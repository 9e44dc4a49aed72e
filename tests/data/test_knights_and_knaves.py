"""Knights and knaves: one solution by brute force, valid steps, disjoint splits, the same everywhere."""

import os
import re
import subprocess
import sys
from itertools import product

import pytest

from llmkd.data.tasks.knights_and_knaves import DEPTHS, PEOPLE, problem, problems

SIZES = [(2, 1, 2), (2, 3, 2), (3, 1, 2), (3, 2, 3), (4, 3, 4), (6, 2, 3), (8, 1, 2)]

# A reading of the question of the test's own: each statement, as text, is a test of an assignment.


def statements_of(row):
    return {name.lower(): text.lower() for name, text in re.findall(r'(?m)^(\w+) says: "(.*)\."$', row["question"])}


def top_level(text):
    """The text with what stands in brackets blotted out, so that positions stay."""
    depth, out = 0, []
    for letter in text:
        depth -= letter == ")"
        out.append("#" if depth else letter)
        depth += letter == "("
    return "".join(out)


def holds(text, speaker, kinds):
    shape = top_level(text)
    if re.fullmatch(r"\(#*\)", shape):
        return holds(text[1:-1], speaker, kinds)
    if shape.startswith("it is not true that "):
        return not holds(text.removeprefix("it is not true that "), speaker, kinds)
    if shape.startswith("if "):
        cut = shape.index(", then ")
        return not holds(text[3:cut], speaker, kinds) or holds(text[cut + 7 :], speaker, kinds)
    for joint, join in ((", and ", all), (", or ", any), (" if and only if ", lambda found: len(set(found)) == 1)):
        if joint in shape:
            ends = [match.start() for match in re.finditer(joint, shape)]
            starts = [0, *(end + len(joint) for end in ends)]
            pieces = [text[a:b] for a, b in zip(starts, [*ends, len(text)], strict=True)]
            return join([holds(piece, speaker, kinds) for piece in pieces])
    return atom_holds(text, kinds | {"i": kinds[speaker]})


def atom_holds(text, kinds):
    if found := re.fullmatch(r"(\w+) (?:is|am) a (knight|knave)", text):
        return kinds[found[1]] == (found[2] == "knight")
    if found := re.fullmatch(r"(\w+) and (\w+) are of (the same kind|different kinds)", text):
        return (kinds[found[1]] == kinds[found[2]]) == (found[3] == "the same kind")
    how, number, kind = re.fullmatch(
        r"(exactly|at least|at most) (\d) of us (?:is a|are) (knight|knave)s?", text
    ).groups()
    count = sum(knight == (kind == "knight") for name, knight in kinds.items() if name != "i")
    return {"exactly": count == int(number), "at least": count >= int(number), "at most": count <= int(number)}[how]


def assignments(row):
    names = sorted(statements_of(row))
    return [dict(zip(names, kinds, strict=True)) for kinds in product((False, True), repeat=len(names))]


def allows(row, speaker, kinds):
    """A knight's statement is true, a knave's false."""
    return holds(statements_of(row)[speaker], speaker, kinds) == kinds[speaker]


def logic_of(row):
    """Who is there, and what each says as a table of truth over all assignments: the puzzle without its words."""
    said = statements_of(row)
    return tuple((name, tuple(holds(said[name], name, kinds) for kinds in assignments(row))) for name in sorted(said))


def lowered(answer):
    return {name.lower(): kind for name, kind in answer.items()}


def test_the_reading_of_this_test():
    kinds = {"ada": True, "ben": False, "cy": False}
    for text, truth in {
        "i am a knight": True, "ben is a knight": False, "ben and i are of different kinds": True,
        "at most 1 of us is a knave": False, "exactly 2 of us are knaves": True, "at least 1 of us is a knight": True,
        "if ben is a knight, then cy is a knight": True, "if i am a knight, then ben is a knight": False,
        "it is not true that (ben is a knight, or cy is a knight)": True,
        "ben is a knight, or cy is a knave, or i am a knave": True, "ben is a knave, and cy is a knight": False,
        "(ben is a knight, and i am a knave) if and only if cy is a knight": True,
        "ben is a knave, and (cy is a knight, or (if cy is a knight, then ben is a knight))": True,
    }.items():  # fmt: skip
        assert holds(text, "ada", kinds) == truth, text


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize(("people", "depth", "width"), SIZES)
def test_brute_force_finds_exactly_the_answer(people, depth, width, split):
    for row in problems(3, 40 if people < 8 else 8, split, people=people, depth=depth, width=width):
        said = statements_of(row)
        assert len(said) == people
        fitting = [kinds for kinds in assignments(row) if all(allows(row, speaker, kinds) for speaker in said)]
        assert fitting == [dict(sorted(lowered(row["answer"]).items()))], row["question"]


STEP = re.compile(r"From what (\w+) says: (\w+) is a (knight|knave)\.")
SUPPOSED = re.compile(r"Suppose (\w+) is a (knight|knave)\. (.*) So \1 is a (knight|knave)\.")
ALL = "Try each kind for everybody else: no assignment fits all statements."


def follow(row, line, open_):
    """The assignments left after a step, which must follow from those before it and one person's statement."""
    speaker, person, kind = STEP.fullmatch(line.strip()).groups()
    left = [kinds for kinds in open_ if allows(row, speaker.lower(), kinds)]
    assert all(kinds[person.lower()] == (kind == "knight") for kinds in left), (row, line)
    return [kinds for kinds in open_ if kinds[person.lower()] == (kind == "knight")]


def refute(row, inside, open_):
    """The inside of a supposition must end in a contradiction, each step before it valid."""
    if inside == ALL:
        assert not any(all(allows(row, speaker, kinds) for speaker in statements_of(row)) for kinds in open_)
        return
    steps, last = re.fullmatch(r"(.*?)Then what (\w+) says does not fit\.", inside).groups()
    for step in re.findall(r"From [^.]*\.", steps):
        open_ = follow(row, step, open_)
    assert not any(allows(row, last.lower(), kinds) for kinds in open_), (row, inside)


@pytest.mark.parametrize(("people", "depth", "width"), [*SIZES[:5], (5, 2, 2)])
def test_every_line_of_the_solution_follows_and_together_they_settle_everybody(people, depth, width):
    supposed = 0
    for row in problems(11, 40, "train", people=people, depth=depth, width=width):
        *lines, last = row["solution"].split("\n")
        open_ = assignments(row)
        for line in lines:
            if found := SUPPOSED.fullmatch(line):
                supposed += 1
                person, kind = found[1].lower(), found[2] == "knight"
                assert (found[4] == "knight") != kind
                refute(row, found[3], [kinds for kinds in open_ if kinds[person] == kind])
                open_ = [kinds for kinds in open_ if kinds[person] != kind]
            else:
                open_ = follow(row, line, open_)
        assert open_ == [dict(sorted(lowered(row["answer"]).items()))]
        claims = re.findall(r"(\w+) is a (knight|knave)", last)
        assert {name: kind == "knight" for name, kind in claims} == row["answer"] and len(claims) == people
        assert row["solution"].count("Answer:") == 1 and last.startswith("Answer: ")
    assert supposed > 0 or people == 2


def test_a_supposition_that_only_all_statements_contradict_is_true_of_them():
    rows = [row for row in problems(4, 250, "train", people=7, depth=2) if ALL in row["solution"]]
    assert rows
    for row in rows[:6]:
        before, _, after = row["solution"].partition(ALL)
        person, kind = re.search(r"Suppose (\w+) is a (knight|knave)\. $", before).groups()
        other = {"knight": "knave", "knave": "knight"}[kind]
        assert after.startswith(f" So {person} is a {other}.")
        assert row["answer"][person] == (other == "knight")


def test_no_statement_is_true_of_all_assignments_or_of_none_and_none_allows_all():
    for people, depth, width in SIZES[:5]:
        for row in problems(5, 30, "train", people=people, depth=depth, width=width):
            for name, truths in logic_of(row):
                assert 0 < sum(truths) < len(truths), row
                assert not all(allows(row, name, kinds) for kinds in assignments(row)), row


def test_depth_and_width_are_what_the_statements_have():
    def joints(row):
        return len(
            re.findall(r", and |, or | if and only if |, then |not true that", " ".join(statements_of(row).values()))
        )

    one, two, three = (problems(2, 40, "train", people=3, depth=depth, width=2) for depth in DEPTHS)
    assert all(joints(row) == 0 for row in one)
    assert all(joints(row) > 0 and '"or" does not exclude' in row["question"] for row in two + three)
    brackets = [
        [any("(" in said for said in statements_of(row).values()) for row in rows] for rows in (one, two, three)
    ]
    assert not any(brackets[0] + brackets[1]) and all(brackets[2])
    wide = problems(2, 200, "train", people=3, depth=2, width=4)
    parts = {1 + max(len(re.findall(j, said)) for j in (", and ", ", or ")) for row in wide
             for said in statements_of(row).values()}  # fmt: skip
    assert max(parts) == 4 and max(said.count(", or ") for row in two for said in statements_of(row).values()) == 1


def test_every_template_is_drawn():
    text = "\n".join(said for row in problems(0, 120, "train", depth=3) for said in statements_of(row).values())
    for phrase in ("i am a", "is a knave", "the same kind", "different kinds", "exactly", "at least", "at most",
                   ", and ", ", or ", "if and only if", ", then ", "it is not true that ("):  # fmt: skip
        assert phrase in text, phrase


def test_neither_kind_is_likelier():
    kinds = [kind for row in problems(0, 600, "train", people=4) for kind in row["answer"].values()]
    assert 0.42 < sum(kinds) / len(kinds) < 0.58


def test_a_problem_is_a_pure_function_of_its_arguments():
    assert problem(3, 5, "train") == problem(3, 5, "train")
    drawn = {problem(s, i, "train", people=n)["question"] for s in (0, 1) for i in (0, 1) for n in PEOPLE}
    assert len(drawn) == 4 * len(PEOPLE)


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_problem_is_the_same_in_another_process(hash_seed):
    script = (
        "from llmkd.data.tasks.knights_and_knaves import problem; print(problem(3, 5, 'heldout', people=6, depth=3))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )  # fmt: skip
    assert run.stdout == f"{problem(3, 5, 'heldout', people=6, depth=3)}\n"


def test_questions_of_one_draw_are_distinct():
    rows = problems(0, 2000, "train", people=2, depth=1)
    assert len({row["question"] for row in rows}) == 2000


def test_no_puzzle_is_in_both_splits_over_seeds_and_difficulty_in_whatever_words():
    """So few puzzles have 2 people that without the split most would be drawn for both."""

    def drawn(split, n):
        return {
            logic_of(row)
            for seed in range(2)
            for depth, width in ((1, 2), (2, 2), (3, 3))
            for row in problems(seed, n, split, people=2, depth=depth, width=width)
        }

    train, heldout = drawn("train", 700), drawn("heldout", 40)
    assert len(train) > 2500 and len(heldout) > 150
    assert not train & heldout


def test_about_one_in_twenty_puzzles_is_held_out(monkeypatch):
    asked = []
    from llmkd.data.tasks import knights_and_knaves

    real = knights_and_knaves.is_heldout
    monkeypatch.setattr(knights_and_knaves, "is_heldout", lambda *puzzle: asked.append(real(*puzzle)) or asked[-1])
    problems(0, 1500, "train")
    assert 0.03 < sum(asked) / len(asked) < 0.07


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "split 'test'.*train or heldout"),
        ({"people": 1}, "people 1 .*2, 3, 4, 5, 6, 7, 8"),
        ({"people": 9}, "people 9"),
        ({"people": True}, "people True"),
        ({"depth": 0}, "depth 0 .*1, 2, 3"),
        ({"depth": "2"}, "depth '2'"),
        ({"width": 5}, "width 5 .*2, 3, 4"),
    ],
)
def test_bad_arguments_are_refused_with_the_choices(change, message):
    with pytest.raises(ValueError, match=f"knights_and_knaves: {message}"):
        problem(**({"seed": 0, "index": 0, "split": "train"} | change))


def test_more_distinct_problems_than_there_are_is_an_error_and_no_endless_loop(monkeypatch):
    monkeypatch.setattr("llmkd.data.tasks.knights_and_knaves.problem", lambda *given: {"question": "the same"})
    with pytest.raises(ValueError, match="knights_and_knaves: 2 distinct problems asked for, found 1"):
        problems(0, 2, "train")


@pytest.mark.full
@pytest.mark.parametrize("people", PEOPLE)
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_size_in_both_splits(people, depth):
    for split in ("train", "heldout"):
        for row in problems(21, 10, split, people=people, depth=depth, width=4):
            fitting = [k for k in assignments(row) if all(allows(row, name, k) for name in statements_of(row))]
            assert fitting == [dict(sorted(lowered(row["answer"]).items()))]
