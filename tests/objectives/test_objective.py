"""The objective against arithmetic by hand: who is counted, who is kept, what it is divided by, and what is logged."""

import math

import pytest
import torch

from llmkd.objectives.objective import Objective, Term, needs_teacher
from llmkd.types import Head, States

from coins import (
    CE,
    FORWARD,
    HIT,
    IDENTITY,
    MISS,
    REVERSE,
    batch,
    near,
    objective,
    run,
    students,
    teacher,
    two_rows,
    value,
)

# -- normalisation ----------------------------------------------------------------------------------------------------


def test_cross_entropy_is_the_mean_over_counted_tokens():
    # Targets 1, 1, 0 and 1, 0: three hits, two misses, five tokens.
    assert value(objective(CE), two_rows()) == near((3 * HIT + 2 * MISS) / 5)


def test_forward_kl_of_two_coins():
    assert value(objective(Term("kd", "forward_kl", teacher="t")), two_rows()) == near(FORWARD)


def test_reverse_kl_of_two_coins():
    assert value(objective(Term("kd", "reverse_kl", teacher="t")), two_rows()) == near(REVERSE)


def test_terms_are_summed_by_weight():
    terms = (Term("ce", "cross_entropy", weight=0.3), Term("kd", "forward_kl", weight=0.7, teacher="t"))
    assert value(objective(*terms), two_rows()) == near(0.3 * (3 * HIT + 2 * MISS) / 5 + 0.7 * FORWARD)


def test_no_hidden_factor_of_the_temperature():
    # At tau = 2 the student is (1, sqrt 3) / (1 + sqrt 3); the fair teacher stays fair.
    q = 1 / (1 + math.sqrt(3))
    expected = -math.log(2) - 0.5 * (math.log(q) + math.log(1 - q))
    kd = Term("kd", "forward_kl", teacher="t")
    assert value(objective(kd, tau_student=2.0, tau_teacher=2.0), two_rows()) == near(expected)


def test_normalize_all_divides_a_masked_term_by_all_counted_tokens():
    assert value(objective(Term("ce", "cross_entropy", domains=(1,))), two_rows()) == near((HIT + MISS) / 5)


def test_normalize_kept_divides_a_masked_term_by_what_it_keeps():
    term = Term("ce", "cross_entropy", domains=(1,), normalize="kept")
    assert value(objective(term), two_rows()) == near((HIT + MISS) / 2)


def test_normalize_kept_keeps_each_term_to_its_own_count():
    # Domain 0 holds three tokens, of which one is at position 0.
    terms = (
        Term("all", "cross_entropy"),
        Term("a", "cross_entropy", domains=(0,), normalize="kept"),
        Term("first_of_a", "cross_entropy", domains=(0,), positions=(0, 1), normalize="kept"),
    )
    expected = (3 * HIT + 2 * MISS) / 5 + (2 * HIT + MISS) / 3 + HIT / 1
    assert value(objective(*terms), two_rows()) == near(expected)


# -- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "positions, kept, total",
    [
        ((0, 1), 2, 2 * HIT),  # the first counted token of either row: 1, 1
        ((1, None), 3, HIT + 2 * MISS),  # the others: 1, 0 and 0
        ((1, 2), 2, HIT + MISS),  # the second ones: 1, 0
        ((2, 9), 1, MISS),  # the third one, of row 0 alone: 0
    ],
)
def test_positions_count_the_counted_tokens_of_a_row(positions, kept, total):
    term = Term("ce", "cross_entropy", positions=positions, normalize="kept")
    assert objective(term).counts(two_rows()).tolist() == [5, kept]
    assert value(objective(term), two_rows()) == near(total / kept)


def test_positions_do_not_count_a_prompt_inside_a_row():
    # Counted are places 1, 4, 5, with targets 0, 1, 0: places 2 and 3 are a second prompt, so 4 is position 1.
    data = batch([[1, 0, 1, 1, 1, 0]], [[0, 1, 0, 0, 1, 1]])
    assert value(objective(Term("ce", "cross_entropy", positions=(1, 2), normalize="kept")), data) == near(HIT)


def test_positions_start_again_in_each_segment_of_a_packed_row():
    # Two segments of three tokens and a padding tail; each counts its last two: targets 1, 0 and 1, 0.
    ids, counted = [[0, 1, 0, 0, 1, 0, 1]], [[0, 1, 1, 0, 1, 1, 0]]
    first = objective(Term("ce", "cross_entropy", positions=(0, 1), normalize="kept"))
    packed = batch(ids, counted, position_ids=[[0, 1, 2, 0, 1, 2, 0]])
    assert first.counts(packed).tolist() == [4, 2]
    assert value(first, packed) == near(HIT)
    one_row = batch(ids, counted)
    assert first.counts(one_row).tolist() == [4, 1]


def test_several_domains_may_be_kept():
    data = two_rows(domain_ids=[[0] * 4, [2] * 4])
    term = Term("ce", "cross_entropy", domains=(1, 2))
    assert objective(term, domains=("a", "b", "c")).counts(data).tolist() == [5, 2]


