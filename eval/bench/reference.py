"""The truth that implementations are held against, in float64: formulas of probabilities, autograd, nothing shared with
what is measured.  ``python reference.py CASE FILE`` writes it for one case."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from inputs import Case, Inputs, make_inputs

CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**30}
"""Float64 logits of one model that exist at once."""


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a / b).log()).sum(-1)


def jsd(p: Tensor, q: Tensor) -> Tensor:
    m = 0.5 * p + 0.5 * q
    return 0.5 * kl(p, m) + 0.5 * kl(q, m)


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": lambda p, q: kl(p, q),
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": jsd,
    "skew_forward_kl": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    "skew_reverse_kl": lambda p, q: kl(q, 0.9 * p + 0.1 * q),
}


def reference(inputs: Inputs, divergence: str) -> dict[str, Tensor]:
    """loss (the mean over tokens) and its gradients to ``hidden`` and ``head``."""
    hidden, head, taught, taught_head = _float64(inputs)
    tokens, vocabulary = hidden.shape[0], head.shape[0]
    size = max(1, CHUNK_BYTES[hidden.device.type] // (8 * vocabulary))
    loss, grad_hidden, grad_head = hidden.new_zeros(()), torch.zeros_like(hidden), torch.zeros_like(head)
    for at in range(0, tokens, size):
        rows = slice(at, at + size)
        z = (hidden[rows] @ head.t()).requires_grad_()
        p = (taught[rows] @ taught_head.t()).softmax(-1)
        part = FORMULAS[divergence](p, z.softmax(-1)).sum() / tokens
        (dz,) = torch.autograd.grad(part, z)
        loss += part.detach()
        grad_hidden[rows] = dz @ head
        grad_head.addmm_(dz.t(), hidden[rows])
    return {"loss": loss, "hidden": grad_hidden, "head": grad_head}


def products(inputs: Inputs, group: int | None) -> dict[str, Tensor]:
    """What ``gemm4`` must find, with the products in another order.

    group: how many tokens' logits stand for the gradients of all others; None: each token's for its own.
    """
    hidden, head, taught, taught_head = _float64(inputs)
    source = torch.arange(hidden.shape[0], device=hidden.device)
    stand_in = hidden[source if group is None else source % group]
    return {
        "loss": taught[-1] @ taught_head[0],
        "hidden": stand_in @ (head.t() @ head),
        "head": head @ (stand_in.t() @ hidden),
    }


def _float64(inputs: Inputs) -> list[Tensor]:
    named = [inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head]
    return [x.detach().double() for x in named]


def relative_errors(found: tuple[Tensor, Tensor, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Of loss and gradients: the norm of the difference over the norm of the truth."""
    errors = {}
    for (name, truth), value in zip(expected.items(), found, strict=True):
        difference = torch.linalg.vector_norm(value.double() - truth)
        errors[name] = float(difference / torch.linalg.vector_norm(truth))
    return errors


def refusal(errors: dict[str, float], tolerance: float) -> str | None:
    """Why an implementation is not timed; None if it may be."""
    wrong = [f"{name} {error:.2g}" for name, error in errors.items() if not error <= tolerance]
    return f"relative error above {tolerance:g}: {', '.join(wrong)}" if wrong else None


def main() -> None:
    case, path = Case.from_json(json.loads(sys.argv[1])), Path(sys.argv[2])
    torch.save({name: x.cpu() for name, x in reference(make_inputs(case), case.divergence).items()}, path)


if __name__ == "__main__":
    main()
