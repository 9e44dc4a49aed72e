"""The commands ``llmkd``, ``llmkd-gen`` and ``llmkd-eval``.  They only dispatch.

A command is a module with ``add_arguments(parser)`` and ``main(arguments) -> exit code`` that imports nothing heavy
before its ``main`` is called.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from llmkd import __version__, methods

TRAIN = "train with: accelerate launch -m llmkd.train RECIPE [section.key=value ...]"
MODULES = {
    "verify": ("llmkd.checks.command", "prove the losses on this machine, in its precision, on a recipe's models"),
    "compare": ("llmkd.evaluation.study.command", "run several arms with the same seeds, tokens and evaluation"),
    "report": ("llmkd.evaluation.report.command", "draw the picture of runs or of a study"),
}
NOT_BUILT = {
    "check": "look at a recipe's models, tokenizers, templates and memory before a long run",
    "cache": "write a teacher's signals to disk",
}


def main(argv: Sequence[str] | None = None) -> int:
    """``llmkd COMMAND``.  0 when it did what was asked, 1 when something asked was not reached, 2 for a mistake or what
    is not built."""
    parser = argparse.ArgumentParser(prog="llmkd", description=f"Distil language models. To {TRAIN}")
    parser.add_argument("--version", action="version", version=f"llmkd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    table = commands.add_parser("methods", help="list the methods: paper, recipe, tags, evidence")
    table.add_argument("--markdown", action="store_true", help="as the README shows them")
    for name, (module, purpose) in MODULES.items():
        import_module(module).add_arguments(commands.add_parser(name, help=purpose))
    for name, purpose in NOT_BUILT.items():
        commands.add_parser(name, help=f"{purpose} (not built yet)", add_help=False)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in NOT_BUILT:
        return _not_built(f"llmkd {arguments.command}")
    if hasattr(arguments, "overrides"):  # they may stand behind an option too
        arguments.overrides += [word for word in rest if "=" in word and not word.startswith("-")]
        rest = [word for word in rest if word not in arguments.overrides]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command in MODULES:
        return import_module(MODULES[arguments.command][0]).main(arguments)
    print(methods.markdown() if arguments.markdown else methods.plain())
    return 0


def gen(argv: Sequence[str] | None = None) -> int:
    """``llmkd-gen``: data generation.  Not built yet."""
    given = sys.argv[1:] if argv is None else argv
    if set(given) & {"-h", "--help"}:
        print(f"usage: llmkd-gen\n\ngenerate training data with a teacher (not built yet); {TRAIN}")
        return 0
    return _not_built("llmkd-gen")


def evaluate(argv: Sequence[str] | None = None) -> int:
    """``llmkd-eval MODEL_OR_RUN``: benchmarks and measures of a finished model."""
    from llmkd.evaluation.harness import command

    parser = argparse.ArgumentParser(prog="llmkd-eval", description="What a finished model is worth.")
    command.add_arguments(parser)
    return command.main(parser.parse_args(argv))


def _not_built(name: str) -> int:
    print(f"{name}: not built yet; {TRAIN}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
