"""``llmkd compare STUDY.yaml``: arms with the same seeds and budget, run or gone on with, and one table."""

from __future__ import annotations

import argparse
import os
import sys

EPILOG = """examples:
  llmkd compare eval/studies/quickstart.yaml
  llmkd compare eval/studies/divergences.yaml seeds=[0] overrides.train.max_steps=20 --output-dir runs/try
  llmkd compare eval/studies/divergences.yaml --gpus 0,1

A study is stopped with Ctrl-C and goes on with the same command. Exit code 1: a run failed, or the arms did not see the
same number of tokens; 2: a mistake in the study or a recipe, found before anything runs; 130: stopped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Run a study's arms, each with every seed, and say what differs. Its folder: runs/NAME."
    parser.epilog = EPILOG
    parser.add_argument("study", metavar="STUDY", help="a YAML file, such as eval/studies/divergences.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the study")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once, which share the threads; default 1")
    parser.add_argument("--gpus", metavar="0,1", help="one run at a time on each of these GPUs")
    parser.add_argument("--dry-run", action="store_true", help="check everything and show what would be run")
    parser.add_argument("--output-dir", metavar="DIR", help="the study's folder, in place of its own output_dir")


def main(arguments: argparse.Namespace) -> int:
    """0 when all was reached, 1 when something was not, 2 for a user's mistake, 130 when stopped."""
    gpus = [gpu.strip() for gpu in (arguments.gpus or "").split(",") if gpu.strip()]
    if arguments.gpus is not None and (not gpus or not all(gpu.isdecimal() for gpu in gpus)):
        return _mistake(f"--gpus: {arguments.gpus!r} is not a list of GPU numbers: write such as 0,1")
    if arguments.jobs is not None and arguments.jobs < 1:
        return _mistake(f"--jobs: {arguments.jobs} is not a number of runs: give at least 1")
    try:
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, where it is installed, warns while it guesses
        from llmkd.evaluation.study.compare import compare

        return compare(arguments.study, arguments.overrides, arguments.jobs, gpus, arguments.dry_run,
                       arguments.output_dir)  # fmt: skip
    except ValueError as error:
        return _mistake(str(error))
    except OSError as error:
        return _mistake(f"{error.filename or arguments.study}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("\nllmkd compare: stopped before anything ran", file=sys.stderr)
        return 130


def _mistake(text: str) -> int:
    for line in text.splitlines():
        print(f"llmkd compare: {line}", file=sys.stderr)
    return 2
