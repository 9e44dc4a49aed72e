"""What student and teacher say of the same tokens, against formulas in float64 with every logit in memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llmkd.evaluation.measures import tokens
from llmkd.evaluation.measures.fidelity import tokens_per_block
from llmkd.types import Head, Logits, Signals, Sparse, States

V, N, K = 29, 40, 5


def states(seed: int, width: int = 8, rows: int = V, dtype: torch.dtype = torch.float32) -> States:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, width, generator=generator, dtype=torch.float64)
    head = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return States(hidden.to(dtype), Head(head.to(dtype)))


def targets() -> Tensor:
    return torch.randint(V, (N,), generator=torch.Generator().manual_seed(9))


def log(signals: States | Logits) -> Tensor:
    z = signals.logits if isinstance(signals, Logits) else signals.hidden.double() @ signals.head.weight.double().t()
    return z.double()[:, :V].log_softmax(-1)


def by_hand(logq: Tensor, logp: Tensor, target: Tensor, k: int = K) -> dict[str, Tensor]:
    """The definitions, word by word."""
    p, q = logp.exp(), logq.exp()
    m = (p + q) / 2
    top_p, top_q = logp.argmax(-1), logq.argmax(-1)
    most_p = [set(row.tolist()) for row in logp.argsort(-1, descending=True)[:, :k]]
    most_q = [set(row.tolist()) for row in logq.argsort(-1, descending=True)[:, :k]]
    return {
        "forward_kl": (p * (logp - logq)).sum(-1),
        "reverse_kl": (q * (logq - logp)).sum(-1),
        "jsd": 0.5 * (p * (logp - m.log())).sum(-1) + 0.5 * (q * (logq - m.log())).sum(-1),
        "total_variation": 0.5 * (p - q).abs().sum(-1),
        "cross_entropy": -logq[torch.arange(len(target)), target],
        "correct": (top_q == target).double(),
        "agreement": (top_p == top_q).double(),
        "teacher_right": (top_p == target).double(),
        "top_k_overlap": torch.tensor([len(a & b) / k for a, b in zip(most_p, most_q, strict=True)]).double(),
        "top_1_in_top_k": torch.tensor([float(int(t) in a) for t, a in zip(top_q, most_p, strict=True)]).double(),
        "teacher_top": p.amax(-1),
        "teacher_collision": (p * p).sum(-1),
        "teacher_cross_entropy": -logp[torch.arange(len(target)), target],
    }


def near(student: Signals, teacher: Signals) -> None:
    found = tokens.compared(student, teacher, targets(), V, K)
    expected = by_hand(log(student), log(teacher), targets())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=2e-5, msg=name)


def test_values_are_the_float64_formulas() -> None:
    near(states(0), states(1, width=12))


def test_a_teacher_given_as_logits_is_the_same() -> None:
    teacher = states(1, width=12)
    near(states(0), Logits(teacher.hidden @ teacher.head.weight.t()))


def test_rows_of_padded_heads_are_no_tokens() -> None:
    near(states(0, rows=V + 7), states(1, rows=V + 3))


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_size_of_the_chunks_changes_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokens.compared(states(0), states(1), targets(), V, K)
    monkeypatch.setattr(tokens, "CHUNK_BYTES", rows * 8 * V)
    parts = tokens.compared(states(0), states(1), targets(), V, K)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_bfloat16_states_are_not_rounded_again() -> None:
    near(states(0, dtype=torch.bfloat16), states(1, dtype=torch.bfloat16))


# -- oracles -----------------------------------------------------------------------------------------------------------


def test_a_model_follows_itself_whole() -> None:
    found = tokens.compared(states(0), states(0), targets(), V, K)
    for name in ("forward_kl", "reverse_kl", "jsd", "total_variation"):
        assert found[name].abs().max() < 1e-7, name
    for name in ("agreement", "top_k_overlap", "top_1_in_top_k"):
        assert (found[name] == 1).all(), name
    assert torch.equal(found["correct"], found["teacher_right"])


def test_students_with_turned_vocabularies_agree_by_chance() -> None:
    """Over all V turns of the vocabulary each token of the student is each of the teacher's once: 1 / V and k / V."""
    teacher = states(1)
    turned = [States(teacher.hidden, Head(teacher.head.weight.roll(i, 0))) for i in range(V)]
    found = [tokens.compared(student, teacher, targets(), V, K) for student in turned]
    for name, chance in {"agreement": 1 / V, "top_1_in_top_k": K / V, "top_k_overlap": K / V}.items():
        mean = torch.stack([f[name] for f in found]).mean(0)
        torch.testing.assert_close(mean, torch.full((N,), chance), rtol=1e-5, atol=1e-6, msg=name)