@pytest.mark.parametrize("completions, kept, total", [("own", 2, HIT + MISS), ("data", 3, 2 * HIT + MISS)])
def test_a_term_may_look_at_what_one_side_wrote(completions, kept, total):
    # The student wrote row 1, of the targets 1, 0; row 0, of the targets 1, 1, 0, stood in the data.
    data = two_rows(own=[[False] * 4, [True] * 4])
    every, own = (Term("ce", "cross_entropy", completions=completions, normalize=n) for n in ("all", "kept"))
    assert objective(own).counts(data).tolist() == [5, kept]
    assert value(objective(own), data) == near(total / kept)
    assert value(objective(every), data) == near(total / 5)
    assert run(objective(own), data)[1]["student_entropy"][:, 1].sum() == kept


def test_a_teacher_is_not_asked_where_its_own_rendering_has_no_such_token():
    # Row 0 loses its last counted token for teacher t; cross-entropy keeps it.
    data = two_rows(shared__t=[[False, True, True, False], [False, True, True, False]])
    kd = Term("kd", "forward_kl", normalize="kept", teacher="t")
    assert objective(CE, kd).counts(data).tolist() == [5, 5, 4]
    assert value(objective(CE, kd), data) == near((3 * HIT + 2 * MISS) / 5 + FORWARD)
    assert value(objective(Term("kd", "forward_kl", teacher="t")), data) == near(4 * FORWARD / 5)


def test_another_teachers_rendering_masks_nothing():
    data = two_rows(shared__other=[[False] * 4, [False] * 4])
    assert objective(Term("kd", "forward_kl", teacher="t")).counts(data).tolist() == [5, 5]


def test_each_term_looks_at_the_teacher_it_names():
    # Teacher "b" equals the student, "a" is fair: named out of order, and the signals in another order still.
    data = two_rows()
    terms = (Term("b", "forward_kl", teacher="b"), Term("a", "forward_kl", weight=10.0, teacher="a"))
    signals = {"b": States(students(data).detach(), IDENTITY), "a": teacher(data)}
    summed = objective(*terms)
    loss, tally = summed(students(data), IDENTITY, signals, data, summed.counts(data))
    assert summed.teacher_names == ["a", "b"]
    assert loss.item() == near(10 * FORWARD)
    assert tally["b/value"][:, 0].sum() == 0 and tally["a/value"][:, 0].sum() == near(5 * FORWARD)
    assert tally["agreement@b"][:, 0].sum() == 5


# -- nothing to learn -------------------------------------------------------------------------------------------------


def test_a_fully_masked_batch_has_loss_zero_a_graph_and_zero_gradients():
    data = two_rows() | {"counted": torch.zeros(2, 4, dtype=torch.bool)}
    weight = IDENTITY.weight.clone().requires_grad_()
    summed = objective(CE, Term("kd", "forward_kl", normalize="kept", teacher="t"))
    loss, tally = summed(students(data), Head(weight), {"t": teacher(data)}, data, summed.counts(data))
    assert summed.counts(data).tolist() == [0, 0, 0] and loss.item() == 0
    loss.backward()
    assert (weight.grad == 0).all()
    assert all((rows == 0).all() for rows in tally.values())


@pytest.mark.parametrize("normalize", ["all", "kept"])
def test_a_term_whose_mask_keeps_nothing_adds_nothing(normalize):
    data = two_rows(domain_ids=[[0] * 4, [0] * 4])
    summed = objective(Term("ce", "cross_entropy", domains=(1,), normalize=normalize))
    hidden = students(data)
    loss, _ = summed(hidden, IDENTITY, {}, data, summed.counts(data))
    loss.backward()
    assert loss.item() == 0 and (hidden.grad == 0).all()


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_a_student_that_is_its_teacher_has_exactly_zero_loss_and_gradients(kind, dtype, tau):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(90, 32, generator=generator).to(dtype)
    weight, bias = torch.randn(211, 32, generator=generator).to(dtype), torch.randn(211, generator=generator).to(dtype)
    data = batch([[0] * 91], [[0] + [1] * 90])
    same = Objective([Term("kd", kind, teacher="t")], ["a"], vocabulary=200, tau_student=tau, tau_teacher=tau)
    signals = {"t": States(hidden.clone(), Head(weight.clone(), bias.clone(), softcap=9.0))}
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    loss, tally = same(hidden, Head(weight, bias, softcap=9.0), signals, data, same.counts(data))
    loss.backward()
    assert loss.item() == 0
    assert all((leaf.grad == 0).all() for leaf in leaves)
    assert tally["kd/value"].tolist() == [[0.0, 90.0]] and tally["agreement"].tolist() == [[90.0, 90.0]]


# -- a step in pieces -------------------------------------------------------------------------------------------------


