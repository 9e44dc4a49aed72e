"""A recipe of MiniLLM, and what its sampler and columns must be: from plain forward passes, one row at a time."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runs import put

END = 1  # of the tiny tokenizer
VOCABULARY = 384
TOKEN = {"term": "reverse_kl", "token_weight": {"by": "importance"}}
FUTURE = {"term": "future_reverse_kl", "token_weight": {"by": "importance"}}


def recipe(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """MiniLLM on chats, eight completions a step; changes: dotted keys, with __ for the dots."""
    data = {
        "run": {"output_dir": str(output), "seed": 3, "resume": "auto"},
        "student": {"model_name_or_path": str(inputs / "student")},
        "teachers": [{"model_name_or_path": str(inputs / "teacher")}],
        "data": {"datasets": [{"path": str(inputs / "chats.jsonl"), "domain": "chats"}]},
        "objective": {"terms": {"token": TOKEN, "future": FUTURE}},
        "train": {
            "method": "onpolicy", "use_cpu": True, "max_steps": 3, "per_device_train_batch_size": 8,
            "max_completion_length": 6, "learning_rate": 1e-3, "logging_steps": 1, "disable_tqdm": True,
            "teacher_mixture": 0.3,
        },
        "eval": {},
    }  # fmt: skip
    data = copy.deepcopy(data)
    for key, value in changes.items():
        put(data, key.replace("__", "."), value)
    return data


@torch.no_grad()
def mixed(student: Any, teacher: Any, ids: Tensor, share: float) -> Tensor:
    """The distribution of the next token after a row without padding, over the tokens that both have."""
    q, p = (m(input_ids=ids[None]).logits[0, -1, :VOCABULARY].double().softmax(-1) for m in (student, teacher))
    return share * p + (1 - share) * q


def check_drawn(seen: list[tuple[Tensor, Tensor]], student: Any, teacher: Any, share: float) -> int:
    """Against plain forward passes, one row at a time; how many rows were looked at."""
    looked, width = 0, seen[0][0].shape[1]
    widths = [int((row != 0).nonzero()[0]) for row in seen[0][0]]
    assert len(set(widths)) > 2, "the prompts are of one length"
    for ids, out in seen:
        for row, scores, padding in zip(ids, out, widths, strict=True):
            if END in row[width:]:  # it has ended
                continue
            wanted = mixed(student, teacher, row[padding:], share)
            found = scores.double().softmax(-1)
            torch.testing.assert_close(found[:VOCABULARY], wanted, rtol=0, atol=1e-6)
            assert float(found[VOCABULARY:].sum()) == 0
            looked += 1
    return looked


@torch.no_grad()
def by_hand(student: Any, teacher: Any, batch: dict[str, Tensor], share: float, mean: bool, deaf: bool) -> list[dict]:
    """Of each row its tokens' w, A, divergence and log q, in float64 and token by token; deaf: the teacher has nothing
    to say of END."""
    found = []
    for ids, counted in zip(batch["input_ids"], batch["counted"], strict=True):
        at = counted.nonzero()[:, 0].tolist()
        logq, logp = (m(input_ids=ids[None, : at[-1] + 1]).logits[0, :, :VOCABULARY].double().log_softmax(-1)
                      for m in (student, teacher))  # fmt: skip
        heard = [t for t in at if not (deaf and int(ids[t]) == END)]
        reward = {t: float(logp[t - 1, ids[t]] - logq[t - 1, ids[t]]) for t in heard}
        for t in at:
            q, p = float(logq[t - 1, ids[t]].exp()), float(logp[t - 1, ids[t]].exp())
            later = [reward[s] for s in heard if s > t] if t in heard else []
            found.append({
                "w": q / (share * p + (1 - share) * q), "A": sum(later) / (max(1, len(later)) if mean else 1),
                "logq": float(logq[t - 1, ids[t]]), "heard": t in heard,
                "kl": float((logq[t - 1].exp() * (logq[t - 1] - logp[t - 1])).sum()),
            })  # fmt: skip
    return found
