"""The terms of reinforcement learning: the policy's own, and those by which a teacher is heard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from llmkd.types import Signals

Weight = float | Callable[[int], float]
SampleMask = Literal["correct", "incorrect", "group_all_wrong"]
Estimator = Literal["k1_reward", "k2", "k3", "exact", "topk"]
SAMPLED: tuple[Estimator, ...] = ("k2", "k3")
"""Made of the log-probabilities of sampled tokens, as a loss."""
WHOLE: tuple[Estimator, ...] = ("exact", "topk")
"""Made by the engine, from the student's whole distribution."""


def at(weight: Weight, step: int) -> float:
    return weight(step) if callable(weight) else weight


@dataclass(frozen=True)
class PolicyTerm:
    """kind: ``grpo``, TRL's own loss, or ``nft``; mask: on which samples it acts, of ``grpo`` by their advantages."""

    name: str
    kind: Literal["grpo", "nft"] = "grpo"
    weight: Weight = 1.0
    mask: SampleMask | None = None


@dataclass(frozen=True)
class TeacherTerm:
    """estimator: how the divergence ``kind`` is made; normalize: ``all``, or ``kept``: as if there were only the tokens
    that the mask keeps; k: tokens of ``topk``."""

    name: str
    teacher: str
    kind: str = "reverse_kl"
    estimator: Estimator = "k2"
    weight: Weight = 1.0
    mask: SampleMask | None = None
    normalize: Literal["all", "kept"] = "all"
    k: int = 64


@dataclass(frozen=True)
class Formulas:
    """The mathematics of these terms, as functions of tensors: ``llmkd.objectives`` has them.

    estimators: ``k2``, ``k3``, each ``(logp, logq) -> value``; advantage: ``log p - log q``; sampled: ``(signals,
    targets, vocabulary, tau) -> logp [N]``; likeliest: ``(signals, k, vocabulary) -> (ids [N, k], logp [N, k])``;
    negative_aware: ``(logq, old, correct, pass_rate) -> value``.
    """

    estimators: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
    advantage: Callable[[Tensor, Tensor], Tensor]
    sampled: Callable[[Signals, Tensor, int, float], Tensor]
    likeliest: Callable[[Signals, int, int], tuple[Tensor, Tensor]]
    negative_aware: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def advantages_of(
    policy: PolicyTerm | None, heard: Sequence[TeacherTerm], rollouts: Mapping[str, Tensor], step: int
) -> Tensor | None:
    """Those of the rewards times GRPO's weight, and those of the teachers (``shaped@TERM``) times theirs; None where
    there are none.

    TRL's surrogate grows in proportion to them, so the weight of a policy is theirs: ``beta`` and the entropy bonus,
    which TRL adds to it, do not change with it.
    """
    share = at(policy.weight, step) if policy is not None and policy.kind == "grpo" else 0.0
    found = share * rollouts["advantages"] if share != 0 else None
    for term in heard:
        if term.estimator == "k1_reward":
            shaped = at(term.weight, step) * rollouts[f"shaped@{term.name}"]
            found = shaped if found is None else found.unsqueeze(1) + shaped if found.dim() == 1 else found + shaped
    return found
