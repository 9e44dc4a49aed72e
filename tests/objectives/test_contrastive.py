"""DistiLLM-2's pair and DistiLLM's share of the student's own, at values known by hand; the replay buffer."""

import math
import random

import pytest
import torch

from llmkd.objectives.contrastive import adaptive_alpha, contrastive, curriculum_share, raised_share, source
from llmkd.objectives.replay import Replay

F64 = torch.float64
P, Q = torch.tensor([0.7, 0.2, 0.1], dtype=F64), torch.tensor([0.2, 0.3, 0.5], dtype=F64)


def pair(**knobs):
    both = torch.tensor([True, False])
    return contrastive(P.log().expand(2, 3), Q.log().expand(2, 3), both, **knobs)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
def test_each_half_is_its_skewed_divergence_times_its_share(share):
    found = pair(share=share, alpha_teacher=0.1, alpha_student=0.05)
    skew = (P * (P / (0.1 * P + 0.9 * Q)).log()).sum() * (1 - share)
    skew_reverse = (Q * (Q / (0.95 * P + 0.05 * Q)).log()).sum() * share
    torch.testing.assert_close(found, torch.stack([skew, skew_reverse]), rtol=1e-12, atol=1e-14)


def test_a_teacher_that_is_the_student_gives_0():
    found = contrastive(Q.log().expand(2, 3), Q.log().expand(2, 3), torch.tensor([True, False]))
    assert found.abs().max() < 1e-14


def test_curriculum_share_is_clipped_on_both_sides():
    assert [curriculum_share(*x) for x in ((0, 4, 0, 10), (1, 4, 5, 10), (3, 4, 5, 10))] == [0.5, 0.75, 1.0]


def test_adaptive_alpha_by_hand_and_within_its_bounds():
    writer, other = torch.tensor([0.6, 0.505, 0.9, 0.2], dtype=F64).log(), torch.full((4,), 0.5, dtype=F64).log()
    found = adaptive_alpha(writer, other, 0.1050, bounds=(0.0, 1.0))
    assert float(found[0]) == pytest.approx(1 - 0.9 * 0.105 / (0.1 + 1e-5), rel=1e-9)
    assert adaptive_alpha(writer, other, 0.1).tolist()[1:] == [0.01, 0.1, 0.1]


def test_adaptive_alpha_of_a_teacher_that_is_the_student_is_a_number():
    log = torch.full((2,), -1.0, dtype=F64)
    assert adaptive_alpha(log, log, 0.0).tolist() == [0.1, 0.1]


def test_the_share_rises_with_the_validation_loss_alone():
    share, before, seen = 0.0, 2.0, []
    for loss in (1.5, 2.05, 2.1, 2.15, 2.2, 2.0, 9.0):
        share, before = raised_share(share, before, loss)
        seen.append((round(share, 9), before))
    assert seen == [(0.0, 2.0), (0.0, 2.0), (0.1, 2.1), (0.1, 2.1), (0.2, 2.2), (0.2, 2.2), (0.3, 9.0)]
    assert raised_share(0.95, 1.0, 2.0)[0] == 1.0


def test_sources_by_hand():
    assert [source(d, 0.8, 0.5, full=True) for d in (0.39, 0.41, 0.79, 0.81)] == ["fresh", "replay", "replay", "data"]
    assert [source(d, 0.8, 0.5, full=False) for d in (0.39, 0.79, 0.81)] == ["fresh", "fresh", "data"]


def test_the_fraction_of_fresh_ones_is_the_falling_share():
    draws = [(i + 0.5) / 1000 for i in range(1000)]
    fresh = [source(d, 0.6, 0.25, full=True) for d in draws].count("fresh")
    assert math.isclose(fresh / 1000, 0.45, abs_tol=1e-3)


def test_the_oldest_goes_first():
    buffer = Replay(capacity=3)
    buffer.add(["a", "b"])
    assert not buffer.full
    buffer.add(["c", "d"])
    assert buffer.full and buffer.items == ["b", "c", "d"]


def test_a_draw_depends_on_seed_and_step_alone_and_survives_a_checkpoint():
    one, other = Replay(20), Replay(20)
    one.add(list(range(30)))
    first = one.draw(1, 7, 5)
    random.seed(0)
    one.draw(1, 8, 5)
    other.restore(one.state())
    assert other.draw(1, 7, 5) == first == one.draw(1, 7, 5)
    assert len(set(first)) == 5 and min(first) >= 10
    assert one.draw(1, 8, 5) != first != one.draw(2, 7, 5)


def test_a_buffer_of_nothing_and_a_draw_of_too_many_are_refused():
    with pytest.raises(ValueError, match="capacity: 0"):
        Replay(0)
    with pytest.raises(ValueError, match="size: 2 items"):
        Replay(3, ["a"]).draw(0, 0, 2)
