"""Hidden states, heads and the way in, on tiny models of seven families; what a family may not do is forced on one."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llmkd.backbone import causal_lm, check_family, head_module, head_of, head_rows, hidden_states, through

V = 131
LLAMA_LIKE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE | {"final_logit_softcapping": 1.5},
    "cohere": LLAMA_LIKE | {"logit_scale": 0.0625},
    "granite": LLAMA_LIKE | {"logits_scaling": 4.0},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64},
}


def tiny(family="llama", dtype=torch.float32, spread=0.3, **settings):
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = AutoConfig.for_model(family, vocab_size=V, initializer_range=spread, **FAMILIES[family], **ids | settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def lora(model, **settings):
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, **settings))


def rows_of(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(2, V, (length,), generator=generator) for length in lengths]


def alone(model, rows):
    """The states that predict each row's tokens, row by row, from the model's own hidden states."""
    with torch.no_grad():
        outs = [model(row[None], use_cache=False, output_hidden_states=True).hidden_states[-1][0] for row in rows]
    return torch.cat([out[:-1] for out in outs])


# -- through ----------------------------------------------------------------------------------------------------------


class Inner(nn.Module):
    def forward(self, x):
        return x + 1


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, noise=True, **kwargs)


def logged(module, name, log):
    module.register_forward_pre_hook(lambda *_: log.append(f"into {name}"))
    module.register_forward_hook(lambda *_: log.append(f"out of {name}"))
    return module


def test_through_calls_the_function_between_the_hooks_of_wrapper_and_inner():
    log = []
    inner = logged(Inner(), "inner", log)
    wrapper = logged(Wrapper(inner), "wrapper", log)
    found = through(wrapper, inner, lambda a, b: log.append("function") or a * b, 6, 7)
    assert found == 42
    assert log == ["into wrapper", "into inner", "function", "out of inner", "out of wrapper"]


def test_through_restores_the_forward_of_the_class():
    inner = Inner()
    through(Wrapper(inner), inner, lambda: None)
    assert "forward" not in vars(inner) and inner(1) == 2


def test_through_restores_a_forward_that_was_set_on_the_instance():
    inner = Inner()
    inner.forward = own = lambda x: x - 1
    through(Wrapper(inner), inner, lambda: None)
    assert vars(inner)["forward"] is own and inner(1) == 0


@pytest.mark.parametrize("own", [None, lambda x: x - 1])
def test_through_restores_forward_when_the_function_fails(own):
    inner = Inner()
    if own is not None:
        inner.forward = own

    def fail():
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        through(Wrapper(inner), inner, fail)
    assert vars(inner).get("forward") is own


def test_through_restores_forward_when_the_wrapper_fails_before_it_gets_there():
    inner = Inner()
    wrapper = Wrapper(inner)
    wrapper.forward = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        through(wrapper, inner, lambda: None)
    assert "forward" not in vars(inner)


def test_the_function_may_call_the_inner_model_itself():
    inner = Inner()
    assert through(Wrapper(inner), inner, lambda: inner(1)) == 2


def test_through_a_module_that_is_its_own_wrapper():
    inner = Inner()
    assert through(inner, inner, lambda x: x * 10, 4) == 40


# -- heads ------------------------------------------------------------------------------------------------------------


def test_what_a_family_does_after_the_product_is_read_from_its_config():
    gemma, cohere, granite = (head_of(tiny(family)) for family in ("gemma2", "cohere", "granite"))
    assert (gemma.softcap, gemma.scale) == (1.5, 1.0)
    assert (cohere.softcap, cohere.scale) == (None, 0.0625)
    assert (granite.softcap, granite.scale) == (None, 0.25)


def test_the_head_is_the_models_own_parameter_tied_or_not():
    tied, untied = tiny(tie_word_embeddings=True), tiny(tie_word_embeddings=False)
    assert head_of(tied).weight is tied.get_input_embeddings().weight
    assert head_of(untied).weight is untied.lm_head.weight
    assert head_rows(untied) == V


def test_a_backbone_without_a_head_is_refused():
    config = AutoConfig.for_model("llama", vocab_size=V, **LLAMA_LIKE)
    with pytest.raises(ValueError, match="LlamaModel has no output projection: give a causal language model"):
        head_module(AutoModel.from_config(config))


def test_an_adapter_on_the_head_is_refused():
    model = lora(tiny(tie_word_embeddings=False), target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match=r"target_modules: an adapter on the output projection is not supported"):
        head_module(model)


def test_a_head_that_is_trained_beside_adapters_is_the_trained_copy():
    model = lora(tiny(tie_word_embeddings=False), target_modules=["q_proj"], modules_to_save=["lm_head"])
    copy = dict(model.named_parameters())["base_model.model.lm_head.modules_to_save.default.weight"]
    assert head_of(model).weight is copy and copy.requires_grad


def test_a_peft_model_gives_its_states_with_the_adapters():
    model = lora(tiny(), target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    row = rows_of(9)[0]
    states = hidden_states(model, {"input_ids": row[None], "counted": torch.ones(1, 9).bool()})
    assert causal_lm(model) is model.get_base_model()
    torch.testing.assert_close(states, alone(model, [row]))
    with model.disable_adapter():
        assert not torch.allclose(states, alone(model, [row]))


# -- hidden states ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_stand_one_before_the_counted_tokens_in_row_major_order(family):
    model, rows = tiny(family), rows_of(6, 6)
    counted = torch.tensor([[0, 0, 1, 0, 1, 1], [0, 1, 0, 0, 0, 1]]).bool()
    every = alone(model, rows).reshape(2, 5, -1)
    expected = torch.stack([every[0, 1], every[0, 3], every[0, 4], every[1, 0], every[1, 4]])
    torch.testing.assert_close(
        hidden_states(model, {"input_ids": torch.stack(rows), "counted": counted}), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_have_the_states_of_each_row_alone(family):
    model, rows = tiny(family), rows_of(5, 9, 2)
    starts = torch.cat([torch.arange(len(row)) for row in rows])
    packed = {"input_ids": torch.cat(rows)[None], "position_ids": starts[None], "counted": (starts > 0)[None]}
    torch.testing.assert_close(hidden_states(model, packed), alone(model, rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_changes_nothing(family):
    model, rows = tiny(family), rows_of(5, 9, 2)
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    place = torch.arange(padded.shape[1])
    counted = torch.stack([(place > 0) & (place < len(row)) for row in rows])
    states = hidden_states(model, {"input_ids": padded, "counted": counted})
    torch.testing.assert_close(states, alone(model, rows), rtol=1e-4, atol=1e-4)


def test_a_view_reads_the_columns_of_a_teachers_own_rendering():
    model, (own, other) = tiny(), rows_of(6, 8)
    batch = {
        "input_ids": own[None],
        "counted": torch.ones(1, 6).bool(),
        "input_ids@t": other[None],
        "counted@t": torch.ones(1, 8).bool(),
        "position_ids@t": torch.arange(8)[None],
    }
    torch.testing.assert_close(hidden_states(model, batch, "@t"), alone(model, [other]))


# -- the check of a family --------------------------------------------------------------------------------------------


def without_positions(model):
    """Make the backbone ignore position_ids: packed rows then see each other."""
    backbone = model.get_decoder()
    own = backbone.forward
    backbone.forward = lambda *args, position_ids=None, **kwargs: own(*args, **kwargs)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_families_that_are_known_pass(family, dtype, spread):
    check_family(tiny(family, dtype, spread), packed=True, where="student")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_a_model_whose_packed_rows_see_each_other_is_refused(family, dtype, spread):
    model = without_positions(tiny(family, dtype, spread))
    with pytest.raises(ValueError, match=r"student: \w+ lets packed rows see each other .* train.packing=false"):
        check_family(model, packed=True, where="student")
    check_family(model, packed=False, where="student")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_does_something_else_after_the_head_is_refused(family, dtype):
    model = tiny(family, dtype, spread=0.02)
    own = model.forward

    def doubled(*args, **kwargs):
        out = own(*args, **kwargs)
        out.logits = out.logits * 2
        return out

    model.forward = doubled
    with pytest.raises(ValueError, match=r"teachers.big: \w+ does something between its hidden states and its logits"):
        check_family(model, packed=False, where="teachers.big")


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_the_mode_of_the_model_as_it_was(training):
    model = tiny(attention_dropout=0.5).train(training)
    check_family(model, packed=True, where="student")
    assert model.training == training
