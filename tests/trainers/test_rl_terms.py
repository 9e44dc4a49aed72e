"""What the terms of reinforcement learning leave alone: each other, and what stands behind the end of a completion."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Qwen2MoeConfig, TrainerCallback
from trl import GRPOTrainer

from llmkd.trainers.policy_terms import PolicyTerm, TeacherTerm

from rollouts import GRPO, VOCABULARY, lines, models, prompts, rl

NFT = PolicyTerm("policy", "nft")
END = 1  # of the tiny tokenizer
ENDS = [0, 1, 2, 3, 4, 5, 6, 0]
"""Where the completions of a step end: the first and the last are an end alone."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("models"))


def heard(estimator: str = "k2") -> TeacherTerm:
    return TeacherTerm("kd", "t", estimator=estimator, weight=0.1)


# -- a teacher and a reference model ----------------------------------------------------------------------------------


def first_step(
    folder: Path, terms: list[TeacherTerm], beta: float = 0.0, policy: PolicyTerm | None = GRPO
) -> tuple[Tensor, dict[str, Any]]:
    """The gradient of the first step's loss, and its line in the log.  The reference model is `near`."""
    trainer = rl(folder, policy, terms, train=False, beta=beta, max_steps=1)
    if beta:
        near = AutoModelForCausalLM.from_pretrained(folder / "near")
        trainer.ref_model.load_state_dict(near.state_dict())
    found: list[Tensor] = []
    step = trainer.training_step

    def noted(model: Any, *args: Any) -> Tensor:
        loss = step(model, *args)
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        return loss

    trainer.training_step = noted
    trainer.train()
    return found[0], lines(trainer)[0]


@pytest.mark.parametrize("estimator", ["k2", "exact"])
def test_a_teacher_and_a_reference_model_are_two_and_add_up(folder: Path, estimator: str) -> None:
    (g0, l0), (g_ref, l_ref), (g_kd, l_kd), (g, both) = (
        first_step(folder, terms, beta)
        for terms, beta in (([], 0.0), ([], 0.2), ([heard(estimator)], 0.0), ([heard(estimator)], 0.2))
    )
    assert both["loss"] - l0["loss"] == pytest.approx(l_ref["loss"] + l_kd["loss"] - 2 * l0["loss"], rel=1e-5)
    assert_close(g - g0, (g_ref - g0) + (g_kd - g0), rtol=1e-4, atol=1e-6)
    assert both["kl"] == pytest.approx(l_ref["kl"], rel=1e-5)
    assert both["kd/reverse_kl"] == pytest.approx(l_kd["kd/reverse_kl"], rel=1e-5)
    assert l_ref["loss"] - l0["loss"] == pytest.approx(0.2 * l_ref["kl"], rel=1e-4) != 0
    assert both["kl"] != pytest.approx(both["kd/reverse_kl"], rel=0.1), "reference and teacher are the same here"


POLICIES = [None, NFT, PolicyTerm("policy", weight=0.0), PolicyTerm("policy", weight=0.5)]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_penalty_towards_the_reference_is_the_same_whatever_the_policy(
    folder: Path, policy: PolicyTerm | None
) -> None:
    (alone, _), (beside, _) = (first_step(folder, [], beta) for beta in (0.0, 0.2))
    (without, l0), (with_it, l1) = (first_step(folder, [heard()], beta, policy) for beta in (0.0, 0.2))
    assert_close(with_it - without, beside - alone, rtol=1e-4, atol=1e-6)
    assert l1["loss"] - l0["loss"] == pytest.approx(0.2 * l1["kl"], rel=1e-4) != 0


