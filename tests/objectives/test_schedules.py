"""Schedules at the steps where they are known by hand."""

import math

import pytest

from llmkd.objectives.schedules import CURVES, Adaptive, cosine, linear, piecewise, switch_at


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_starts_at_its_start_and_stays_at_its_stop(name: str) -> None:
    curve = CURVES[name]
    assert curve(0, 5.0, 1.0, 80) == 5.0
    assert curve(80, 5.0, 1.0, 80) == curve(10_000, 5.0, 1.0, 80) == 1.0


@pytest.mark.parametrize("step, value", [(20, 4.0), (40, 3.0), (60, 2.0), (79, 1.05)])
def test_linear_is_a_straight_line(step: int, value: float) -> None:
    assert linear(step, 5.0, 1.0, 80) == pytest.approx(value, rel=1e-12)


def test_cosine_is_half_way_at_half_time_and_slow_at_both_ends() -> None:
    assert cosine(40, 5.0, 1.0, 80) == pytest.approx(3.0, rel=1e-12)
    # 1 + 4 (1 + cos(pi / 4)) / 2
    assert cosine(20, 5.0, 1.0, 80) == pytest.approx(1 + 2 * (1 + math.sqrt(0.5)), rel=1e-12)
    assert cosine(1, 5.0, 1.0, 80) > linear(1, 5.0, 1.0, 80)


def test_switch_at_changes_with_the_step_it_names() -> None:
    assert [switch_at(step, 1.0, 0.0, 3) for step in range(5)] == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_piecewise_goes_through_its_points_and_keeps_the_outer_ones() -> None:
    points = [[10, 1.0], [20, 3.0], [40, 2.0]]
    assert [piecewise(step, points) for step in (0, 10, 15, 20, 30, 40, 99)] == [1.0, 1.0, 2.0, 3.0, 2.5, 2.0, 2.0]


def test_adaptive_only_stores_the_first_value() -> None:
    schedule = Adaptive(0.4, 1.0, steps=100)
    schedule.observe(2.0, 1)
    assert schedule(1) == 0.4 and schedule.before == 2.0


def test_adaptive_by_hand() -> None:
    schedule = Adaptive(0.4, 1.0, steps=10**9, alpha=0.1, beta=0.5)
    schedule.observe(2.0, 1)
    schedule.observe(1.0, 2)  # delta = 1/2, m = 1/4
    expected = 0.4 + 0.1 * 0.6 / (1 + math.exp(-0.25))
    assert schedule(2) == pytest.approx(expected, rel=1e-12)
    schedule.observe(1.5, 3)  # delta = -1/2, m = 1/8 - 1/4
    assert schedule(3) == pytest.approx(expected + 0.1 * (1 - expected) / (1 + math.exp(0.125)), rel=1e-12)


def test_adaptive_never_falls_and_never_lags_the_line() -> None:
    schedule, before = Adaptive(0.4, 1.0, steps=50, alpha=0.02), 0.0
    for step in range(1, 60):
        schedule.observe(1.0 + (step % 7), step)
        assert before <= schedule(step) <= 1.0
        if step > 1:
            assert schedule(step) >= linear(step, 0.4, 1.0, 50) - 1e-12
        before = schedule(step)
    assert before == 1.0


def test_adaptive_goes_on_from_its_state() -> None:
    one, other = Adaptive(0.4, 1.0, steps=50), Adaptive(0.4, 1.0, steps=50)
    values = [3.0, 2.5, 2.7, 1.0, 0.5, 0.7]
    for step, value in enumerate(values[:3], 1):
        one.observe(value, step)
    other.restore(one.state())
    for step, value in enumerate(values[3:], 4):
        one.observe(value, step)
        other.observe(value, step)
    assert one.state() == other.state() and one(9) == other(9)
