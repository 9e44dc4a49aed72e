"""The final model of a run is served by a real vLLM, and vLLM and transformers compute the same model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving import Server, complete

pytestmark = pytest.mark.vllm

PROMPTS = ["the red cat sees", "def add_7(x):", "12 + 30 ="]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def tokenizer(vllm_server: Server):
    return AutoTokenizer.from_pretrained(vllm_server.model)


@pytest.fixture(scope="module")
def model(vllm_server: Server):
    return AutoModelForCausalLM.from_pretrained(vllm_server.model, dtype=torch.float32).eval()


def token_id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_completion_equals_transformers(vllm_server: Server, tokenizer, model, prompt: str) -> None:
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    ours = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS)
    theirs = complete(vllm_server, ids[0].tolist(), max_tokens=NEW_TOKENS, logprobs=1, return_tokens_as_token_ids=True)
    generated = [token_id(name) for name in theirs["logprobs"]["tokens"]]
    assert generated == ours[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_prompt_gets_the_ids_of_our_tokenizer(vllm_server: Server, tokenizer, prompt: str) -> None:
    by_text = complete(vllm_server, prompt, max_tokens=4)
    by_ids = complete(vllm_server, tokenizer(prompt).input_ids, max_tokens=4)
    assert by_text["text"] == by_ids["text"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampled_logprobs_are_the_log_softmax(
    vllm_server: Server, tokenizer, model, prompt: str, temperature: float
) -> None:
    ids = tokenizer(prompt).input_ids
    choice = complete(
        vllm_server, ids, max_tokens=NEW_TOKENS, temperature=temperature, seed=0, logprobs=8,
        return_tokens_as_token_ids=True, ignore_eos=True,
    )["logprobs"]  # fmt: skip
    generated = [token_id(name) for name in choice["tokens"]]
    with torch.no_grad():
        logits = model(torch.tensor([ids + generated])).logits[0, len(ids) - 1 : -1]
    expected = torch.log_softmax(logits.double() / temperature, dim=-1)
    sampled = expected[torch.arange(len(generated)), torch.tensor(generated)]
    torch.testing.assert_close(torch.tensor(choice["token_logprobs"]).double(), sampled, atol=1e-3, rtol=0)
    for position, top in enumerate(choice["top_logprobs"]):
        assert len(top) >= 8
        for name, value in top.items():
            assert value == pytest.approx(expected[position, token_id(name)].item(), abs=1e-3)


def test_prompt_logprobs_are_the_log_softmax(vllm_server: Server, tokenizer, model) -> None:
    ids = tokenizer("the quiet river carries seven letters. 12 + 30 = 42").input_ids
    answer = complete(vllm_server, ids, max_tokens=1, prompt_logprobs=16)["prompt_logprobs"]
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    assert answer[0] is None  # nothing predicts the first token
    for position, row in enumerate(answer[1:]):
        assert str(ids[position + 1]) in row
        top = set(expected[position].topk(16).indices.tolist())
        assert top <= {int(key) for key in row}
        for key, entry in row.items():
            assert entry["logprob"] == pytest.approx(expected[position, int(key)].item(), abs=1e-3)
