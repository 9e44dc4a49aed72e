"""The commands ``llmkd``, ``llmkd-gen`` and ``llmkd-eval``.  They only dispatch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llmkd import __version__, methods

BUILT = ("methods", "verify")
NOT_BUILT = {
    "check": "look at a recipe's models, tokenizers, templates and memory before a long run",
    "cache": "write a teacher's signals to disk",
    "compare": "run several objectives with the same seeds, tokens and evaluation",
    "report": "draw the picture of several runs",
}
TRAIN = "train with: accelerate launch -m llmkd.train RECIPE [section.key=value ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """``llmkd COMMAND``.  0 when it did what was asked, 1 when a law failed, 2 for a mistake or what is not built."""
    parser = argparse.ArgumentParser(prog="llmkd", description=f"Distil language models. To {TRAIN}")
    parser.add_argument("--version", action="version", version=f"llmkd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    table = commands.add_parser("methods", help="list the methods: paper, recipe, tags, evidence")
    table.add_argument("--markdown", action="store_true", help="as the README shows them")
    _add_verify(commands)
    for name, purpose in NOT_BUILT.items():
        commands.add_parser(name, help=f"{purpose} (not built yet)", add_help=False)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in NOT_BUILT:
        return _not_built(f"llmkd {arguments.command}")
    if arguments.command == "verify":  # overrides may stand behind an option too
        arguments.overrides += [word for word in rest if "=" in word and not word.startswith("-")]
        rest = [word for word in rest if word not in arguments.overrides]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "verify":
        from llmkd.checks import verify

        return verify.main(arguments)
    print(methods.markdown() if arguments.markdown else methods.plain())
    return 0


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verify = commands.add_parser(
        "verify",
        help="prove the losses on this machine, in its precision, on a recipe's models",
        description="Hold every entry of the table of losses against laws that must be true of it: its declared class "
        "and range, finite differences, limits, the dense formula in float64. With a RECIPE: the terms that it uses, "
        "also on what its own models say of its rows. Exit code 1 when a law fails.",
    )  # fmt: skip
    verify.add_argument("recipe", nargs="?", metavar="RECIPE", help="a YAML file")
    verify.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to it")
    verify.add_argument("--json", metavar="FILE", help="write all that was found")
    verify.add_argument("--device", help="cpu or cuda; left out, cpu or the recipe's own")
    verify.add_argument("--dtype", help="float64, float32 or bfloat16; left out, float64 or what the recipe trains in")
    verify.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random")


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
