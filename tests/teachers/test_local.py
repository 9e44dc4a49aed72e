"""A local teacher against the model's own logits."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from llmkd.teachers.local import LocalTeacher, freeze

V = 61


def model(**settings):
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, initializer_range=0.3, **settings,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def batch():
    ids = torch.randint(2, V, (2, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "counted": torch.tensor([[0, 0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 1, 0, 0]]).bool()}


def own_logits(lm, ids):
    """The model's logits for the tokens after the first, ``[B, T - 1, V]``."""
    with torch.no_grad():
        return lm.eval()(ids, use_cache=False).logits[:, :-1]


def test_signals_are_the_models_own_logits_for_the_counted_tokens():
    lm, data = model(), batch()
    signals = LocalTeacher("t", lm).score(data)
    expected = own_logits(lm, data["input_ids"])[data["counted"][:, 1:]]
    assert signals.kept is None and signals.hidden.shape == (7, 32)
    torch.testing.assert_close(signals.head.logits(signals.hidden), expected)


def test_a_teacher_in_train_mode_is_put_in_eval():
    lm = model(attention_dropout=0.9).train()
    data = batch()
    signals = LocalTeacher("t", lm).score(data)
    assert not any(module.training for module in lm.modules())
    expected = own_logits(lm, data["input_ids"])[data["counted"][:, 1:]]
    torch.testing.assert_close(signals.head.logits(signals.hidden), expected)


def test_dropout_would_show_without_eval():
    lm = model(attention_dropout=0.9).train()
    first, second = (lm(batch()["input_ids"], use_cache=False).logits for _ in range(2))
    assert not torch.allclose(first, second)


def test_a_teacher_put_back_in_train_mode_is_not_asked():
    teacher = LocalTeacher("t", model())
    teacher.model.train()
    with pytest.raises(AssertionError, match="teacher t is in train mode"):
        teacher.score(batch())


def test_a_teacher_has_no_gradients():
    lm = model()
    signals = LocalTeacher("t", lm).score(batch())
    assert not any(p.requires_grad for p in lm.parameters())
    assert not signals.hidden.requires_grad and not signals.head.weight.requires_grad


def test_freeze_gives_back_the_model():
    lm = model().train()
    assert freeze(lm) is lm and not lm.training


def test_a_wrapped_teacher_is_scored_through_its_wrapper():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.calls = 0

        def forward(self, *args):
            self.calls += 1
            return self.inner(*args)

    lm, data = model(), batch()
    wrapper = Wrapper(lm)
    found = LocalTeacher("t", lm, wrapped=wrapper).score(data)
    assert wrapper.calls == 1
    assert torch.equal(found.hidden, LocalTeacher("t", lm).score(data).hidden)


def test_a_head_given_whole_is_used_in_place_of_the_models_shard():
    lm = model()
    whole = LocalTeacher("t", lm).score(batch()).head
    assert LocalTeacher("t", lm, whole_head=whole).score(batch()).head is whole


def test_states_of_the_own_rendering_stand_in_the_places_of_the_shared_tokens():
    lm, data = model(), batch()
    ids = torch.randint(2, V, (2, 9), generator=torch.Generator().manual_seed(1))
    # Of the student's seven counted tokens the teacher has all but the third and the last.
    data |= {
        "input_ids@t": ids,
        "counted@t": torch.tensor([[0, 0, 0, 0, 1, 0, 1, 0, 0], [0, 0, 1, 1, 0, 0, 1, 0, 0]]).bool(),
        "shared@t": torch.tensor([[0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0]]).bool(),
    }
    signals = LocalTeacher("t", lm, own_rendering=True).score(data)
    logits = own_logits(lm, ids)
    assert signals.kept.tolist() == [True, True, False, True, True, True, False]
    assert (signals.hidden[~signals.kept] == 0).all()
    expected = torch.stack([logits[0, 3], logits[0, 5], logits[1, 1], logits[1, 2], logits[1, 5]])
    torch.testing.assert_close(signals.head.logits(signals.hidden)[signals.kept], expected)