def test_students_of_equal_accuracy_and_other_agreement_are_told_apart() -> None:
    """Both are right where the teacher is; where it is wrong one shares its mistake, the other makes its own."""
    right, wrong, other = 0, 1, 2
    target = torch.zeros(8, dtype=torch.long)
    first = torch.tensor([right] * 4 + [wrong] * 4)

    def says(choice: Tensor) -> States:
        return States(5 * torch.eye(3)[choice], Head(torch.eye(3)))

    faithful = tokens.compared(says(first), Logits(5 * torch.eye(3)[first]), target, 3, 1)
    own = tokens.compared(
        says(torch.where(first == wrong, other, first)), Logits(5 * torch.eye(3)[first]), target, 3, 1
    )
    assert faithful["correct"].mean() == own["correct"].mean() == 0.5
    assert faithful["agreement"].mean() == 1.0 and own["agreement"].mean() == 0.5
    assert own["forward_kl"].mean() > 1.0 > faithful["forward_kl"].mean()


def test_acceptance_is_that_of_speculative_decoding() -> None:
    """Draw from the student, accept with probability min(1, p / q), 20,000 times a token."""
    logq, logp = log(states(0)), log(states(1))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(logq.exp(), 20_000, replacement=True, generator=generator)
    chance = (logp - logq).exp().clamp(max=1).gather(-1, drawn)
    accepted = (torch.rand(chance.shape, generator=generator) < chance).double().mean(-1)
    expected = 1 - tokens.compared(states(0), states(1), targets(), V, K)["total_variation"].double()
    error = (expected * (1 - expected) / 20_000).sqrt()
    assert ((accepted - expected).abs() < 4.5 * error + 1e-6).all()


def test_tokens_of_a_block_are_those_of_speculative_decoding() -> None:
    """A block draws gamma tokens, keeps them up to the first that is rejected, and one more comes from the teacher."""
    generator = torch.Generator().manual_seed(0)
    for acceptance, gamma in ((0.3, 4), (0.9, 4), (0.8, 7)):
        accepted = torch.rand(40_000, gamma, generator=generator) < acceptance
        kept = 1.0 + accepted.long().cumprod(-1).sum(-1)
        error = float(kept.std()) / math.sqrt(40_000)
        assert abs(float(kept.mean()) - tokens_per_block(acceptance, gamma)) < 4 * error
        by_formula = (1 - acceptance ** (gamma + 1)) / (1 - acceptance)
        assert tokens_per_block(acceptance, gamma) == pytest.approx(by_formula)
    assert tokens_per_block(1.0, 4) == 5 and tokens_per_block(0.0, 4) == 1


def test_resampled_teacher_is_what_draws_of_it_do() -> None:
    p = log(states(1)).exp()
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.multinomial(p, 20_000, replacement=True, generator=generator) for _ in range(2))
    found = tokens.compared(states(0), states(1), targets(), V, K)
    for drawn, name in (((one == two), "teacher_collision"), ((one == p.argmax(-1, True)), "teacher_top")):
        share, expected = drawn.double().mean(-1), found[name].double()
        error = (expected * (1 - expected) / 20_000).sqrt()
        assert ((share - expected).abs() < 4.5 * error + 1e-6).all(), name


# -- edges -------------------------------------------------------------------------------------------------------------


