"""The objective by hand: schedules, knobs, weights and temperatures of tokens, and faults by name."""

import math
from functools import partial

import pytest
import torch

from llmkd.objectives.objective import Term, TokenWeight
from llmkd.objectives.schedules import Adaptive, linear
from llmkd.types import Sparse, States

from coins import CE, FORWARD, HIT, IDENTITY, MISS, near, objective, students, teacher, two_rows, value


@pytest.mark.parametrize("step, weight", [(0, 1.0), (5, 0.5), (10, 0.0), (11, 0.0)])
def test_a_weight_follows_its_schedule(step, weight):
    summed = objective(Term("ce", "cross_entropy", weight=partial(linear, start=1.0, stop=0.0, steps=10)))
    data = two_rows()
    loss, tally = summed(students(data), IDENTITY, {}, data, summed.counts(data), step=step)
    assert loss.item() == near(weight * (3 * HIT + 2 * MISS) / 5)
    assert summed.scheduled(step) == {"ce/weight": weight}
    assert float(tally["ce/value"][:, 0].sum()) == near(3 * HIT + 2 * MISS) or weight == 0


def test_what_follows_no_schedule_is_not_logged():
    assert objective(CE, Term("kd", "jsd", teacher="t", knobs={"beta": 0.3})).scheduled(7) == {}


def test_knobs_reach_the_formula():
    # m = 0.1 p + 0.9 q = (0.275, 0.725)
    kd = objective(Term("kd", "skew_forward_kl", teacher="t", knobs={"alpha": 0.1}))
    assert value(kd, two_rows()) == near(0.5 * math.log(0.5 / 0.275) + 0.5 * math.log(0.5 / 0.725))


def test_an_adaptive_schedule_is_told_its_terms_mean_and_comes_back_from_a_checkpoint():
    summed = objective(Term("kd", "taid", teacher="t", knobs={"t": Adaptive(0.4, 1.0, steps=10)}), CE)
    assert list(summed.adaptive) == ["kd"] and summed.scheduled(0) == {"kd/t": 0.4}
    for step, mean in enumerate([2.0, 1.0], 1):
        summed.observe({"kd": mean, "ce": 9.0}, step)
    again = objective(Term("kd", "taid", teacher="t", knobs={"t": Adaptive(0.4, 1.0, steps=10)}), CE)
    again.restore(summed.state())
    assert again.scheduled(2) == summed.scheduled(2) != {"kd/t": 0.4}
    assert objective(CE).state() == {}


def test_half_lives_of_positions():
    # Positions 0, 1, 2 and 0, 1: weights 1, 1/2, 1/4 on 1, 1, 0 and 1, 1/2 on 1, 0.
    term = Term("ce", "cross_entropy", token_weight=TokenWeight("position", half_life=1.0))
    assert value(objective(term), two_rows()) == near((2.5 * HIT + 0.75 * MISS) / 5)


def test_a_floor_and_a_power_shape_a_weight():
    term = Term("ce", "cross_entropy", token_weight=TokenWeight("position", half_life=1.0, floor=0.5, power=2.0))
    # 1/2 + 1/2 (1, 1/4, 1/16)
    assert value(objective(term), two_rows()) == near((HIT * (1 + 0.625 + 1) + MISS * (0.53125 + 0.625)) / 5)


def test_a_column_weighs_tokens_as_it_is():
    data = two_rows() | {"column:quality": torch.tensor([[2.0] * 4, [0.0] * 4])}
    term = Term("ce", "cross_entropy", token_weight=TokenWeight("column", column="quality"))
    assert value(objective(term), data) == near(2 * (2 * HIT + MISS) / 5)


def test_entropy_weights_are_shares_of_the_largest_entropy():
    share = (math.log(4) - 0.75 * math.log(3)) / math.log(2)
    term = Term("ce", "cross_entropy", token_weight=TokenWeight("student_entropy"))
    assert value(objective(term), two_rows()) == near(share * (3 * HIT + 2 * MISS) / 5)
    taught = Term("kd", "forward_kl", teacher="t", token_weight=TokenWeight("teacher_entropy"))
    assert value(objective(taught), two_rows()) == near(FORWARD)  # a fair coin is as unsure as can be
    sure = Term("kd", "forward_kl", teacher="t", token_weight=TokenWeight("teacher_confidence"))
    assert value(objective(sure), two_rows()) == near(FORWARD / 2)


def test_temperatures_come_from_a_column_of_the_data():
    # Row 0 at tau 2, row 1 at tau 1; the fair teacher stays fair.
    data = two_rows() | {"column:tau": torch.tensor([[2.0] * 4, [1.0] * 4])}
    q = 1 / (1 + math.sqrt(3))
    warm = -math.log(2) - 0.5 * (math.log(q) + math.log(1 - q))
    kd = objective(Term("kd", "forward_kl", teacher="t"), tau_student="tau", tau_teacher="tau")
    assert value(kd, data) == near((3 * warm + 2 * FORWARD) / 5)


def test_a_fault_names_the_row_and_the_token_of_the_batch():
    data = two_rows()
    broken = teacher(data).hidden.clone()
    broken[4, 0] = math.nan  # the last counted token: row 1, token 2
    summed = objective(Term("kd", "forward_kl", teacher="t"))
    with pytest.raises(ValueError, match=r"row 1 of the batch, token 2: the logits of teacher 0 hold NaN"):
        summed(students(data), IDENTITY, {"t": States(broken, IDENTITY)}, data, summed.counts(data))


def test_a_fault_behind_dropped_tokens_keeps_its_place():
    data = two_rows()
    broken = teacher(data).hidden.clone()
    broken[4, 0] = math.inf
    summed = objective(Term("kd", "forward_kl", teacher="t", domains=(1,)))
    with pytest.raises(ValueError, match="row 1 of the batch, token 2"):
        summed(students(data), IDENTITY, {"t": States(broken, IDENTITY)}, data, summed.counts(data))


def test_the_mass_on_a_sparse_teachers_support_is_logged():
    # The teacher names token 1 alone, to which the student gives 3/4.
    data = two_rows()
    n = int(data["counted"].sum())
    sparse = Sparse(torch.ones(n, 1, dtype=torch.int64), torch.full((n, 1), math.log(0.5)), "ghost")
    summed = objective(Term("kd", "forward_kl", teacher="t"))
    loss, tally = summed(students(data), IDENTITY, {"t": sparse}, data, summed.counts(data))
    assert loss.item() == near(FORWARD)
    assert float(tally["mass_on_support"][:, 0].sum()) == near(0.75 * 5)
