"""Loading models and tokenizers as a recipe's ``student`` and ``teachers`` sections name them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.integrations import deepspeed as zero
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from llmkd.backbone import head_of
from llmkd.data.render import prepare_tokenizer
from llmkd.types import Head

GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")
EMBEDDED = "llmkd/quickstart-teacher"
"""The name of the teacher that is part of this package."""


def resolve(name: str) -> str:
    """A model's path: the embedded teacher by its name, a local folder as it is, else a hub name."""
    if name == EMBEDDED:
        return str(Path(__file__).parent / "data" / "quickstart" / "teacher")
    return name


def sharded_at_load() -> bool:
    """Whether ``from_pretrained`` shards parameters as it loads them (ZeRO-3)."""
    return bool(zero.is_deepspeed_zero3_enabled())


@contextmanager
def whole_at_load() -> Iterator[None]:
    """Models made inside are whole, also under ZeRO-3, where otherwise all processes must make them together."""
    config = zero._hf_deepspeed_config_weak_ref() if sharded_at_load() else None
    zero.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            zero.set_hf_deepspeed_config(config)


def runs_as_loaded(model: nn.Module) -> bool:
    """Whether a forward pass is possible before the trainer has placed the model: its parameters are here, and its
    attention kernels run where they are."""
    attention = str(getattr(model.config, "_attn_implementation", ""))
    first = next(model.parameters())
    return not hasattr(first, "ds_id") and not ("flash" in attention and first.device.type == "cpu")


def load_tokenizer(student: Any) -> Any:
    name = student.tokenizer_name_or_path or student.model_name_or_path
    where = "student.tokenizer_name_or_path" if student.tokenizer_name_or_path else "student.model_name_or_path"
    tokenizer = _tokenizer(name, where, student)
    if student.chat_template:
        path = Path(student.chat_template)
        if not path.is_file():
            raise ValueError(f"student.chat_template: {path} does not exist: give a file with a Jinja chat template")
        tokenizer.chat_template = path.read_text()
    return prepare_tokenizer(tokenizer, where)


def load_teacher_tokenizer(teacher: Any) -> Any:
    where = f"teachers.{teacher.name}"
    return prepare_tokenizer(_tokenizer(teacher.model_name_or_path, where, teacher), where)


def _tokenizer(name: str, where: str, section: Any) -> Any:
    """A tokenizer as it was saved.  Where its class is the general one, the model's family must not choose another:
    beside a Qwen2 model that would add a token which the model has no row for."""
    try:
        general = get_tokenizer_config(resolve(name), revision=section.revision).get("tokenizer_class") in GENERAL
    except (OSError, ValueError):  # said better by the attempt to load it
        general = False
    return _pretrained(PreTrainedTokenizerFast if general else AutoTokenizer, name, where, section)


def load_student(student: Any, tokenizer: Any) -> nn.Module:
    """The student, from a checkpoint or fresh from a config; its special tokens are those of the tokenizer."""
    _check_dtype(student.dtype, "student.dtype")
    if student.from_config is None:
        extra = {"quantization_config": quantization(student.quantization)} if student.quantization else {}
        model = _pretrained(AutoModelForCausalLM, student.model_name_or_path, "student.model_name_or_path", student,
                            dtype=_dtype(student.dtype), **extra)  # fmt: skip
    else:
        with whole_at_load():  # the same weights however many processes there are
            model = _fresh(student, tokenizer)
    model.config.use_cache = True
    return model


def load_teacher(teacher: Any) -> nn.Module:
    where = f"teachers.{teacher.name}"
    _check_dtype(teacher.dtype, f"{where}.dtype")
    extra = {"quantization_config": quantization(teacher.quantization)} if teacher.quantization else {}
    model = _pretrained(
        AutoModelForCausalLM, teacher.model_name_or_path, where, teacher, dtype=_dtype(teacher.dtype), **extra
    )
    return model.eval().requires_grad_(False)