def test_a_token_that_the_teacher_rules_out_makes_reverse_kl_infinite_and_is_no_error() -> None:
    logits = states(1).hidden @ states(1).head.weight.t()
    logits[:, 3] = -math.inf
    found = tokens.compared(states(0), Logits(logits), targets(), V, K)
    assert found["reverse_kl"].isinf().all()
    for name in ("forward_kl", "jsd", "total_variation", "teacher_top", "teacher_collision"):
        assert found[name].isfinite().all(), name


def test_the_likeliest_of_equally_likely_tokens_is_one_of_the_k() -> None:
    flat = States(torch.zeros(N, 8), Head(torch.ones(V, 8)))
    found = tokens.compared(flat, flat, targets(), V, K)
    assert (found["agreement"] == 1).all() and (found["top_1_in_top_k"] == 1).all()


def test_k_may_be_larger_than_the_vocabulary() -> None:
    found = tokens.compared(states(0), states(1), targets(), V, V + 10)
    assert (found["top_k_overlap"] == 1).all() and (found["top_1_in_top_k"] == 1).all()


def test_no_tokens_are_no_values() -> None:
    none = States(torch.zeros(0, 8), Head(torch.ones(V, 8)))
    found = tokens.compared(none, none, targets()[:0], V, K)
    assert found.keys() == tokens.compared(states(0), states(1), targets(), V, K).keys()
    assert all(len(value) == 0 for value in found.values())


# -- sparse teachers ---------------------------------------------------------------------------------------------------


def sparse(reading: str, k: int = 8) -> Sparse:
    best = log(states(1)).topk(k)
    if reading == "counts":
        return Sparse(best.indices, best.values.log_softmax(-1), "counts")
    return Sparse(best.indices, best.values, reading)


@pytest.mark.parametrize("reading", ["topk", "ghost"])
def test_ranks_beside_a_sparse_teacher_are_those_of_the_dense_one(reading: str) -> None:
    dense = tokens.compared(states(0), states(1), targets(), V, K)
    found = tokens.compared(states(0), sparse(reading), targets(), V, K)
    for name in ("agreement", "top_k_overlap", "top_1_in_top_k", "correct", "teacher_right", "cross_entropy"):
        assert torch.allclose(found[name], dense[name]), name
    torch.testing.assert_close(found["teacher_top"], dense["teacher_top"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reading", ["topk", "ghost", "counts"])
def test_what_a_sparse_teacher_does_not_tell_is_missing_and_said(reading: str) -> None:
    teacher = sparse(reading)
    found = tokens.compared(states(0), teacher, targets(), V, K)
    left_out, dense = tokens.left_out(teacher, K), tokens.compared(states(0), states(1), targets(), V, K)
    assert found.keys() | left_out.keys() == dense.keys() and not found.keys() & left_out.keys()
    assert all(left_out.values())
    assert ("reverse_kl" in found) == (reading == "ghost")


@pytest.mark.parametrize("reading", ["topk", "ghost"])
def test_what_is_called_bounded_is_never_above_the_dense_value(reading: str) -> None:
    teacher = sparse(reading)
    dense = tokens.compared(states(0), states(1), targets(), V, K)
    found = tokens.compared(states(0), teacher, targets(), V, K)
    bounded = [name for name, (kind, _) in tokens.classes(teacher).items() if kind == "bounded" and name in found]
    assert {"total_variation", "teacher_collision"} <= set(bounded)
    for name in bounded:
        assert (found[name] <= dense[name] + 1e-6).all(), name
        assert (found[name] < dense[name] - 1e-6).any(), name


def test_a_teacher_that_names_fewer_than_k_tokens_has_no_top_k() -> None:
    teacher = sparse("topk", k=3)
    assert "top_k_overlap" not in tokens.compared(states(0), teacher, targets(), V, K)
    assert "fewer than 5" in tokens.left_out(teacher, K)["top_k_overlap"]


def test_dense_signals_are_exact_and_whole() -> None:
    assert tokens.left_out(states(0), K) == {} == tokens.classes(states(0))
