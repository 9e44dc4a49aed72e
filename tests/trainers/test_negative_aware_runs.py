"""Negative-aware fine-tuning through recipe and trainer: over all ways in which four answers can be right or wrong, the
gradient is minus the advantage that the recipe names."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import built, make_inputs, write_rows

GROUP, PROMPTS = 4, 2
PATTERNS = list(itertools.product([0.0, 1.0], repeat=GROUP))
ADVANTAGES: dict[str, Callable[[float, float], float]] = {
    "normalised": lambda c, r: (c - r) / math.sqrt(r * (1 - r)),
    "plain": lambda c, r: c - r,
    "unweighted": lambda c, r: (c - r) / (1 - r),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    write_rows(folder / "sums.jsonl", [{"prompt": f"{a} + {b} ="} for a in range(5) for b in range(5)])
    (folder / "own.py").write_text("def right(prompt, completion, reference):\n    return 1.0\n")
    return folder


def recipe(inputs: Path, output: Path, term: dict[str, Any], steps: int) -> dict[str, Any]:
    return {
        "run": {"output_dir": str(output), "seed": 3},
        "student": {"model_name_or_path": str(inputs / "student")},
        "data": {"datasets": [{"path": str(inputs / "sums.jsonl")}]},
        "objective": {"terms": {"policy": term}},
        "rewards": [{"path": f"{inputs / 'own.py'}:right", "column": None, "correct": True}],
        "train": {
            "method": "rl", "use_cpu": True, "max_steps": steps, "per_device_train_batch_size": GROUP * PROMPTS,
            "num_generations": GROUP, "max_completion_length": 6, "learning_rate": 1e-9, "logging_steps": 1,
            "disable_tqdm": True,
        },
    }  # fmt: skip


class Graded:
    """A reward that goes through patterns of right and wrong, and remembers which completion was given what."""

    def __init__(self, patterns: list[tuple[float, ...]]) -> None:
        self.left: Iterator[tuple[float, ...]] = iter(patterns)
        self.known: dict[tuple[int, ...], tuple[float, float]] = {}
        self.__name__ = "right"

    def __call__(self, completions: list[Any], **given: Any) -> list[float]:
        drawn = [next(self.left) for _ in range(len(completions) // GROUP)]
        for ids, (i, c) in zip(given["completion_ids"], enumerate(itertools.chain(*drawn)), strict=True):
            self.known[tuple(ids)] = (c, sum(drawn[i // GROUP]) / GROUP)
        return list(itertools.chain(*drawn))


def gradients(trainer: Any) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Of the loss of each step to the log-probabilities of its tokens, and the step's rows."""
    seen: list[Any] = []
    compute, logps = trainer._compute_loss, trainer._get_per_token_logps_and_entropies
    of_step: list[torch.Tensor] = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        found = logps(*args, **kwargs)
        of_step[:] = [found[0]]
        return found

    def computed(model: Any, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = compute(model, rows)
        seen.append((torch.autograd.grad(loss, of_step[0], retain_graph=True)[0], rows))
        return loss

    trainer._get_per_token_logps_and_entropies, trainer._compute_loss = noted, computed
    trainer.train()
    return seen


@pytest.mark.parametrize(
    ("form", "negative", "mask"),
    [("normalised", 1.0, None), ("plain", 1.0, None), ("unweighted", 0.5, None), ("normalised", 0.0, None),
     ("normalised", 1.0, "correct"), ("plain", 1.0, "incorrect")],
)  # fmt: skip
def test_the_gradient_is_minus_the_advantage_that_the_recipe_names(
    inputs: Path, tmp_path: Path, form: str, negative: float, mask: str | None
) -> None:
    term = {"term": "nft", "advantage": form, "negative_weight": negative, "mask": mask}
    trainer = built(recipe(inputs, tmp_path / "run", term, len(PATTERNS) // PROMPTS)).trainer
    trainer.reward_funcs = [graded := Graded(PATTERNS)]
    rows = 0
    for gradient, batch in gradients(trainer):
        tokens = batch["completion_mask"].bool()
        for ids, counted, found in zip(batch["completion_ids"], tokens, gradient, strict=True):
            right, rate = graded.known[tuple(ids[counted].tolist())]
            advantage = ADVANTAGES[form](right, rate) if 0 < rate < 1 else 0.0
            share = (1.0 if right else negative) * (mask in (None, "correct" if right else "incorrect"))
            expected = -advantage * share / tokens.sum() * counted
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
            rows += 1
    assert rows == GROUP * len(PATTERNS)


def test_left_out_they_are_those_of_grpo(inputs: Path, tmp_path: Path) -> None:
    """With the deviation of the whole group, where TRL takes that of a sample: in each group as many times as large."""
    found = {}
    for term in ("nft", "grpo"):
        trainer = built(recipe(inputs, tmp_path / term, {"term": term}, len(PATTERNS) // PROMPTS)).trainer
        trainer.reward_funcs = [Graded(PATTERNS)]
        found[term] = torch.cat([gradient.sum(1) for gradient, _ in gradients(trainer)])
    trained = found["grpo"].abs() > 1e-6
    assert trained.sum() == GROUP * (len(PATTERNS) - 2)
    ratios = found["nft"][trained] / found["grpo"][trained]
    torch.testing.assert_close(ratios, torch.full_like(ratios, math.sqrt(GROUP / (GROUP - 1))), rtol=1e-3, atol=0)
    assert (found["nft"][~trained].abs() < 1e-8).all()


@pytest.mark.parametrize("term", ["nft", "grpo"])
def test_groups_without_contrast_are_counted_at_every_step(inputs: Path, tmp_path: Path, term: str) -> None:
    patterns = [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 1, 1), (0, 0, 0, 0), (1, 1, 0, 1), (0, 1, 0, 1)]
    trainer = built(recipe(inputs, tmp_path / "run", {"term": term}, len(patterns) // PROMPTS)).trainer
    trainer.reward_funcs = [Graded([tuple(map(float, pattern)) for pattern in patterns])]
    trainer.train()
    logged = [line["policy/without_contrast"] for line in trainer.state.log_history if "loss" in line]
    assert logged == [0.5, 1.0, 0.0]
