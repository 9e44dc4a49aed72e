import numpy as np
import pytest

from llmkd.data.chat import ChatTemplate
from llmkd.data.encode import encode
from llmkd.data.render import prepare_tokenizer, render

from chat_tokenizer import CHATML, FORGETFUL, MARKED, chat_tokenizer

CHAT = [
    {"role": "system", "content": "the system"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "the cat"},
    {"role": "user", "content": "what is this?"},
    {"role": "assistant", "content": "this is thé mat 😀"},
]
REAL = ["qwen2", "gpt2", "phi-3-mini", "mistral-v1", "mistral-tekken-240911", "gpt-neox-20b", "cl100k_base"]


def encoded(row, tokenizer, **switches):
    return encode([render(row, ChatTemplate(tokenizer), **switches)], tokenizer)[0]


def counted_text(row, tokenizer, **switches):
    result = encoded(row, tokenizer, **switches)
    return tokenizer.decode(result.input_ids[result.counted().astype(bool)], skip_special_tokens=False)


def n_bytes(row, tokenizer, **switches):
    result = encoded(row, tokenizer, **switches)
    return int((result.n_bytes * result.counted()).sum())


def test_text_counts_everything_but_its_first_token_and_one_eos():
    tokenizer = chat_tokenizer(bos=True)
    result = encoded({"text": "the cat"}, tokenizer)
    assert tokenizer.decode(result.input_ids) == "<s>the cat<|im_end|>"
    assert result.counted().tolist() == [0] + [1] * (len(result.input_ids) - 1)
    assert (result.input_ids == tokenizer.eos_token_id).sum() == 1


def test_an_eos_that_the_text_or_the_tokenizer_brings_is_not_doubled():
    tokenizer = chat_tokenizer()
    result = encoded({"text": "the cat<|im_end|>"}, tokenizer)
    assert (result.input_ids == tokenizer.eos_token_id).sum() == 1 and result.counted()[-1] == 1


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_prompt_completion_counts_the_completion_and_its_eos(trim_offsets):
    tokenizer = chat_tokenizer(trim_offsets=trim_offsets)
    row = {"prompt": "Hello there", "completion": ", the cat sat"}
    assert counted_text(row, tokenizer) == ", the cat sat<|im_end|>"
    whole = counted_text(row, tokenizer, completion_only_loss=False)
    first = tokenizer.decode(encoded(row, tokenizer).input_ids[:1])
    assert first + whole == "Hello there, the cat sat<|im_end|>"


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_a_token_across_the_border_belongs_to_the_prompt(trim_offsets):
    tokenizer = chat_tokenizer(trim_offsets=trim_offsets)
    assert "Ġthe" in tokenizer.get_vocab()
    row = {"prompt": "Hello ", "completion": "the cat"}
    joint = tokenizer("Hello the cat")["input_ids"]
    assert encoded(row, tokenizer).input_ids.tolist() == [*joint, tokenizer.eos_token_id]
    assert counted_text(row, tokenizer) == " cat<|im_end|>"


def test_every_assistant_turn_counts_with_its_end_and_without_the_newline_after_it():
    assert counted_text({"messages": CHAT}, chat_tokenizer(CHATML)) == "the cat<|im_end|>this is thé mat 😀<|im_end|>"


def test_a_template_that_marks_the_words_alone_gets_the_end_of_turn_too():
    tokenizer = chat_tokenizer(MARKED, eos="</s>", pad="</s>")
    assert counted_text({"messages": CHAT}, tokenizer) == "the cat</s>this is thé mat 😀</s>"


def test_a_template_that_rewrites_earlier_turns():
    chat = [dict(message) for message in CHAT]
    chat[2]["content"] = "hm</think>the cat"
    chat[4]["content"] = "so</think>the mat"
    text = counted_text({"messages": chat}, chat_tokenizer(FORGETFUL))
    assert text == "the cat<|im_end|>so</think>the mat<|im_end|>"


def test_pad_as_eos_does_not_hide_the_end():
    for pad in ("<|im_end|>", "<s>"):
        result = encoded({"messages": CHAT}, chat_tokenizer(pad=pad))
        assert (result.input_ids[result.counted().astype(bool)] == 3).sum() == 2


def test_assistant_only_loss_off_counts_all_but_the_first_token():
    tokenizer = chat_tokenizer()
    assert encoded({"messages": CHAT}, tokenizer, assistant_only_loss=False).counted()[1:].all()


def test_conversational_prompt_and_completion():
    tokenizer = chat_tokenizer()
    row = {"prompt": CHAT[:4], "completion": CHAT[4:]}
    assert counted_text(row, tokenizer) == "this is thé mat 😀<|im_end|>"
    both = counted_text(row, tokenizer, completion_only_loss=False)
    assert both == "the cat<|im_end|>this is thé mat 😀<|im_end|>"
    assert counted_text(row, tokenizer, assistant_only_loss=False) == "this is thé mat 😀<|im_end|>\n"


