"""Muon and AdamW as one optimizer against the two of torch run apart, on the same gradients, bit by bit."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from llmkd.trainers.optimizers import MuonAdamW, check_whole_parameters, muon_adamw

from rollouts import GRPO, models, rl

ARGS = SimpleNamespace(
    learning_rate=3e-3, muon_learning_rate=2e-2, weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.97, adam_epsilon=1e-7
)
ADAMW = {"lr": 3e-3, "betas": (0.8, 0.97), "eps": 1e-7}


def llama(tie=False, **settings):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, tie_word_embeddings=tie, **settings,
        )
    )  # fmt: skip


def names(model, group):
    by_id = {id(p): name for name, p in model.named_parameters()}
    return {by_id[id(p)] for p in group["params"]}


def warmup(optimizer):
    return LambdaLR(optimizer, lambda step: (step + 1) / 4)


def steps(model, pairs, first, last):
    """Steps ``first`` to ``last``, each with its own gradients, a schedule after every optimizer."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        for optimizer, schedule in pairs:
            optimizer.step()
            schedule.step()


def together(model):
    optimizer = muon_adamw(model, ARGS)
    return optimizer, warmup(optimizer)


def assert_same_parameters(one, other):
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("tie", [False, True])
def test_five_steps_are_those_of_muon_and_adamw_apart(tie):
    ours, apart, start = llama(tie), llama(tie), llama(tie)
    is_table = {name: "embed_tokens" in name or "lm_head" in name for name, _ in apart.named_parameters()}
    named = dict(apart.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and not is_table[name]]
    tables = [p for name, p in named.items() if is_table[name]]
    vectors = [p for p in named.values() if p.ndim == 1]
    muon = Muon(matrices, lr=2e-2, weight_decay=0.1)
    adamw = AdamW([{"params": tables, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], **ADAMW)
    steps(ours, [together(ours)], 0, 5)
    steps(apart, [(muon, warmup(muon)), (adamw, warmup(adamw))], 0, 5)
    assert_same_parameters(ours, apart)
    assert not any(torch.equal(p, q) for p, q in zip(ours.parameters(), start.parameters(), strict=True))


def test_a_schedule_scales_the_rates_of_both():
    optimizer, schedule = together(llama())
    assert [g["lr"] for g in optimizer.param_groups] == [2e-2 / 4, 3e-3 / 4, 3e-3 / 4]
    optimizer.step()
    schedule.step()
    assert [g["lr"] for g in optimizer.muon.param_groups + optimizer.adamw.param_groups] == [1e-2, 1.5e-3, 1.5e-3]


def test_going_on_from_a_saved_state_is_bitwise_the_run_that_never_stopped():
    whole, stopped = llama(), llama()
    steps(whole, [together(whole)], 0, 6)
    optimizer, schedule = together(stopped)
    steps(stopped, [(optimizer, schedule)], 0, 3)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), schedule.state_dict(), stopped.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = llama()
    optimizer, schedule = together(resumed)
    for part, state in zip((optimizer, schedule, resumed), saved, strict=True):
        part.load_state_dict(state)
    steps(resumed, [(optimizer, schedule)], 3, 6)
    assert_same_parameters(resumed, whole)


def test_the_state_holds_both_optimizers_for_every_parameter():
    model = llama()
    optimizer, schedule = together(model)
    steps(model, [(optimizer, schedule)], 0, 1)
    state = optimizer.state_dict()["state"]
    kinds = sorted({tuple(sorted(s)) for s in state.values()})
    assert len(state) == len(list(model.parameters()))
    assert kinds == [("exp_avg", "exp_avg_sq", "step"), ("momentum_buffer",)]


@pytest.mark.parametrize("tie", [False, True])
def test_hidden_matrices_go_to_muon_and_the_rest_to_adamw(tie):
    model = llama(tie)
    matrices, tables, vectors = muon_adamw(model, ARGS).param_groups
    layer = "model.layers.0."
    projections = {f"{layer}self_attn.{x}_proj.weight" for x in "qkvo"}
    assert names(model, matrices) == projections | {f"{layer}mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
    assert names(model, tables) == {"model.embed_tokens.weight"} | (set() if tie else {"lm_head.weight"})
    norms = {f"{layer}{x}_layernorm.weight" for x in ("input", "post_attention")}
    assert names(model, vectors) == norms | {"model.norm.weight"}
    assert (matrices["weight_decay"], tables["weight_decay"], vectors["weight_decay"]) == (0.1, 0.1, 0.0)
    assert (matrices["lr"], tables["lr"], vectors["lr"]) == (2e-2, 3e-3, 3e-3)


def test_an_embedding_of_positions_is_no_hidden_matrix():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=32, n_layer=1, n_head=1, n_positions=16))
    _, tables, _ = muon_adamw(model, ARGS).param_groups
    assert names(model, tables) == {"transformer.wte.weight", "transformer.wpe.weight"}


def test_a_stack_of_matrices_goes_to_adamw_with_weight_decay():
    model = llama()
    model.experts = nn.Parameter(torch.zeros(3, 4, 5))
    _, tables, _ = muon_adamw(model, ARGS).param_groups
    assert "experts" in names(model, tables)


def test_every_trainable_parameter_is_in_one_group_and_no_frozen_one_in_any():
    model = llama()
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].mlp.requires_grad_(False)
    held = [id(p) for group in muon_adamw(model, ARGS).param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_student_without_a_trainable_hidden_matrix_is_refused():
    model = llama().requires_grad_(False)
    model.lm_head.requires_grad_(True)
    with pytest.raises(ValueError, match=r"train.muon_learning_rate: the student has no trainable hidden matrix"):
        muon_adamw(model, ARGS)


@pytest.mark.parametrize("sharding", ["deepspeed_plugin", "fsdp_plugin"])
def test_sharded_parameters_are_refused(sharding):
    state = SimpleNamespace(**{"deepspeed_plugin": None, "fsdp_plugin": None, sharding: object()})
    with pytest.raises(ValueError, match="Muon needs whole matrices"):
        check_whole_parameters(SimpleNamespace(state=state))


def test_plain_data_parallelism_is_allowed():
    check_whole_parameters(SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=None, fsdp_plugin=None)))


def test_trainers_on_own_samples_take_muon_where_it_is_asked_for(tmp_path: Path) -> None:
    models(tmp_path)
    asked = rl(tmp_path, GRPO, train=False, muon_learning_rate=1e-3).create_optimizer()
    assert isinstance(asked, MuonAdamW) and asked.muon.param_groups[0]["lr"] == 1e-3
    assert not isinstance(rl(tmp_path, GRPO, train=False).create_optimizer(), MuonAdamW)
