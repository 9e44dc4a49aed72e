"""Held-out rows token by token, coloured by how far student and teacher are apart, and their answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmkd.evaluation.report import markup
from llmkd.evaluation.report.charts import swatch
from llmkd.evaluation.report.fidelity import teachers_of
from llmkd.evaluation.report.measured import Found, of_kind
from llmkd.evaluation.report.reading import Run, finite
from llmkd.evaluation.report.samples import said_box, side

LEVELS = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Forward KL in nats from which a token is coloured, and coloured more."""
MOST_ROWS = 6
MOST_TOKENS = 120
MOST_ANSWERS = 6
NOT_SHOWN = ("teacher_resampled",)
Excerpt = Mapping[str, Any]


def excerpts(runs: Sequence[Run]) -> str:
    """The rows that fidelity kept, each with the tokens as every student, and the first baseline, reads them."""
    rows: dict[tuple[str, ...], list[tuple[Found, str, Excerpt]]] = {}
    for f in of_kind(runs, "fidelity"):
        for teacher, told in teachers_of(f.record.details):
            for excerpt in told.get("excerpts") or []:
                key = (str(excerpt.get("domain")), str(excerpt.get("row")), teacher, str(excerpt.get("prompt")))
                rows.setdefault(key, []).append((f, teacher, excerpt))
    shown = _spread(list(rows.items()), MOST_ROWS)
    return _legend() + "".join(_row(key, parts) for key, parts in shown) if shown else ""


def answers(runs: Sequence[Run]) -> str:
    """Problems that fidelity asked, with what teacher, students and the first baseline answer."""
    problems: dict[str, list[tuple[Found, Mapping[str, Any]]]] = {}
    for f in of_kind(runs, "fidelity"):
        for _, told in teachers_of(f.record.details):
            for sample in (told.get("answers") or {}).get("samples", []):
                problems.setdefault(str(sample.get("question")), []).append((f, sample))
    return "".join(_problem(question, parts) for question, parts in _spread(list(problems.items()), MOST_ANSWERS))


def _spread(found: list[Any], most: int) -> list[Any]:
    """Evenly spread ones, so that each domain or level is there."""
    if len(found) <= most:
        return found
    return [found[i * len(found) // most] for i in range(most)]


def _row(key: tuple[str, ...], parts: Sequence[tuple[Found, str, Excerpt]]) -> str:
    domain, row, teacher, prompt = key
    sides = []
    for f, _, excerpt in parts:
        sides.append(_side(f.owner, excerpt, "student", swatch(f.slot)))
    first = parts[0][2]
    if "baseline" in first:
        sides.append(_side("baseline", first, "baseline", ""))
    of = f", teacher {teacher}" if teacher else ""
    asked = f'<p class="side">before it</p>{said_box(prompt[-600:])}' if prompt else ""
    return (
        f'<article class="sample"><h3>{markup.text(domain)}, row {markup.text(row)}{markup.text(of)}</h3>{asked}'
        f'<div class="sides">{"".join(sides)}</div></article>'
    )


def _side(name: str, excerpt: Excerpt, model: str, mark: str) -> str:
    told = excerpt.get(model) or {}
    known = [v for v in (finite(x) for x in told.get("forward_kl", [])) if v is not None]
    mean = f": mean forward KL {sum(known) / len(known):.3f} nats" if known else ""
    tokens = "".join(_token(excerpt, told, i) for i in range(min(MOST_TOKENS, len(excerpt.get("tokens", [])))))
    head = f'<p class="side">{mark}{markup.text(name)}{mean}</p>'
    return f'<div>{head}<div class="said tokens" tabindex="0">{tokens}</div></div>'


def _token(excerpt: Excerpt, told: Mapping[str, Any], i: int) -> str:
    """One token: its divergence as colour, as a title, and, where it is coloured, as words for a screen reader."""
    word = markup.text(excerpt["tokens"][i])
    value = finite(_at(told.get("forward_kl"), i))
    if value is None:
        return word
    level = sum(value >= edge for edge in LEVELS)
    tops = {"teacher": _at((excerpt.get("teacher") or {}).get("top"), i), "model": _at(told.get("top"), i)}
    says = [f"{who}: {_likeliest(top)}" for who, top in tops.items() if top]
    title = markup.text("; ".join([f"KL {value:.3g}", *says]))
    if not level:
        return f'<span title="{title}">{word}</span>'
    return f'<span class="t h{level}" title="{title}">{word}<span class="hidden"> (KL {value:.2g}) </span></span>'


def _likeliest(tops: Sequence[Any]) -> str:
    return ", ".join(f"{str(text)!r} {p:.2f}" for text, p in tops[:2])


def _at(values: Any, i: int) -> Any:
    return values[i] if isinstance(values, Sequence) and i < len(values) else None


def _legend() -> str:
    steps = [f'<span class="t h{n}">from {edge:g}</span>' for n, edge in enumerate(LEVELS, 1)]
    return (
        '<p class="note">Forward KL of the student to the teacher at each token, in nats: '
        + " ".join(steps)
        + ". A title on each token says the number and what both would rather have said.</p>"
    )


def _problem(question: str, parts: Sequence[tuple[Found, Mapping[str, Any]]]) -> str:
    first = parts[0][1]
    said: Mapping[str, str] = first.get("completions") or {}
    sides = [side(who.replace("_", " "), said[who]) for who in said if who not in ("student", "baseline", *NOT_SHOWN)]
    sides += [side(f.owner, (s.get("completions") or {}).get("student", ""), swatch(f.slot)) for f, s in parts]
    sides += [side("baseline", said["baseline"])] if "baseline" in said else []
    title = f"{first.get('task')}, level {first.get('level')}, answer {first.get('answer')}"
    return (
        f'<article class="sample"><h3>{markup.text(title)}</h3>{said_box(question)}'
        f'<div class="sides">{"".join(sides)}</div></article>'
    )
