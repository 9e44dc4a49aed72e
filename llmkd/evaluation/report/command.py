"""``llmkd report RUN...``: one page for what runs and studies have found, and the same table on the terminal."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

EVERY = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run folder, or the folder of a study")
    parser.add_argument("--output", metavar="FILE", type=Path, help="the page; left out, report.html in the folder of "
                        "the only RUN, or here for several")  # fmt: skip
    parser.add_argument("--watch", action="store_true", help="write it anew whenever something changes, until all runs "
                        "have ended or Ctrl-C")  # fmt: skip
    parser.add_argument("--every", metavar="SECONDS", type=int, default=EVERY, help=f"how often to look ({EVERY})")
    parser.add_argument("--pictures", metavar="DIR", type=Path, help="also every chart by itself, as an SVG file")
    parser.add_argument("--open", action="store_true", help="show it in a browser")


def main(arguments: argparse.Namespace) -> int:
    """0 when the page is written, 2 for a user's mistake."""
    try:
        _check(arguments)
        if arguments.watch:
            return _watch(arguments)
        _write(arguments, 0)
        _draw(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {_said(error, arguments)}", file=sys.stderr)
        return 2
    _show(arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.every < 1:
        raise ValueError(f"--every: {arguments.every} is not a number of seconds: give 1 or more")
    resolved = [folder.resolve() for folder in arguments.runs]
    for folder, path in zip(arguments.runs, resolved, strict=True):
        if resolved.count(path) > 1:
            raise ValueError(f"{folder}: given twice: name each run once")
    if arguments.output is None:
        only = len(arguments.runs) == 1 and arguments.runs[0].is_dir()
        arguments.output = (arguments.runs[0] if only else Path()) / "report.html"
    if arguments.pictures is not None and arguments.pictures.is_file():
        raise ValueError(f"--pictures: {arguments.pictures} is a file: name a folder")
    if arguments.output.is_dir():
        named = arguments.output / "report.html"
        raise ValueError(f"--output: {arguments.output} is a folder: name a file, such as {named}")


def _write(arguments: argparse.Namespace, every: int) -> bool:
    """Write the page whole or not at all.  Whether all that it shows has ended."""
    from llmkd.evaluation.report.page import build
    from llmkd.trainers.checkpoints import write_whole

    page = build(arguments.runs, every)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.output, page.text)
    return page.ended


def _draw(arguments: argparse.Namespace) -> None:
    """The charts as files, of which those of the same name are replaced."""
    if arguments.pictures is None:
        return
    from llmkd.evaluation.report.pictures import pictures
    from llmkd.trainers.checkpoints import write_whole

    arguments.pictures.mkdir(parents=True, exist_ok=True)
    for name, svg in pictures(arguments.runs):
        write_whole(arguments.pictures / name, svg)


def _watch(arguments: argparse.Namespace) -> int:
    from llmkd.evaluation.report.watching import changes

    first = True
    try:
        for _ in changes(arguments.runs, arguments.every):
            ended = _write(arguments, arguments.every)
            if first:
                print(f"watching; Ctrl-C ends it. Page: {arguments.output.resolve()}", flush=True)
                _open(arguments)
                first = False
            if ended:
                break
    except KeyboardInterrupt:
        print()
        _write(arguments, 0)  # a page that nobody writes any more must not read itself again
    _draw(arguments)
    arguments.open = False
    _show(arguments)
    return 0


def _show(arguments: argparse.Namespace) -> None:
    from llmkd.evaluation.report.terminal import show

    show(arguments.runs)
    print(f"page: {arguments.output.resolve()}", flush=True)
    if arguments.pictures is not None:
        print(f"pictures: {arguments.pictures.resolve()}", flush=True)
    _open(arguments)


def _open(arguments: argparse.Namespace) -> None:
    if arguments.open and not webbrowser.open(arguments.output.resolve().as_uri()):
        print("no browser can be opened from here: open the page by hand", file=sys.stderr)


def _said(error: Exception, arguments: argparse.Namespace) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or arguments.output}: {error.strerror or error}: name an --output that can be written"
    return str(error)
