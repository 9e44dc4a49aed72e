"""The quickstart's tokenizer: byte-level BPE of 2048 entries with single digits and a chat template.

`python -m llmkd.data.quickstart.tokenizer OUT_DIR` trains it on the embedded corpus's training splits and saves it.

Text renders as `<|bos|>text`, a chat as `<|bos|><|user|>question<|assistant|>solution<|end|>`; `<|end|>` is the one
end-of-sequence token of both (the data layer adds it to plain text).
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llmkd.data.quickstart.corpus import DOMAINS, rows

VOCAB_SIZE = 2048
MODEL_MAX_LENGTH = 512
MATH_ROWS = 6000  # of 60 000: their words are few, and more would crowd out code and prose
BOS, END, PAD, USER, ASSISTANT = "<|bos|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"

# Words with their leading space, one digit at a time, punctuation with its line end, line ends, indentation.
PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{{- '<|user|>' + message['content'] }}
{%- elif message['role'] == 'assistant' %}
{{- '<|assistant|>' }}
{%- generation %}
{{- message['content'] + eos_token }}
{%- endgeneration %}
{%- else %}
{{- raise_exception("this template knows the roles user and assistant, not " + message['role']) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}"""


def train(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Train the tokenizer on texts; the vocabulary holds all 256 bytes, so every text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, END, PAD, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MODEL_MAX_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def training_texts() -> Iterator[str]:
    """Yield the texts the tokenizer is trained on: the training splits, math as bare questions and solutions."""
    for domain in DOMAINS:
        found = rows(domain, "train")
        for row in found[:MATH_ROWS] if domain == "math" else found:
            yield from [turn["content"] for turn in row["messages"]] if domain == "math" else [row["text"]]


def main(arguments: list[str]) -> None:
    """Train on the embedded corpus and save into the folder that is the one argument."""
    if len(arguments) != 1:
        sys.exit("usage: python -m llmkd.data.quickstart.tokenizer OUT_DIR")
    tokenizer = train(training_texts())
    tokenizer.save_pretrained(Path(arguments[0]))
    print(f"saved a tokenizer of {len(tokenizer)} entries to {arguments[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