@pytest.mark.parametrize("policy", [GRPO, *POLICIES])
def test_as_an_advantage_a_teacher_has_its_weight_whatever_the_policys_is(
    folder: Path, policy: PolicyTerm | None
) -> None:
    """At ratio 1 with the gradient of k2."""
    reward, loss = (first_step(folder, [heard(estimator)], policy=policy)[0] for estimator in ("k1_reward", "k2"))
    assert_close(reward, loss, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(loss, first_step(folder, [], policy=policy)[0], rtol=1e-2)


@pytest.mark.parametrize(("policy", "terms"), [(NFT, []), (None, [heard()]), (None, [heard("k1_reward")])])
def test_what_another_engine_drew_weighs_what_it_is_worth(
    folder: Path, policy: PolicyTerm | None, terms: list[TeacherTerm]
) -> None:
    """TRL's correction for the probabilities of vLLM; where it is a half, so are loss and gradient."""

    def gradient(ratio: float) -> Tensor:
        torch.manual_seed(0)
        trainer = rl(folder, policy, terms, train=False, max_steps=1)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        inputs = [{"prompt": row["prompt"], "domain_id": 0} for row in prompts().select(range(2)) for _ in range(4)]
        rollouts = trainer._generate_and_score_completions(inputs)
        if ratio != 1:
            trainer.use_vllm = trainer.vllm_importance_sampling_correction = True  # of the loss alone
            rollouts["importance_sampling_ratio"] = ratio * rollouts["completion_mask"].float()
        loss = trainer._compute_loss(trainer.model, rollouts)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(trainer.model.parameters()))])

    whole = gradient(1.0)
    assert_close(gradient(0.5), whole / 2, rtol=1e-4, atol=1e-8)
    assert float(whole.norm()) > 1e-4


def test_a_routers_loss_is_the_same_whatever_the_policy(tmp_path: Path) -> None:
    folder = models(tmp_path)
    config = Qwen2MoeConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        shared_expert_intermediate_size=16, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
        num_experts_per_tok=2, router_aux_loss_coef=0.5, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "student")
    found = [first_step(folder, [heard()], policy=policy)[1]["aux_loss"] for policy in [GRPO, *POLICIES]]
    assert found == pytest.approx([found[0]] * len(found)) and found[0] > 0.1


def test_a_training_that_is_over_takes_no_step_more(folder: Path) -> None:
    """Resumed from the checkpoint of an early stop, whose patience says so before the first step."""

    class Over(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = True

    trainer = rl(folder, GRPO, train=False)
    trainer.add_callback(Over())
    trainer.train()
    assert trainer.state.global_step == 0


# -- behind the end ---------------------------------------------------------------------------------------------------


def ended(trainer: Any) -> None:
    """Completions that end where ENDS says, whatever was drawn."""
    generate = trainer.model.generate

    def written(input_ids: Tensor, **rest: Any) -> Tensor:
        out = generate(input_ids=input_ids, **rest)
        for row, end in zip(out[:, input_ids.shape[1] :], ENDS, strict=True):
            row[:] = row.clamp(min=7)  # no end of its own
            row[end] = END
        return out

    trainer.model.generate = written


@pytest.mark.parametrize(
    ("policy", "estimator"),
    [(GRPO, "k1_reward"), (GRPO, "k2"), (None, "k3"), (GRPO, "exact"), (None, "topk"), (NFT, "k2")],
    ids=lambda value: getattr(value, "kind", value) or "no policy",
)  # fmt: skip
def test_what_is_behind_an_end_has_no_part_in_anything(
    folder: Path, monkeypatch: pytest.MonkeyPatch, policy: PolicyTerm | None, estimator: str
) -> None:
    """Other tokens in the place of the padding: the same loss, gradient and numbers in the log."""
    found, behind = [], 0
    generate = GRPOTrainer._generate_and_score_completions
    for filled in (False, True):

        def scored(self: Any, inputs: Any, filled: bool = filled) -> Any:
            nonlocal behind
            out = generate(self, inputs)
            if filled:
                padding = out["completion_mask"] == 0
                behind += int(padding.sum())
                out["completion_ids"] = out["completion_ids"].masked_fill(padding, 77)
            return out

        monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", scored)
        trainer = rl(folder, policy, [heard(estimator)], train=False, max_steps=1)
        ended(trainer)
        trainer.train()
        found.append({k: v for k, v in lines(trainer)[0].items() if "time" not in k})
    assert behind == sum(max(ENDS) - end for end in ENDS)
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-7)
    assert found[0]["grad_norm"] > 1e-3 and found[0].get("kd/reverse_kl", found[0].get("kd/loss", 0)) > 0.1
    assert found[0]["completions/min_length"] == 1 and found[0]["tokens"] == sum(ENDS) + len(ENDS)
