"""The page: the sections of runs and studies, with everything that it needs inside one file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from llmkd.evaluation.report import markup
from llmkd.evaluation.report.charts import CONFIG, figure
from llmkd.evaluation.report.reading import Run
from llmkd.evaluation.report.sections import read, sections
from llmkd.evaluation.report.studies import Study

MOST_BYTES = 3_000_000
POINTS = (600, 300, 150, 75, 36, 18)
"""Points of a curve, tried in this order until the page is small enough."""


@dataclass(frozen=True)
class Page:
    """text: of the file; ended: whether all that it shows has ended."""

    text: str
    ended: bool


def build(folders: Sequence[Path], every: int = 0) -> Page:
    """The page of runs and studies.  every: seconds after which a page of something that goes on reads itself again.

    ValueError where a folder holds neither, where the extra is missing, or where the page cannot be made small enough.
    """
    scripts = [bundle(), _resource("page.js")]
    runs, found = read(folders)
    ended = all(run.ended for run in runs) and all(study.ended for study in found)
    for most in POINTS:
        text = _document(runs, found, scripts, most, 0 if ended else every)
        if len(text.encode()) < MOST_BYTES:
            return Page(text, ended)
    raise ValueError(
        f"{len(folders)} folders: their page is larger than {MOST_BYTES:,} bytes even with {POINTS[-1]} points a "
        "curve: give fewer of them"
    )


@lru_cache(maxsize=1)
def bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script; ValueError where the package that brings them is missing."""
    if find_spec("vl_convert") is None:
        raise ValueError("llmkd report draws with Vega-Lite, which is not installed: pip install 'llmkd[report]'")
    import vl_convert

    script: str = vl_convert.javascript_bundle()
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _document(runs: Sequence[Run], found: Sequence[Study], scripts: Sequence[str], most: int, every: int) -> str:
    title = " · ".join([*(study.name for study in found), *(run.name for run in runs)])
    body = sections(runs, found, partial(figure, most=most))
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; script-src "
        + " ".join(_digest(script) for script in scripts)
    )
    live = f' data-every="{every}"' if every else ""
    config = f'<script type="application/json" id="config">{json.dumps(CONFIG, separators=(",", ":"))}</script>'
    inlined = config + "".join(f"<script>{script}</script>" for script in scripts)
    return (
        f'<!doctype html>\n<html lang="en"{live}>\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{markup.text(title)}</title>\n<style>{_resource('style.css')}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#content">Skip to the content</a>\n{_head(title, runs, found, every)}\n'
        f'{_navigation(body)}\n<main id="content">{body}</main>\n<footer><p>Written by llmkd report on '
        f"{datetime.now().strftime('%Y-%m-%d at %H:%M:%S')}. Charts: Vega-Lite. Nothing on this page comes from a "
        f"network.</p></footer>\n{inlined}\n</body>\n</html>\n"
    )


def _head(title: str, runs: Sequence[Run], found: Sequence[Study], every: int) -> str:
    said = []
    for study in found:
        seeds = study.table.get("seeds", [])
        budget = ", ".join(f"{value:,} {key}" for key, value in study.table.get("budget", {}).items() if value)
        count = len(study.table["arms"])
        each = f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} each"
        said.append(f"A study of {', '.join(part for part in (f'{count} arms', each, budget) if part)}.")
    going = [one.name for one in [*runs, *found] if not one.ended]
    lead = "".join(markup.paragraph(words, "lead") for words in said)
    if going:
        again = f" This page reads itself again every {every} seconds." if every else ""
        lead += markup.paragraph(f"Not at its end: {', '.join(going)}.{again}", "live")
    noscript = markup.paragraph("The charts need JavaScript; their values are in the tables under them.", "trouble")
    return f"<header><h1>{markup.text(title)}</h1>{lead}<noscript>{noscript}</noscript></header>"


def _navigation(body: str) -> str:
    """Links to the sections that there are, and the buttons."""
    links = []
    for piece in body.split('<section id="')[1:]:
        key, rest = piece.split('"', 1)
        heading = rest.split("<h2>", 1)[1].split("</h2>", 1)[0]
        links.append(f'<li><a href="#{key}">{heading}</a></li>')
    return (
        f'<nav aria-label="Sections"><div><ul>{"".join(links)}</ul><button type="button" id="pause" hidden></button>'
        '<button type="button" id="scheme" aria-label="Switch between light and dark" hidden></button></div></nav>'
    )


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return resources.files("llmkd.evaluation.report").joinpath(name).read_text(encoding="utf-8")
