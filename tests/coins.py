"""Batches and models of two tokens, whose losses are arithmetic by hand.

The vocabulary is {0, 1} and the head the identity, so that a hidden state is a pair of logits. Every student state is
(0, ln 3): q = (1/4, 3/4), and cross-entropy is HIT = ln 4/3 where the target is 1, MISS = ln 4 where it is 0. The
teacher's states are (0, 0): p = (1/2, 1/2).
"""

import math

import pytest
import torch

from llmkd.objectives.objective import Objective, Term
from llmkd.types import Head, States

HIT, MISS = math.log(4 / 3), math.log(4)
FORWARD = 0.5 * math.log(4 / 3)  # 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4)
REVERSE = 0.75 * math.log(3) - math.log(2)  # 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2)
IDENTITY = Head(torch.eye(2, dtype=torch.float64))
CE = Term("ce", "cross_entropy")


def batch(ids, counted, **columns):
    found = {"input_ids": torch.tensor(ids), "counted": torch.tensor(counted).bool()}
    found["domain_ids"] = torch.zeros_like(found["input_ids"])
    return found | {name.replace("__", "@"): torch.tensor(value) for name, value in columns.items()}


def two_rows(**columns):
    """Row 0, of domain 0, counts the targets 1, 1, 0; row 1, of domain 1, counts 1, 0, and ends in padding."""
    ids, counted = [[0, 1, 1, 0], [1, 1, 0, 0]], [[0, 1, 1, 1], [0, 1, 1, 0]]
    return batch(ids, counted, **{"domain_ids": [[0] * 4, [1] * 4]} | columns)


def students(data):
    state = torch.tensor([0.0, math.log(3)], dtype=torch.float64)
    return state.repeat(int(data["counted"].sum()), 1).requires_grad_()


def teacher(data):
    return States(torch.zeros(int(data["counted"].sum()), 2, dtype=torch.float64), IDENTITY)


def objective(*terms, domains=("a", "b"), **settings):
    return Objective(terms, domains, vocabulary=2, **settings)


def run(loss_of, data, counts=None):
    counts = loss_of.counts(data) if counts is None else counts
    signals = {name: teacher(data) for name in loss_of.teacher_names}
    return loss_of(students(data), IDENTITY, signals, data, counts)


def value(loss_of, data):
    return float(run(loss_of, data)[0].detach())


# The weight of a token, mask / count, is a float32: sums are good to 1e-7.
def near(expected):
    return pytest.approx(expected, rel=1e-6)
