"""Byte-level tokenizers of about 300 entries for tests of templates and masks, made in memory."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = ["the cat sat on the mat. the answer is here", "user assistant system", "Hello there, what is this?"]
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]

# A newline stands after every end of turn, and there is no {% generation %}.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Marks the assistant's words, but not the token that ends the turn.
MARKED = (
    "{{ '<s>' }}{% for message in messages %}{{ '[' + message['role'] + ']' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}"
    "{{ '</s>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
# Drops what stands before "</think>" in all turns but the last: no earlier conversation is a prefix of a later one.
FORGETFUL = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n' }}{% endif %}"
    "{{ message['content'] if loop.last else message['content'].split('</think>')[-1] }}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def chat_tokenizer(
    template: str | None = CHATML,
    *,
    eos: str | None = "<|im_end|>",
    pad: str | None = "<|im_end|>",
    bos: bool = False,
    trim_offsets: bool = False,
    lines: list[str] | None = None,
    vocab_size: int = 300,
) -> PreTrainedTokenizerFast:
    """A tokenizer whose pad is its EOS unless told otherwise. With `bos` its plain encoding begins with `<s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines or LINES, trainer)
    steps = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    tokenizer.post_processor = processors.Sequence(steps)
    named = {"bos_token": "<s>" if bos else None, "eos_token": eos, "pad_token": pad}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in named.items() if token},
    )
    fast.chat_template = template
    return fast
