"""``llmkd verify [RECIPE]``: the losses proven on this machine."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Hold every entry of the table of losses against laws that must be true of it: its declared class and range, "
        "finite differences, limits, the dense formula in float64. With a RECIPE: the terms that it uses, also on what "
        "its own models say of its rows. Exit code 1 when a law fails."
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to it")
    parser.add_argument("--json", metavar="FILE", help="write all that was found")
    parser.add_argument("--device", help="cpu or cuda; left out, cpu or the recipe's own")
    parser.add_argument("--dtype", help="float64, float32 or bfloat16; left out, float64 or what the recipe trains in")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random")


def main(arguments: argparse.Namespace) -> int:
    from llmkd.checks import verify

    return verify.main(arguments)
