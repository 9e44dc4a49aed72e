"""Completions that the student and a teacher write together: each token is drawn from a mixture of the two.

transformers' ``generate`` of the student goes on as ever, with a logits processor that asks the teacher, one token at a
time and with a key/value cache of its own, and hands back ``log(a p + (1 - a) q)``.  Gu et al., MiniLLM, 2023 (arXiv
2306.08543): a student that is drawn towards the teacher cannot fall into what only its own reward is high for.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from llmkd.backbone import causal_lm
from llmkd.trl_compat import whole_for_generation

NEEDED = ("attention_mask", "past_key_values", "use_cache")
LogMixture = Callable[[Tensor, Tensor], Tensor]
"""``(logp, logq) -> log of the mixture``."""


class Writer(Protocol):
    """A teacher in this process.  wrapped: what the model is gathered through, if it is sharded; inside ``itself()``
    the model is the teacher."""

    model: nn.Module
    wrapped: nn.Module | None

    def itself(self) -> AbstractContextManager[None]: ...


class TeacherMixed(LogitsProcessor):
    """The student's scores of the next tokens ``[B, rows]`` -> the log of the mixture over the first ``vocabulary``
    rows, which both models have; -inf beyond.

    attention_mask ``[B, T]``: of the prompts, which are padded on the left.  To be called with all that was written so
    far, as ``generate`` does: the prompts first, then a token more each time.
    """

    def __init__(self, teacher: Writer, attention_mask: Tensor, vocabulary: int, mixture: LogMixture) -> None:
        self.teacher, self.vocabulary, self.mixture = teacher, vocabulary, mixture
        self.mask = attention_mask
        self.cache: Any = None
        self.read = 0  # tokens that are in the cache
        self.known = inspect.signature(type(causal_lm(teacher.model)).forward).parameters

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logp = self._teacher(input_ids).to(scores.dtype).log_softmax(-1)
        out = torch.full_like(scores, -math.inf)
        out[:, : self.vocabulary] = self.mixture(logp, scores[:, : self.vocabulary].log_softmax(-1))
        return out

    def _teacher(self, input_ids: Tensor) -> Tensor:
        """Its logits ``[B, V]`` for the token that follows."""
        more = input_ids.shape[1] - self.mask.shape[1]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(input_ids), more)], dim=1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        given = {"position_ids": positions[:, self.read :], "logits_to_keep": 1}
        with self.teacher.itself():
            said = self.teacher.model(
                input_ids=input_ids[:, self.read :], attention_mask=self.mask, past_key_values=self.cache,
                use_cache=True, **{key: value for key, value in given.items() if key in self.known},
            )  # fmt: skip
        self.cache, self.read = said.past_key_values, input_ids.shape[1]
        logits: Tensor = said.logits[:, -1, : self.vocabulary].float()
        return logits


def check_can_mix(model: nn.Module, where: str) -> None:
    """ValueError for a family that cannot go on from a key/value cache."""
    lm = type(causal_lm(model))
    missing = [name for name in NEEDED if name not in inspect.signature(lm.forward).parameters]
    if missing:
        raise ValueError(
            f"train.teacher_mixture: {where}: {lm.__name__} takes no {missing[0]}, and is asked one token at a time: "
            "leave teacher_mixture out, or take another teacher"
        )


@contextmanager
def mixed_with(
    teacher: Writer, student: nn.Module, vocabulary: int, mixture: LogMixture, accelerator: Any
) -> Iterator[None]:
    """Inside, ``student.generate`` draws from the mixture; the teacher's parameters are gathered.  All processes must
    call this."""
    own = student.__dict__.get("generate")
    generate = student.generate

    def writing(input_ids: Tensor, attention_mask: Tensor, **rest: Any) -> Any:
        processor = TeacherMixed(teacher, attention_mask, vocabulary, mixture)
        return generate(  # type: ignore[operator]
            input_ids=input_ids, attention_mask=attention_mask, logits_processor=LogitsProcessorList([processor]),
            **rest,
        )  # fmt: skip

    whole = nullcontext() if teacher.wrapped is None else whole_for_generation(teacher.wrapped, accelerator)
    student.generate = writing  # type: ignore[assignment]
    try:
        with whole:
            yield
    finally:
        if own is None:
            student.__dict__.pop("generate", None)
        else:
            student.generate = own
