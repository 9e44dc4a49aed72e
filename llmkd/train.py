"""``accelerate launch -m llmkd.train RECIPE [section.key=value ...]``: one recipe in, a distilled student out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llmkd import config

USAGE = "accelerate launch -m llmkd.train RECIPE [section.key=value ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe.  0 when it ended, 2 for a mistake in the recipe or its data, 130 when it was stopped."""
    parser = argparse.ArgumentParser(
        prog="llmkd.train", usage=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__, epilog=config.help_text(),
    )  # fmt: skip
    parser.add_argument("recipe", help="a YAML file")
    parser.add_argument("overrides", nargs="*", help="changes to it, such as train.learning_rate=1e-4")
    arguments = parser.parse_args(argv)
    try:
        config.load(arguments.recipe, arguments.overrides)  # most mistakes are found before the heavy imports
        return _run(arguments.recipe, arguments.overrides)
    except KeyboardInterrupt:
        _say("stopped; run the same command with run.resume=auto to go on from the last checkpoint")
        return 130
    except Exception as error:
        theirs = isinstance(error, (ValueError, OSError)) and not os.environ.get("LLMKD_TRACEBACK")
        if theirs:
            _say(f"error: {error}")
        elif _first_to_end(before_meeting=True):
            raise
        return 2


def _run(path: str, overrides: Sequence[str]) -> int:
    from llmkd.job import run_recipe
    from llmkd.trainers.settings import train_fields

    recipe = config.load(path, overrides, train_fields=train_fields)
    return run_recipe(recipe, source=str(Path(path)))


def _say(text: str) -> None:
    """To standard error, once in a launch."""
    if _first_to_end(before_meeting=os.environ.get("LOCAL_RANK", "0") == "0"):
        print(text, file=sys.stderr, flush=True)


def _first_to_end(before_meeting: bool) -> bool:
    """Whether this process is the first of a launch to give up: the one that knows why.

    The others fail for the same reason, or because this one has left them; what they say would hide it.  They ask a
    counter in the store through which the processes met; before they have met the answer is ``before_meeting``.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return before_meeting
    try:
        return bool(dist.distributed_c10d._get_default_store().add("llmkd/ended", 1) == 1)
    except RuntimeError:  # the store has gone with the launcher
        return before_meeting


if __name__ == "__main__":
    sys.exit(main())
