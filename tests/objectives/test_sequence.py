"""MiniLLM's gradient against that of the divergence of whole sequences, all of which are enumerated."""

import itertools

import pytest
import torch

from llmkd.objectives.divergences import reverse_kl
from llmkd.objectives.sequence import (
    future_return,
    importance_weight,
    long_term,
    normalised_return,
    teacher_mixed,
    token_reward,
)

F64 = torch.float64
V, END, LONGEST = 3, 0, 3


def tree():
    """All sequences over V tokens that end at END or at LONGEST: nodes (prefixes), tokens and mask ``[S, LONGEST]``."""
    whole = {
        s[: s.index(END) + 1] if END in s else s for s in itertools.product(range(V), repeat=LONGEST)
    }  # fmt: skip
    prefixes: dict[tuple[int, ...], int] = {}
    rows = []
    for s in sorted(whole):
        nodes = [prefixes.setdefault(s[:t], len(prefixes)) for t in range(len(s))]
        pad = LONGEST - len(s)
        rows.append((nodes + [0] * pad, list(s) + [END] * pad, [True] * len(s) + [False] * pad))
    return [torch.tensor(x) for x in zip(*rows, strict=True)], len(prefixes)


def models(seed: int = 0):
    (nodes, tokens, mask), size = tree()
    draw = torch.Generator().manual_seed(seed)
    logp, logits = (torch.randn(size, V, dtype=F64, generator=draw) for _ in range(2))
    return nodes, tokens, mask, logp.log_softmax(-1), logits.requires_grad_()


def exact_gradient(nodes, tokens, mask, logp, logits):
    logq = logits.log_softmax(-1)
    per_q, per_p = ((x[nodes, tokens] * mask).sum(-1) for x in (logq, logp))
    assert float(per_q.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    return torch.autograd.grad((per_q.exp() * (per_q - per_p)).sum(), logits)[0]


def loss_per_sequence(nodes, tokens, mask, logp, logq, weight=1.0):
    of_q, of_p = logq[nodes, tokens], logp[nodes, tokens]
    advantage = future_return(token_reward(of_p, of_q), mask)
    single = torch.where(mask, weight * reverse_kl(logp, logq)[nodes], 0.0)
    return (single + long_term(of_q, advantage, mask, weight)).sum(-1)


@pytest.mark.parametrize("seed", range(3))
def test_both_terms_together_have_the_gradient_of_the_divergence_of_sequences(seed):
    nodes, tokens, mask, logp, logits = case = models(seed)
    logq = logits.log_softmax(-1)
    chance = (logq[nodes, tokens] * mask).sum(-1).exp().detach()
    (found,) = torch.autograd.grad((chance * loss_per_sequence(nodes, tokens, mask, logp, logq)).sum(), logits)
    torch.testing.assert_close(found, exact_gradient(*case), rtol=0, atol=1e-12)


def test_drawn_from_the_mixture_the_weight_of_the_whole_sequence_makes_it_exact():
    nodes, tokens, mask, logp, logits = case = models(4)
    logq = logits.log_softmax(-1)
    mixed = (teacher_mixed(logp, logq)[nodes, tokens] * mask).sum(-1).exp().detach()
    step = importance_weight(logp[nodes, tokens], logq[nodes, tokens])
    whole = torch.where(mask, step, 1.0).prod(-1, keepdim=True)
    loss = loss_per_sequence(nodes, tokens, mask, logp, logq, whole)
    (found,) = torch.autograd.grad((mixed * loss).sum(), logits)
    torch.testing.assert_close(found, exact_gradient(*case), rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
def test_the_mean_weight_over_the_mixture_is_1(share):
    _, _, _, logp, logits = models()
    logq = logits.log_softmax(-1)
    mixed = teacher_mixed(logp, logq, share).exp()
    torch.testing.assert_close(mixed, share * logp.exp() + (1 - share) * logq.exp())
    weight = importance_weight(logp, logq, share)
    torch.testing.assert_close((mixed * weight).sum(-1), torch.ones(len(logp), dtype=F64), rtol=0, atol=1e-12)
    assert not weight.requires_grad and (share > 0 or bool((weight == 1).all()))


def test_future_return_by_hand():
    reward, mask = torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[True, True, True, False]])
    assert future_return(reward, mask).tolist() == [[6.0, 4.0, 0.0, 0.0]]
    assert normalised_return(reward, mask).tolist() == [[3.0, 4.0, 0.0, 0.0]]


def test_repeating_a_token_of_constant_reward_leaves_the_normalised_return():
    for length in range(2, 9):
        found = normalised_return(torch.full((1, length), -0.7, dtype=F64), torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(found[0, :-1], torch.full((length - 1,), -0.7, dtype=F64), rtol=0, atol=1e-12)


def test_padding_never_enters_and_the_advantage_carries_no_gradient():
    logq = torch.tensor([[-1.0, -2.0, float("nan")]], dtype=F64, requires_grad=True)
    logp, mask = torch.tensor([[-2.0, -1.5, float("nan")]], dtype=F64), torch.tensor([[True, True, False]])
    (found,) = torch.autograd.grad(long_term(logq, normalised_return(logp - logq, mask), mask).sum(), logq)
    torch.testing.assert_close(found, torch.tensor([[-0.5, 0.0, 0.0]], dtype=F64))
    assert not token_reward(logp, logq).requires_grad


def test_a_teacher_that_is_the_student_teaches_nothing():
    nodes, tokens, mask, _, logits = models()
    logq = logits.log_softmax(-1)
    loss = loss_per_sequence(nodes, tokens, mask, logq.detach(), logq)
    (found,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.abs().max() < 1e-12 and found.abs().max() < 1e-12
