"""The options of `llmkd-eval`: lm_eval's spelling is read as lm_eval reads it, and a wrong value is one message."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

import pytest

from llmkd.evaluation.harness import command, options
from llmkd.evaluation.harness.options import Settings


def read(*words: str) -> options.Options:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return options.read(parser.parse_args(["model", *words]))


def test_names_are_separated_by_commas_or_spaces() -> None:
    assert list(read("--tasks", "a,b", "c").tasks) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "word",
    ["dtype=float32,max_length=128", "trust_remote_code=true,x=1.5,y=None", "stop=['a,b',\"c\"],k=[1,2]", "a=b=c",
     '{"dtype": "auto", "nested": {"a": [1]}}'],
)  # fmt: skip
def test_pairs_are_read_as_lm_eval_reads_them(word: str) -> None:
    """Against lm_eval's own parser."""
    from lm_eval._cli.utils import MergeDictAction

    parser = argparse.ArgumentParser()
    parser.add_argument("--model_args", nargs="+", action=MergeDictAction)
    assert options.pairs("--model_args", [word]) == parser.parse_args(["--model_args", word]).model_args


@pytest.mark.parametrize("text", ["3", "0,1234,1234,1234", "0,None,8,52"])
def test_seeds_are_read_as_lm_eval_reads_them(text: str) -> None:
    from lm_eval._cli.utils import _int_or_none_list_arg_type

    assert list(options.seeds(text)) == _int_or_none_list_arg_type(3, 4, "0,1234,1234,1234", text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--tasks or --suite"),
        (("--tasks", "a", "--suite", "b"), "one of them"),
        (("--tasks", "a", "--num_fewshot", "-1"), "--num_fewshot: '-1' is not a whole number of at least 0"),
        (("--tasks", "a", "--num_fewshot", "few"), "--num_fewshot: 'few'"),
        (("--tasks", "a", "--limit", "0"), "--limit: '0'"),
        (("--tasks", "a", "--limit", "2.5"), "--limit: '2.5'"),
        (("--tasks", "a", "--limit", "nan"), "--limit: 'nan'"),
        (("--tasks", "a", "--batch_size", "0"), "--batch_size: '0'"),
        (("--tasks", "a", "--batch_size", "automatic"), "auto or auto:N"),
        (("--tasks", "a", "--model_args", "dtype"), '--model_args: \'dtype\' is not key=value'),
        (("--tasks", "a", "--model_args", "{dtype: 1}"), "not a JSON object"),
        (("--tasks", "a", "--model_args", "pretrained=gpt2"), "MODEL_OR_RUN"),
        (("--tasks", "a", "--model", "gguf"), "'gguf' is not one of hf, vllm"),
        (("--tasks", "a", "--seed", "1,2"), "--seed: '1,2'"),
        (("--tasks", "a", "--device", "gpu"), "--device: 'gpu' is no device of torch"),
        (("--tasks", "a", "--include_path", "/nowhere"), "--include_path: /nowhere is not a folder"),
    ],
)  # fmt: skip
def test_wrong_value_is_one_message_and_code_2(
    words: tuple[str, ...], said: str, evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("model", *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("llmkd-eval: ") and error.count("\n") == 1


def test_settings_say_over_others_only_what_they_say() -> None:
    over = Settings(limit=3).over(Settings(num_fewshot=5, limit=10))
    assert (over.num_fewshot, over.limit) == (5, 3)
    assert Settings(apply_chat_template=False).over(Settings(apply_chat_template=True)).apply_chat_template is False


def test_help_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import argparse, sys; before = set(sys.modules); from llmkd.evaluation.harness import command\n"
        "command.add_arguments(argparse.ArgumentParser())\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new & {'torch', 'lm_eval', 'transformers', 'rich', 'yaml', 'pydantic'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
