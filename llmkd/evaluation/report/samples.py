"""Completions side by side: what the data says, what each run says, and what it said earlier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmkd.evaluation.report import markup
from llmkd.evaluation.report.charts import swatch
from llmkd.evaluation.report.reading import Line, Run

MOST_PROMPTS = 12
MOST_LETTERS = 1500
MOST_STEPS = 6

Prompt = tuple[str, str]


def samples(runs: Sequence[Run]) -> str:
    """The latest completions of each prompt, of all runs and the first baseline, beside the reference."""
    logged: dict[Prompt, dict[int, list[Line]]] = {}
    everybody = [*runs, *[run.baseline for run in runs if run.baseline][:1]]
    for index, run in enumerate(everybody):
        for line in run.samples:
            prompt = (str(line.get("domain", "")), str(line.get("prompt", "")))
            logged.setdefault(prompt, {}).setdefault(index, []).append(line)
    shown = list(logged.items())[:MOST_PROMPTS]
    left_out = len(logged) - len(shown)
    note = markup.paragraph(f"{left_out} more prompts are in samples.jsonl.", "note") if left_out else ""
    names = [run.name for run in runs] + ["baseline"]
    return "".join(_one(i, *pair, names, len(runs)) for i, pair in enumerate(shown, 1)) + note


def _one(number: int, prompt: Prompt, lines: Mapping[int, Sequence[Line]], names: Sequence[str], runs: int) -> str:
    domain, asked = prompt
    first = next(iter(lines.values()))[-1]
    sides = [side("reference", first.get("reference", ""))]
    for index, said in lines.items():
        mark = swatch(index) if index < runs else ""
        latest = said[-1]
        sides.append(side(names[index], latest.get("completion", ""), mark, latest.get("step"), _earlier(said[:-1])))
    return (
        f'<article class="sample"><h3>{markup.text(domain)}, prompt {number}</h3><p class="side">prompt</p>'
        f'{said_box(asked)}<div class="sides">{"".join(sides)}</div></article>'
    )


def said_box(words: Any, kind: str = "said") -> str:
    shown = markup.text(markup.shortened(str(words), MOST_LETTERS))
    return f'<div class="{kind}" tabindex="0">{shown if shown.strip() else "(nothing, or white space)"}</div>'


def side(name: str, words: Any, mark: str = "", step: Any = None, more: str = "") -> str:
    at = f", step {markup.text(step)}" if step is not None else ""
    return f'<div><p class="side">{mark}{markup.text(name)}{at}</p>{said_box(words)}{more}</div>'


def _earlier(lines: Sequence[Line]) -> str:
    """What was said at earlier evaluations, the newest first; of many, evenly spread ones."""
    if not lines:
        return ""
    every = max(1, -(-len(lines) // MOST_STEPS))
    chosen = list(reversed(lines))[::every]
    said = [(markup.text(line.get("step")), said_box(line.get("completion", ""))) for line in chosen]
    body = "".join(f'<p class="side">step {step}</p>{words}' for step, words in said)
    return markup.fold("At earlier steps", body)
