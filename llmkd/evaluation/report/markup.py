"""Pieces of HTML.  Whatever comes from a run goes through ``text`` on its way."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def text(value: object) -> str:
    """Escaped, for elements and for attributes in double quotes."""
    return escape(str(value))


def section(key: str, title: str, *parts: str) -> str:
    """A section under its heading; nothing where its parts are empty."""
    body = "".join(parts)
    return f'<section id="{key}"><h2>{text(title)}</h2>{body}</section>' if body else ""


def part(title: str, body: str) -> str:
    return f"<h3>{text(title)}</h3>{body}" if body else ""


def grid(figures: Sequence[str], small: bool = False) -> str:
    body = "".join(figures)
    return f'<div class="charts{" small" if small else ""}">{body}</div>' if body else ""


def box(label: str, body: str) -> str:
    """What may be wider than the page scrolls inside; the keyboard reaches it."""
    return f'<div class="box" tabindex="0" role="region" aria-label="{text(label)}">{body}</div>'


def table(label: str, head: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[int] = ()) -> str:
    """A table in a box.  head and cells are HTML already; the first cell of a row is its heading; texts: columns that
    are words, not numbers; a row of one cell heads those that follow."""
    kinds = [' class="text"' if i in texts else "" for i in range(len(head))]
    top = "".join(f'<th scope="col"{kind}>{cell}</th>' for kind, cell in zip(kinds, head, strict=True))
    body = []
    for first, *others in rows:
        if not others:
            body.append(f'<tr class="group"><th scope="row" colspan="{len(head)}">{first}</th></tr>')
            continue
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], others, strict=True))
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return box(label, f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>")


def fold(title: str, body: str, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{text(title)}</summary>{body}</details>"


def paragraph(words: str, kind: str = "") -> str:
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def shortened(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"