def _fresh(student: Any, tokenizer: Any) -> nn.Module:
    """A randomly initialised model.  The vocabulary defaults to the tokenizer's length, special ids to its own."""
    fields = dict(student.from_config)
    kind = fields.pop("model_type", None)
    if kind is None:
        raise ValueError(
            "student.from_config.model_type: missing: name a transformers model type, such as llama or qwen2"
        )
    fields.setdefault("vocab_size", len(tokenizer))
    for name in ("bos", "eos", "pad"):
        fields.setdefault(f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    try:
        config = AutoConfig.for_model(kind, **fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"student.from_config: {str(error).splitlines()[0][:300]}") from error
    unknown = [k for k in fields if k not in type(config)().to_dict() and not k.endswith("_token_id")]
    if unknown:
        raise ValueError(
            f"student.from_config.{unknown[0]}: not a setting of {kind}: see transformers' {type(config).__name__}"
        )
    attention = {"attn_implementation": student.attn_implementation} if student.attn_implementation else {}
    return AutoModelForCausalLM.from_config(config, dtype=_dtype(student.dtype), **attention)


def _pretrained(auto: Any, name: str, where: str, section: Any, **extra: Any) -> Any:
    """``from_pretrained`` with one clear message where the folder or the name is wrong."""
    path = resolve(name)
    looks_local = path.startswith((".", "/", "~")) or Path(path).exists() or path.count("/") > 1
    if looks_local and not Path(path).is_dir():
        raise ValueError(f"{where}: {name} is not a folder: give the folder of a saved model, or a hub name")
    if getattr(section, "attn_implementation", None) and auto is AutoModelForCausalLM:
        extra["attn_implementation"] = section.attn_implementation
    try:
        return auto.from_pretrained(
            path, revision=getattr(section, "revision", None) or "main",
            trust_remote_code=section.trust_remote_code, **extra,
        )  # fmt: skip
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        kind = "model" if auto is AutoModelForCausalLM else "tokenizer"
        raise ValueError(f"{where}: the {kind} {name} cannot be loaded: {reason}") from error


def quantization(section: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ValueError("student.quantization: needs the bitsandbytes package: pip install bitsandbytes")
    return BitsAndBytesConfig(**section.model_dump(exclude_none=True))


def lora_config(section: Any, model: nn.Module) -> Any:
    """The configuration for peft, None without a section; ValueError for a module that the model does not have."""
    if section is None:
        return None
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    named = section.target_modules if isinstance(section.target_modules, list) else []
    for name in named:
        if not any(f".{known}".endswith(f".{name}") for known, _ in model.named_modules()):
            known = ", ".join(dict.fromkeys(n.rsplit(".", 1)[-1] for n in linear))
            raise ValueError(
                f"student.lora.target_modules: {name!r} is no module of {type(model).__name__}: it has {known}; "
                "all-linear takes all but the head"
            )
    from peft import LoraConfig

    return LoraConfig(**section.model_dump(exclude_none=True))


def _dtype(name: str) -> Any:
    return name if name == "auto" else getattr(torch, name)


def _check_dtype(name: str, where: str) -> None:
    if name == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ValueError(f"{where}: this GPU has no bfloat16: use float16 or float32")


def parameter_count(model: nn.Module) -> int:
    """Parameters, each once (tied ones too), whole under ZeRO-3."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in model.parameters())


def whole_head(model: nn.Module) -> Head | None:
    """A copy of the head of a model that ZeRO-3 or FSDP2 shards; None where it is whole.  All processes must call
    this."""
    head = head_of(model)
    parameters = [p for p in (head.weight, head.bias) if p is not None]
    if isinstance(head.weight, DTensor):
        copies = [p.detach().full_tensor() for p in parameters]
    elif hasattr(head.weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters):
            copies = [p.detach().clone() for p in parameters]
    else:
        return None
    return Head(copies[0], copies[1] if len(copies) > 1 else None, head.softcap, head.scale)
