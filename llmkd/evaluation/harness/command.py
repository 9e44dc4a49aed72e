"""``llmkd-eval MODEL_OR_RUN``: benchmarks and measures of a finished model, each stored as soon as it is known."""

from __future__ import annotations

import argparse
import os
import sys

EPILOG = """examples:
  llmkd-eval runs/quickstart --suite eval/suites/offline.yaml
  llmkd-eval Qwen/Qwen2.5-0.5B --tasks gsm8k,mmlu --batch_size auto
  llmkd-eval runs/quickstart --tasks fidelity --teacher llmkd/quickstart-teacher

Results of a run go into RUN/eval; of any other model into --output_path, or ./eval-results/NAME. What is there for the
same weights, task version and settings is not measured again. Exit code 1: something was not reached, and the rest
was; 2: a mistake in what was asked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; those that lm_eval has are spelled as there."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("model_or_run", metavar="MODEL_OR_RUN", help="a hub name, a saved model's folder, or a run folder")
    what = parser.add_argument_group("what to measure")
    what.add_argument("--tasks", "-t", nargs="+", action="extend", metavar="TASK",
                      help="names of lm_eval, of eval/tasks (llmkd_...), or measures of our own; "
                           "separated by commas or spaces")  # fmt: skip
    what.add_argument("--suite", metavar="FILE", help="a suite: eval/suites/*.yaml, or its name")
    what.add_argument("--num_fewshot", "-f", metavar="N", help="examples in front of each question")
    what.add_argument("--limit", "-L", metavar="N", help="questions a task: a number, or a share below 1")
    what.add_argument("--gen_kwargs", nargs="+", metavar="K=V", help="how to generate, such as temperature=0.8")
    what.add_argument("--apply_chat_template", nargs="?", const=True, metavar="NAME",
                      help="ask through the chat template; if_present: where the tokenizer has one")  # fmt: skip
    what.add_argument("--include_path", action="append", metavar="DIR", help="a folder with more task YAMLs")
    what.add_argument("--teacher", metavar="MODEL", help="what the student is compared with (fidelity)")
    what.add_argument("--baseline", metavar="MODEL_OR_RUN", help="what stands beside the student (fidelity, "
                      "calibration); left out, the baseline in the run")  # fmt: skip
    what.add_argument("--data", metavar="FILE", help="rows of our own measures; left out, the run's")
    how = parser.add_argument_group("how")
    how.add_argument("--model", "-M", default="hf", metavar="NAME", help="hf (default) or vllm")
    how.add_argument("--model_args", "-a", nargs="+", metavar="K=V", help="such as dtype=float32,max_length=2048")
    how.add_argument("--batch_size", "-b", default="auto", metavar="N", help="a number, or auto (default)")
    how.add_argument("--device", metavar="NAME", help="cuda, cuda:0, cpu, mps")
    how.add_argument("--seed", metavar="N", help="of everything random: one, or lm_eval's four (0,1234,1234,1234)")
    how.add_argument("--confirm_run_unsafe_code", action="store_true",
                     help="let lm_eval's own code tasks run what the model wrote, without a sandbox")  # fmt: skip
    where = parser.add_argument_group("where to")
    where.add_argument("--output_path", "-o", metavar="DIR", help="results, and lm_eval's JSON as lm_eval writes it")
    where.add_argument("--log_samples", "-s", action="store_true", help="keep all that was asked and answered")


def main(arguments: argparse.Namespace) -> int:
    """0 when all is measured, 1 when something was not reached, 2 for a user's mistake."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm_eval's bootstrap forks a process with a model in it otherwise
    if arguments.confirm_run_unsafe_code:
        os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")
    try:
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, where it is installed, warns while it guesses
        from llmkd.evaluation.harness import evaluate, options

        return evaluate.evaluate(options.read(arguments))
    except ValueError as error:
        print(f"llmkd-eval: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nllmkd-eval: stopped; the same command goes on with what is not measured yet", file=sys.stderr)
        return 130
