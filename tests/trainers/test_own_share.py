"""DistiLLM's share of the student's own and its buffer, at values known by hand."""

import math
import random

import pytest

from llmkd.trainers.own_share import OwnShare, on_policy, raised_share, source
from llmkd.trainers.replay import Replay


def test_the_share_rises_with_the_validation_loss_alone() -> None:
    share, before, seen = 0.0, 2.0, []
    for loss in (1.5, 2.05, 2.1, 2.15, 2.2, 2.0, 9.0):
        share, before = raised_share(share, before, loss)
        seen.append((round(share, 9), before))
    assert seen == [(0.0, 2.0), (0.0, 2.0), (0.1, 2.1), (0.1, 2.1), (0.2, 2.2), (0.2, 2.2), (0.3, 9.0)]
    assert raised_share(0.95, 1.0, 2.0)[0] == 1.0


def test_sources_by_hand() -> None:
    assert [source(d, 0.8, 0.5, full=True) for d in (0.39, 0.41, 0.79, 0.81)] == ["fresh", "replay", "replay", "data"]
    assert [source(d, 0.8, 0.5, full=False) for d in (0.39, 0.79, 0.81)] == ["fresh", "fresh", "data"]


def test_the_fraction_of_fresh_ones_is_the_falling_share() -> None:
    draws = [(i + 0.5) / 1000 for i in range(1000)]
    fresh = [source(d, 0.6, 0.25, full=True) for d in draws].count("fresh")
    assert math.isclose(fresh / 1000, 0.45, abs_tol=1e-3)


def test_without_a_buffer_a_step_is_fresh_in_all_of_the_share() -> None:
    found = [OwnShare(0.4).of_step(7, step, 300) for step in range(300)]
    assert found == ["fresh" if on_policy(7, step, 0.4) else "data" for step in range(300)]


def test_the_first_loss_is_the_one_before_training_and_a_constant_share_learns_nothing() -> None:
    share, still = OwnShare(0.0, adaptive=True), OwnShare(0.0)
    for loss in (5.0, 5.2, 5.25, 5.4):
        share.learn(loss)
        still.learn(loss)
    assert (round(share.share, 9), share.loss_before) == (0.2, 5.4)
    assert (still.share, still.loss_before) == (0.0, None)


def test_a_checkpoint_holds_the_share_the_loss_and_the_buffer() -> None:
    share, other = (OwnShare(0.0, True, Replay(3)) for _ in range(2))
    share.learn(1.0)
    share.learn(2.0)
    assert share.replay is not None and other.replay is not None
    share.replay.add([[[1], [2], 0], [[3], [4], 1]])
    other.restore(share.state())
    assert (other.share, other.loss_before, other.replay.items) == (0.1, 2.0, [[[1], [2], 0], [[3], [4], 1]])


def test_the_oldest_goes_first() -> None:
    buffer = Replay(capacity=3)
    buffer.add(["a", "b"])
    assert not buffer.full
    buffer.add(["c", "d"])
    assert buffer.full and buffer.items == ["b", "c", "d"]


def test_a_draw_depends_on_seed_and_step_alone_and_survives_a_checkpoint() -> None:
    one, other = Replay(20), Replay(20)
    one.add(list(range(30)))
    first = one.draw(1, 7, 5)
    random.seed(0)
    one.draw(1, 8, 5)
    other.restore(one.state())
    assert other.draw(1, 7, 5) == first == one.draw(1, 7, 5)
    assert len(set(first)) == 5 and min(first) >= 10
    assert one.draw(1, 8, 5) != first != one.draw(2, 7, 5)


def test_a_buffer_of_nothing_and_a_draw_of_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="capacity: 0"):
        Replay(0)
    with pytest.raises(ValueError, match="size: 2 items"):
        Replay(3, ["a"]).draw(0, 0, 2)
