"""From logits to what the terms look at: log-probabilities, probabilities, entropy and the likeliest token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vecdot

from llmkd.objectives.divergences import expect


@dataclass(frozen=True)
class Softmax:
    """logits, prob ``[n, V]``; normalizer ``[n]``: log-sum-exp of the logits.

    Log-probabilities are written down only where a form needs them: most take the difference of two models' logits.
    """

    logits: Tensor
    prob: Tensor
    normalizer: Tensor

    @property
    def log(self) -> Tensor:
        return self.logits - self.normalizer.unsqueeze(-1)

    def log_of(self, ids: Tensor) -> Tensor:
        """Log-probabilities ``[n, k]`` of ``ids [n, k]``."""
        return self.logits.gather(-1, ids) - self.normalizer.unsqueeze(-1)


@dataclass(frozen=True)
class Distribution(Softmax):
    """top ``[n]`` the likeliest token; entropy ``[n]`` in nats."""

    top: Tensor
    entropy: Tensor

    @property
    def top_probability(self) -> Tensor:
        return self.prob.gather(-1, self.top.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class View:
    """Logits as the terms beside a teacher see them: over their temperature, standardised before if that is asked for.

    logits: those, or the raw ones where nothing is done to them; standard: mean and standard deviation ``[n, 1]`` of
    the raw logits, or None.
    """

    logits: Tensor
    dist: Distribution
    standard: tuple[Tensor, Tensor] | None

    def chain(self, dx: Tensor, z: Tensor) -> Tensor:
        """Gradient to the raw logits ``z``, given ``dx``: that to the standardised ones (over tau already).

        ``x = (z - mean) / std``, so ``dz = (dx - mean(dx) - x mean(dx x)) / std``.
        """
        assert self.standard is not None
        mean, deviation = self.standard
        x = (z - mean) / deviation
        return (dx - dx.mean(-1, keepdim=True) - x * (dx * x).mean(-1, keepdim=True)) / deviation


def distribution(z: Tensor, careful: bool = True) -> Distribution:
    """The softmax of logits ``[n, V]``, with one exponential a logit.

    The entropy counts an impossible token as nothing; unless ``careful``, such a token makes it NaN, in a third of the
    time.
    """
    top = argmax(z)
    at = top.unsqueeze(-1)
    prob = z.softmax(-1)
    normalizer = (z.gather(-1, at) - prob.gather(-1, at).log()).squeeze(-1)
    entropy = normalizer - (expect(prob, z) if careful else vecdot(prob, z))
    return Distribution(z, prob, normalizer, top, entropy)


def argmax(z: Tensor) -> Tensor:
    """Index of the largest entry of each row.  NumPy's is ten times as fast as torch's on a CPU."""
    if z.device.type == "cpu":
        return torch.from_numpy(z.numpy().argmax(-1))
    return z.argmax(-1)


def view_of(z: Tensor, raw: Distribution, tau: Tensor | None, standardize: bool, careful: bool = True) -> View:
    """``raw`` itself where the temperature is 1 and nothing is standardised."""
    if tau is None and not standardize:
        return View(z, raw, None)
    x, standard = z, None
    if standardize:
        mean = z.mean(-1, keepdim=True)
        deviation = (z - mean).square().mean(-1, keepdim=True).sqrt()
        standard = (mean, deviation)
        x = (z - mean) / deviation
    if tau is not None:
        x = x / tau.unsqueeze(-1)
    return View(x, distribution(x, careful), standard)
