"""Weights of tokens: their ends, by hand, and their shape."""

import math

import pytest
import torch

from llmkd.objectives.weighting import MEASURED, Statistics, measured, position_weight, shaped

V = 8
EVEN, SURE = math.log(V), 0.0


def found(student: float = 1.0, teacher: float = 1.0, top: float = 0.5) -> Statistics:
    return Statistics(torch.tensor([student]), V, torch.tensor([teacher]), torch.tensor([top]))


@pytest.mark.parametrize("kind, side", [("student_entropy", "student"), ("teacher_entropy", "teacher")])
def test_an_entropy_weighs_1_at_its_most_and_0_at_its_least(kind, side):
    assert float(MEASURED[kind](found(**{side: EVEN}))) == pytest.approx(1, rel=1e-6)
    assert float(MEASURED[kind](found(**{side: SURE}))) == 0
    # A fair coin among eight tokens: ln 2 / ln 8 = 1/3.
    assert float(MEASURED[kind](found(**{side: math.log(2)}))) == pytest.approx(1 / 3, rel=1e-6)


def test_confidence_is_the_probability_of_the_likeliest_token():
    assert float(MEASURED["teacher_confidence"](found(top=0.75))) == 0.75


def test_each_weight_looks_at_its_own_number_alone():
    one, other = found(0.3, 0.6, 0.9), found(0.4, 0.7, 0.8)
    mixed = Statistics(one.entropy, V, other.teacher_entropy, other.teacher_top)
    assert torch.equal(MEASURED["student_entropy"](mixed), MEASURED["student_entropy"](one))
    assert torch.equal(MEASURED["teacher_entropy"](mixed), MEASURED["teacher_entropy"](other))
    assert torch.equal(MEASURED["teacher_confidence"](mixed), MEASURED["teacher_confidence"](other))


def test_a_position_counts_half_after_each_half_life():
    found = position_weight(torch.tensor([0, 4, 8, 12]), half_life=4.0)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, 0.25, 0.125]))


def test_a_shape_goes_from_its_floor_to_1():
    weight = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(shaped(weight), weight)
    torch.testing.assert_close(shaped(weight, floor=0.2), torch.tensor([0.2, 0.6, 1.0]))
    torch.testing.assert_close(shaped(weight, power=2.0), torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(shaped(weight, floor=0.2, power=2.0), torch.tensor([0.2, 0.4, 1.0]))


def test_what_rounding_puts_beyond_the_ends_is_put_back():
    assert shaped(torch.tensor([-1e-7, 1 + 1e-6]), power=0.5).tolist() == [0.0, 1.0]


def test_a_power_of_0_weighs_all_alike():
    assert shaped(torch.tensor([0.0, 0.3, 1.0]), power=0.0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", MEASURED)
def test_a_measured_weight_is_its_statistic_in_its_shape(kind):
    numbers = found(0.3, 0.6, 0.9)
    expected = 0.1 + 0.9 * MEASURED[kind](numbers) ** 3
    torch.testing.assert_close(measured(kind, floor=0.1, power=3.0)(numbers), expected)