def test_tools_reach_the_template_without_the_empty_keys_of_the_table():
    tokenizer = chat_tokenizer("{{ tools | tojson }}" + CHATML)
    tool = {"type": "function", "function": {"name": "add", "description": None}}
    for tools in ([tool], '[{"type": "function", "function": {"name": "add"}}]'):
        text = render({"messages": CHAT, "tools": tools}, ChatTemplate(tokenizer)).text
        assert '"name": "add"' in text and "description" not in text


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_bytes_are_those_of_the_counted_text(trim_offsets):
    tokenizer = chat_tokenizer(trim_offsets=trim_offsets, bos=True)
    for text in ("the cat sat", "thé 😀 mat", "  two  spaces \n\n and lines \n"):
        assert n_bytes({"text": text}, tokenizer) == len(text.encode())
        assert n_bytes({"prompt": "Hello:", "completion": text}, tokenizer) == len(text.encode())
    contents = [message["content"] for message in CHAT if message["role"] == "assistant"]
    assert n_bytes({"messages": CHAT}, tokenizer) == len("".join(contents).encode())


def test_rows_without_an_accepted_format_or_type():
    template = ChatTemplate(chat_tokenizer())
    with pytest.raises(ValueError, match=r"data: found the columns \['body'\]; accepted are `messages`"):
        render({"body": "x"}, template)
    with pytest.raises(ValueError, match="row 3: the column `text` holds None, not a string"):
        render({"text": None}, template, where="row 3")
    with pytest.raises(ValueError, match="the column `prompt` holds 'a', not a list of messages"):
        render({"prompt": "a", "completion": CHAT[4:]}, template)
    with pytest.raises(ValueError, match="the column `tools` holds a string that is not JSON"):
        render({"messages": CHAT, "tools": "{"}, template)


def test_messages_without_a_chat_template():
    with pytest.raises(ValueError, match=r"has no chat template; name a file with one in student.chat_template"):
        render({"messages": CHAT}, ChatTemplate(chat_tokenizer(None)))


def test_a_template_that_refuses_the_messages():
    template = "{{ raise_exception('no system messages here') }}"
    with pytest.raises(ValueError, match="the chat template refuses the messages: no system messages here"):
        render({"messages": CHAT}, ChatTemplate(chat_tokenizer(template)))


def test_a_turn_that_cannot_be_found():
    template = "{% for message in messages | reverse %}{{ message['content'] | upper }}{% endfor %}"
    with pytest.raises(ValueError, match=r"cannot tell where message 2 \(assistant\) stands"):
        chat = [*CHAT[:2], {"role": "assistant", "content": "", "tool_calls": [{"name": "x"}]}, *CHAT[3:]]
        render({"messages": chat}, ChatTemplate(chat_tokenizer(template + "{{ messages[2]['content'] }}")))


def test_tokenizer_without_eos_is_refused_and_without_pad_gets_its_eos():
    with pytest.raises(ValueError, match=r"student: the tokenizer .* has no EOS token.*set `eos_token`"):
        prepare_tokenizer(chat_tokenizer(eos=None), "student")
    tokenizer = prepare_tokenizer(chat_tokenizer(pad=None), "student")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_a_slow_tokenizer_is_refused():
    tokenizer = chat_tokenizer()

    class Slow:
        is_fast = False
        name_or_path = "slow-one"

    with pytest.raises(ValueError, match="'slow-one' is not a fast one"):
        prepare_tokenizer(Slow(), "student")
    assert prepare_tokenizer(tokenizer, "student") is tokenizer


@pytest.mark.assets
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_count_the_assistants_words_once(name, assets):
    from transformers import AutoTokenizer

    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(assets / "tokenizers" / name), "student")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    contents = ["Hello, wörld 😀", "def f(x):\n    return  x", " leading", "最後 の trailing  "]
    chat = [{"role": role, "content": text} for text in contents for role in ("user", "assistant")]
    result = encoded({"messages": chat}, tokenizer)
    turns = [tokenizer.decode(result.input_ids[start:end]) for start, end in result.turns]
    assert [turn.removesuffix("<|im_end|>").strip() for turn in turns] == [text.strip() for text in contents]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (result.input_ids[result.counted().astype(bool)] == end).sum() == len(contents)
    assert int((result.n_bytes * result.counted()).sum()) <= len("".join(contents).encode())


@pytest.mark.assets
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_give_the_bytes_of_a_plain_text(name, assets):
    from transformers import AutoTokenizer

    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(assets / "tokenizers" / name), "student")
    stories = (assets / "data/corpora/tinystories_sample.txt").read_text()[:3000]
    text = stories.replace("<|endoftext|>", "") + "\n ünï 😀 最後\n"
    result = encoded({"text": text}, tokenizer)
    assert result.n_bytes.sum() == len(text.encode())
    assert np.count_nonzero(result.input_ids == tokenizer.eos_token_id) == 1