def random_step(rows=8, width=12, vocabulary=37):
    """Rows of unequal length with masks of every kind, and the states of student and teacher for the counted tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 10, (rows,), generator=generator)
    place = torch.arange(10).expand(rows, 10)
    counted = (place >= 1) & (place < lengths[:, None])
    data = {
        "input_ids": torch.randint(0, vocabulary, (rows, 10), generator=generator),
        "counted": counted,
        "domain_ids": (torch.arange(rows) % 3)[:, None].expand(rows, 10),
        "shared@t": counted & (torch.rand(rows, 10, generator=generator) > 0.2),
    }
    states = torch.randn(2, rows, 10, width, dtype=torch.float64, generator=generator)
    weights = torch.randn(2, vocabulary, width, dtype=torch.float64, generator=generator)
    terms = [
        Term("ce", "cross_entropy", weight=0.4, positions=(1, None)),
        Term("kd", "forward_kl", domains=(0, 2), normalize="kept", teacher="t"),
        Term("rkd", "reverse_kl", weight=2.0, teacher="t"),
    ]
    return data, states, weights, Objective(terms, ["a", "b", "c"], vocabulary)


def on_rows(picked, counts=None):
    """Loss, gradient of the head and tally of some rows of the random step."""
    data, states, weights, summed = random_step()
    part = {name: column[picked] for name, column in data.items()}
    student, taught = (x[picked][part["counted"]] for x in states)
    weight = weights[0].clone().requires_grad_()
    counts = summed.counts(part) if counts is None else counts
    signals = {"t": States(taught, Head(weights[1]))}
    loss, tally = summed(student, Head(weight), signals, part, counts)
    loss.backward()
    return loss.detach(), weight.grad, tally, summed.counts(part)


@pytest.mark.parametrize("sizes", [[4, 4], [2, 2, 2, 2], [1, 7], [1] * 8])
def test_micro_batches_sum_to_the_batch(sizes):
    everything = torch.arange(8)
    loss, gradient, tally, counts = on_rows(everything)
    parts = [on_rows(picked, counts) for picked in everything.split(sizes)]
    torch.testing.assert_close(sum(p[0] for p in parts), loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(sum(p[1] for p in parts), gradient, rtol=1e-12, atol=1e-14)
    assert torch.equal(sum(p[3] for p in parts), counts)
    for name, rows in tally.items():
        torch.testing.assert_close(sum(p[2][name] for p in parts), rows, rtol=1e-12, atol=0)


def test_padding_changes_nothing():
    data, states, weights, summed = random_step()
    wide = {name: torch.nn.functional.pad(column, (0, 6)) for name, column in data.items()}
    student, taught = (x[data["counted"]] for x in states)
    signals = {"t": States(taught, Head(weights[1]))}
    losses = [summed(student, Head(weights[0]), signals, b, summed.counts(b))[0] for b in (data, wide)]
    assert torch.equal(*losses)


# -- what is logged ---------------------------------------------------------------------------------------------------


def test_a_tally_holds_the_sum_and_the_count_of_each_domain():
    terms = (Term("ce", "cross_entropy", weight=0.3), Term("kd", "forward_kl", weight=0.0, teacher="t"))
    tally = run(objective(*terms), two_rows())[1]
    assert set(tally) == {"ce/value", "kd/value", "student_entropy", "teacher_entropy", "agreement"}
    # Unweighted: domain a holds 1, 1, 0, domain b 1, 0.
    torch.testing.assert_close(tally["ce/value"], torch.tensor([[2 * HIT + MISS, 3], [HIT + MISS, 2]]).double())
    torch.testing.assert_close(tally["kd/value"], torch.tensor([[3 * FORWARD, 3], [2 * FORWARD, 2]]).double())
    entropy = math.log(4) - 0.75 * math.log(3)
    torch.testing.assert_close(tally["student_entropy"], torch.tensor([[3 * entropy, 3], [2 * entropy, 2]]).double())
    fair = math.log(2)
    torch.testing.assert_close(tally["teacher_entropy"], torch.tensor([[3 * fair, 3], [2 * fair, 2]]).double())


def test_a_tally_holds_only_what_its_terms_mask_keeps():
    term = Term("ce", "cross_entropy", positions=(0, 1))
    tally = run(objective(term), two_rows(domain_ids=[[0] * 4, [0] * 4]))[1]
    torch.testing.assert_close(tally["ce/value"], torch.tensor([[2 * HIT, 2], [0, 0]]).double())
    # No term looks at the other three: they are dropped before the first product, and nothing is known of them.
    assert tally["student_entropy"][:, 1].tolist() == [2, 0]


def test_agreement_is_counted_only_where_the_teacher_answers():
    data = two_rows(shared__t=[[False, True, True, False], [False, True, True, False]])
    tally = run(objective(Term("kd", "forward_kl", teacher="t")), data)[1]
    assert tally["agreement"][:, 1].tolist() == [2, 2]


def test_only_divergences_need_a_teacher():
    assert needs_teacher("forward_kl") and needs_teacher("reverse_kl") and not needs_teacher("cross_entropy")
