"""Tokenizers and models small enough to make in every test run: `tiny_tokenizer`, `tiny_llama`, `tiny_model`.

Each writes a folder as `save_pretrained` does and returns its path, so that a test takes the way a user's model takes.
Heads are 32 wide: the smallest that vLLM's CPU attention serves.
"""

import itertools
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HEAD_DIM = 32
SPECIALS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def sentences() -> list[str]:
    """About a thousand different English lines, code lines and sums: always the same ones."""
    subjects = ["the red cat", "an old teacher", "my small student", "every green bird", "the quiet river", "our dog"]
    verbs = ["sees", "follows", "remembers", "carries", "measures", "forgets"]
    objects = ["a stone", "two apples", "the answer", "seven letters", "another question", "nothing at all"]
    places = ["behind the garden wall", "in winter", "before breakfast", "under a wooden bridge", "without any hurry"]
    lines = [" ".join(parts) + "." for parts in itertools.product(subjects, verbs, objects, places)]
    lines += [f"def add_{a}(x):\n    return x + {a}\n" for a in range(20)]
    return lines + [f"{a} + {b} = {a + b}" for a, b in itertools.product(range(3, 60, 7), range(2, 50, 9))]


def tiny_tokenizer(folder: Path, vocab_size: int = 384, seed_text: list[str] | None = None) -> Path:
    """A byte-level BPE tokenizer with `vocab_size` entries, a pad, an end of turn (its EOS) and a chat template.

    `seed_text` replaces the lines the merges are learned from: another text gives another tokenizer of the same size.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(seed_text or sentences(), trainer)
    assert tokenizer.get_vocab_size() == vocab_size, "the text has too few merges for this vocabulary"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return Path(folder)


def tiny_llama(
    folder: Path,
    vocab: int = 384,
    hidden: int = 64,
    layers: int = 2,
    tie: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **config: object,
) -> Path:
    """A random Llama with `hidden / 32` heads, spread enough (std 0.3) that its next-token choices are no near-ties.

    Further keywords go to `LlamaConfig` (e.g. `num_key_value_heads=1`, `attention_dropout=0.1`).
    """
    assert hidden % HEAD_DIM == 0, f"hidden={hidden} is not a multiple of the head dimension {HEAD_DIM}"
    settings: dict[str, object] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // HEAD_DIM,
        "num_key_value_heads": hidden // HEAD_DIM,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tie,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": SPECIALS.index("<|end|>"),
        "pad_token_id": SPECIALS.index("<|pad|>"),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**settings | config))
    model.to(dtype).save_pretrained(folder)
    return Path(folder)


def tiny_model(folder: Path, vocab_size: int = 384, **llama: object) -> Path:
    """Tokenizer and Llama in one folder: what a user's `model_name_or_path` names."""
    tiny_tokenizer(folder, vocab_size)
    return tiny_llama(folder, vocab=llama.pop("vocab", vocab_size), **llama)
