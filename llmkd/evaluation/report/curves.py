"""The charts of what runs logged step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from llmkd.evaluation.report import markup
from llmkd.evaluation.report.charts import REFERENCE, Chart, Draw, Series
from llmkd.evaluation.report.reading import Run, finite

UNITS = {
    "loss": "nats/token", "learning_rate": "", "grad_norm": "", "ce": "nats/token", "kl": "nats/token",
    "entropy": "nats/token", "teacher_entropy": "nats/token", "bits_per_byte": "bits/byte", "agreement": "share",
}  # fmt: skip
TITLES = {
    "loss": "Loss", "learning_rate": "Learning rate", "grad_norm": "Gradient norm", "ce": "Cross-entropy",
    "kl": "Forward KL to the teacher", "entropy": "Entropy of the student", "teacher_entropy": "Entropy of the teacher",
    "bits_per_byte": "Bits per byte", "agreement": "Top-1 agreement with the teacher",
    "student_entropy": "Entropy of the student",
}  # fmt: skip
ORDER = ("bits_per_byte", "ce", "kl", "agreement", "entropy")
NOT_SCHEDULES = ("value", "loss", "reverse_kl")


def training(runs: Sequence[Run], draw: Draw) -> str:
    """Loss, the terms, and how the optimizer went."""
    terms = _keys(runs, lambda key: key.count("/") == 1 and key.rsplit("/", 1)[1] in NOT_SCHEDULES)
    first = [key for key in terms if not key.startswith("eval/")]
    figures = [_over_steps(runs, "loss", "Loss", "nats/token", draw)]
    figures += [_over_steps(runs, key, _term(runs, key), "nats/token", draw) for key in first]
    others = ("agreement", "student_entropy", "teacher_entropy", "grad_norm", "learning_rate")
    figures += [_over_steps(runs, key, _title(key), _unit(key), draw) for key in others]
    return markup.grid(figures)


def schedules(runs: Sequence[Run], draw: Draw) -> str:
    """Weights and knobs that a schedule moved, as they were logged."""
    terms = {name for run in runs for name in (run.of("objective", "terms") or {})}

    def moved(key: str) -> bool:
        head, _, tail = key.rpartition("/")
        return head in terms and tail not in NOT_SCHEDULES

    return markup.grid([
        _over_steps(runs, key, "{}: {}".format(*key.rsplit("/", 1)), "", draw) for key in _keys(runs, moved)
    ])  # fmt: skip


def held_out(runs: Sequence[Run], draw: Draw) -> str:
    """A row of charts for each measure, one for each domain; where nothing was measured on the way, the terms' values
    on the rows that were trained on."""
    keys = _keys(runs, lambda key: key.startswith("eval/") and key.count("/") == 2)
    domains = list(dict.fromkeys(key.split("/")[1] for key in keys))
    domains.sort(key=lambda domain: domain == "mean")
    measures = list(dict.fromkeys(key.split("/")[2] for key in keys))
    measures = [m for m in measures if m != "teacher_entropy"]
    measures.sort(key=lambda m: ORDER.index(m.split("@")[0]) if m.split("@")[0] in ORDER else len(ORDER))
    out = []
    for name in measures:
        figures = [_panel(runs, domain, name, draw) for domain in domains]
        out.append(markup.part(_title(name), markup.grid(figures, small=True)))
    return "".join(out) or _by_domain(runs, draw)


def throughput(runs: Sequence[Run], draw: Draw) -> str:
    """Tokens per second between log lines, tokens and time, and memory."""
    rates = [Series(run.name, slot, rate(run)) for slot, run in enumerate(runs)]
    memory = [Series(run.name, slot, [(step, b and b / 1e9) for step, b in run.points("peak_memory")])
              for slot, run in enumerate(runs)]  # fmt: skip
    clock = [Series(run.name, slot, run.points("seconds")) for slot, run in enumerate(runs)]
    charts = [
        Chart("Speed", "step", "counted tokens/s", rates,
              note="Between two log lines; evaluation and checkpoints are in the time."),
        Chart("Time", "step", "seconds of training", clock),
        Chart("Peak memory", "step", "GB", memory, note="The most that the first process had held by then: on its GPU, "
              "or on a CPU in resident pages."),
    ]  # fmt: skip
    figures = [draw(chart) for chart in charts]
    figures.append(_over_steps(runs, "tokens", "Tokens", "counted tokens", draw))
    return markup.grid(figures)


def rate(run: Run) -> list[tuple[float, float | None]]:
    """``(step, tokens per second since the log line before)``."""
    lines = [line for line in run.lines if finite(line.get("tokens")) and finite(line.get("seconds"))]
    found: list[tuple[float, float | None]] = []
    for before, line in pairwise(lines):
        spent, counted = line["seconds"] - before["seconds"], line["tokens"] - before["tokens"]
        if spent > 0 and counted >= 0:
            found.append((float(line["step"]), counted / spent))
    return found


def _panel(runs: Sequence[Run], domain: str, measure: str, draw: Draw) -> str:
    key = f"eval/{domain}/{measure}"
    series = [Series(run.name, slot, run.points(key)) for slot, run in enumerate(runs)]
    baselines = [run.baseline for run in runs if run.baseline]
    if baselines and baselines[0].points(key):
        series.append(Series("baseline", REFERENCE, baselines[0].points(key)))
    rules = _teachers(runs, domain, measure)
    return draw(Chart(domain, "step", _unit(measure), series, rules=rules, part=_title(measure)))


def _teachers(runs: Sequence[Run], domain: str, measure: str) -> list[tuple[str, float]]:
    """What the teachers are worth on the same rows, once where runs share them."""
    found: dict[str, float] = {}
    for run in runs:
        for role, result in (run.summary or {}).get("results", {}).items():
            if role in ("student", "baseline") or not isinstance(result, Mapping):
                continue
            value = finite(result.get("held_out", {}).get(domain, {}).get(measure))
            if value is not None:
                found.setdefault(role, value)
    return list(found.items())


def _by_domain(runs: Sequence[Run], draw: Draw) -> str:
    keys = _keys(runs, lambda key: key.count("/") == 2 and key.split("/")[1] in NOT_SCHEDULES)
    figures = [_over_steps(runs, key, key.rsplit("/", 1)[1] + ": " + key.split("/")[0], "nats/token", draw)
               for key in keys]  # fmt: skip
    body = markup.grid(figures)
    return body and markup.paragraph("Nothing was measured on held-out rows on the way (train.eval_strategy): these "
                                     "are the terms on the rows trained on.", "note") + body  # fmt: skip


def _over_steps(runs: Sequence[Run], key: str, title: str, unit: str, draw: Draw) -> str:
    series = [Series(run.name, slot, run.points(key)) for slot, run in enumerate(runs)]
    return draw(Chart(title, "step", unit, series))


def _keys(runs: Sequence[Run], wanted: Callable[[str], bool]) -> list[str]:
    return [key for key in dict.fromkeys(key for run in runs for key in run.logged()) if wanted(key)]


def _title(key: str) -> str:
    base, _, teacher = key.partition("@")
    if base in TITLES:
        return TITLES[base] + (f" {teacher}" if teacher else "")
    return key


def _term(runs: Sequence[Run], key: str) -> str:
    """``kd: forward_kl``, with what the runs understand by the name."""
    name, what = key.rsplit("/", 1)
    kinds = dict.fromkeys(str(kind) for run in runs if (kind := run.of("objective", "terms", name, "term")))
    return f"{name}: {', '.join(kinds) or 'term'}" + (f", {what}" if what != "value" else "")


def _unit(key: str) -> str:
    base = key.split("@")[0]
    if base.endswith("entropy") or base.rsplit("/", 1)[-1] in NOT_SCHEDULES:
        return "nats/token"
    return UNITS.get(base, "")
