"""The commands ``llmkd``, ``llmkd-gen`` and ``llmkd-eval``.  They only dispatch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llmkd import __version__, methods

NOT_BUILT = {
    "check": "look at a recipe's models, tokenizers, templates and memory before a long run",
    "verify": "prove the losses on this machine, with its models and precision",
    "cache": "write a teacher's signals to disk",
    "compare": "run several objectives with the same seeds, tokens and evaluation",
    "report": "draw the picture of several runs",
}
TRAIN = "train with: accelerate launch -m llmkd.train RECIPE [section.key=value ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """``llmkd COMMAND``.  0 when it did what was asked, 2 where it is not built yet."""
    parser = argparse.ArgumentParser(prog="llmkd", description=f"Distil language models. To {TRAIN}")
    parser.add_argument("--version", action="version", version=f"llmkd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    table = commands.add_parser("methods", help="list the methods: paper, recipe, tags, evidence")
    table.add_argument("--markdown", action="store_true", help="as the README shows them")
    for name, purpose in NOT_BUILT.items():
        commands.add_parser(name, help=f"{purpose} (not built yet)", add_help=False)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in NOT_BUILT:
        return _not_built(f"llmkd {arguments.command}")
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    print(methods.markdown() if arguments.markdown else methods.plain())
    return 0


def gen(argv: Sequence[str] | None = None) -> int:
    """``llmkd-gen``: data generation.  Not built yet."""
    return _other("llmkd-gen", "generate training data with a teacher", argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """``llmkd-eval``: benchmarks of a finished model.  Not built yet."""
    return _other("llmkd-eval", "run benchmarks on a finished model", argv)


def _other(name: str, purpose: str, argv: Sequence[str] | None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if set(given) & {"-h", "--help"}:
        print(f"usage: {name}\n\n{purpose} (not built yet); {TRAIN}")
        return 0
    return _not_built(name)


def _not_built(name: str) -> int:
    print(f"{name}: not built yet; {TRAIN}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
