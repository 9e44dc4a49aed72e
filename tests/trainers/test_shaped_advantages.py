"""Joint loss and shaped advantage, over all samples of a toy; masks by hand."""

import pytest
import torch

from llmkd.objectives.policy import k2, teacher_advantage
from llmkd.trainers.rollouts import group_all_wrong, incorrect

F64 = torch.float64
CORRECT = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, float("nan"), 0.0])


def masks():
    return incorrect(CORRECT), group_all_wrong(CORRECT, 2)


def test_masks_by_hand_and_the_group_mask_is_a_subset():
    wrong, lost = masks()
    assert wrong.tolist() == [False, True, True, True, False, False, False, True]
    assert lost.tolist() == [False, False, True, True, False, False, False, False]
    assert not (lost & ~wrong).any()


def test_samples_that_are_no_whole_groups_are_refused():
    with pytest.raises(ValueError, match="8 samples are no whole number of groups of 3"):
        group_all_wrong(CORRECT, 3)


def setting():
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 5, dtype=F64, generator=draw).requires_grad_()
    logp = torch.randn(8, 5, dtype=F64, generator=draw).log_softmax(-1)
    reward = torch.randn(8, 5, dtype=F64, generator=draw)
    return logits, logp, reward


def surrogate(logq, advantage):
    return -(logq - logq.detach()).exp() * advantage


COMBINATIONS = {  # the reward's share, the teacher's share, by correctness c and all-wrong C
    "opd": lambda c, lost: (0 * c, 1 + 0 * c),
    "kdrl": lambda c, lost: (1 + 0 * c, 0.3 + 0 * c),
    "kdrl, masked": lambda c, lost: (1 + 0 * c, 0.3 * (1 - c)),
    "srpo": lambda c, lost: (c, 1 - c),
    "hdpo": lambda c, lost: (1 + 0 * c, 0.3 * lost),
}


@pytest.mark.parametrize("drawn", [False, True], ids=["all samples", "drawn samples"])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_joint_loss_has_the_gradient_of_the_shaped_advantage(name, drawn):
    logits, logp, reward = setting()
    logq = logits.log_softmax(-1)
    chance = logq.detach().exp()
    if drawn:
        at = torch.multinomial(chance, 1, generator=torch.Generator().manual_seed(2))
        chance = torch.zeros_like(chance).scatter(1, at, 1.0)
    wrong, lost = (m.to(F64).unsqueeze(1) for m in masks())
    of_reward, of_teacher = COMBINATIONS[name](1 - wrong, lost)
    advantage = of_reward * reward + of_teacher * teacher_advantage(logp, logq)
    shaped = (chance * surrogate(logq, advantage)).sum() / 8
    joint = (chance * (surrogate(logq, of_reward * reward) + of_teacher * k2(logp, logq))).sum() / 8
    found, expected = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (shaped, joint))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert expected.abs().max() > 1e-3


def test_a_group_that_is_all_right_has_zero_terms_and_no_nan():
    right = torch.ones(4, dtype=F64)
    logq = torch.randn(4, 3, dtype=F64).requires_grad_()
    for mask in (incorrect(right), group_all_wrong(right, 4)):
        advantage = mask.to(F64).unsqueeze(1) * teacher_advantage(torch.zeros(4, 3, dtype=F64), logq)
        (found,) = torch.autograd.grad(surrogate(logq, advantage).sum(), logq)
        assert (found == 0).all()


def test_the_teachers_advantage_has_no_gradient():
    logq = torch.zeros(2, requires_grad=True)
    found = teacher_advantage(torch.tensor([1.0, -1.0]), logq)
    assert not found.requires_grad and found.tolist() == [1.0, -1.0]
