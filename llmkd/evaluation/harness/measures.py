"""Our own names beside lm_eval's: a table, name -> function that says what it will measure and how.

Another measure is one function here: options, the candidate and the settings of the task in, a Plan out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkd.evaluation.harness.candidate import Candidate, find, weights
from llmkd.evaluation.harness.local import files
from llmkd.evaluation.harness.options import Options, Settings
from llmkd.evaluation.measures.found import Found
from llmkd.evaluation.results import fingerprint

QUICKSTART = "llmkd/quickstart"
ROWS = 120
"""Rows of each domain of the quickstart, where there is neither a run nor --data."""
LENGTH = 256


@dataclass(frozen=True)
class Plan:
    """version and settings: what the numbers belong to; measure: what takes them."""

    version: str
    settings: Mapping[str, Any]
    measure: Callable[[], Found] = field(compare=False)


def fidelity(options: Options, candidate: Candidate, settings: Settings) -> Plan:
    """The student against its teacher.  ValueError where no teacher is known."""
    from llmkd.evaluation.measures import fidelity as measures

    if candidate.run is None and options.teacher is None:
        raise ValueError(f"{options.model_or_run} is no run, whose recipe would name a teacher: give --teacher MODEL")
    about = _about(options, candidate, settings)
    return Plan(measures.VERSION, about, lambda: measures.fidelity(_subjects(options, candidate, settings)))


def calibration(options: Options, candidate: Candidate, settings: Settings) -> Plan:
    """The student's, and beside it as ``baseline/...`` and ``TEACHER/...`` that of the others where there are any."""
    from llmkd.evaluation.measures import calibration as measures

    def measure() -> Found:
        subjects = _subjects(options, candidate, settings, needs_teacher=False)
        models = {"student": subjects.student, "baseline": subjects.baseline, **subjects.teachers}
        found = {}
        for name, model in models.items():
            if model is not None:
                batches = (b for part in subjects.held_out for b in part.batches(0, 1, subjects.device))
                found[name] = measures.measure_calibration(model, batches, vocabulary=subjects.vocabulary)
        own = found.pop("student")
        others = {f"{name}/{key}": metric for name, part in found.items() for key, metric in part.metrics.items()}
        details = {
            **own.details,
            "others": {name: part.details for name, part in found.items()},
            "names": subjects.names,
        }
        return Found({**own.metrics, **others}, details, own.items, own.settings)

    return Plan(measures.VERSION, _about(options, candidate, settings), measure)


def bias(options: Options, candidate: Candidate, settings: Settings) -> Plan:
    """CrowS-Pairs by group, and WEAT where there is a ``weat_words.json``; beside them the teacher's, and as ``gap``
    how much further the student leans.  MissingFile without pairs in --data or a file ``crows_pairs``."""
    from llmkd.evaluation.measures import bias as measures

    pairs = Path(options.data) if options.data else files.find("crows_pairs", (*files.ENDS, ".csv"))
    words = _words()
    teacher = next(iter(_teachers(options, candidate)), None)

    def leaning(folder: Path, adapter: Path | None) -> tuple[Found, Found]:
        model, tokenizer = _loaded(folder, adapter, options.device)
        crows = measures.crows_pairs(model, tokenizer, measures.read_pairs(pairs)[: _rows(settings)])
        embeddings = model.model.get_input_embeddings().weight
        return crows, measures.weat(embeddings, tokenizer, measures.read_words(words)) if words else Found({})

    def measure() -> Found:
        crows, weat = leaning(candidate.folder, candidate.adapter)
        metrics = {**crows.metrics, **weat.metrics}
        details: dict[str, Any] = {"crows_pairs": crows.details, "weat": weat.details}
        if teacher is not None:
            theirs, theirs_weat = leaning(weights(teacher), None)
            metrics |= {f"teacher/{name}": m for name, m in {**theirs.metrics, **theirs_weat.metrics}.items()}
            metrics |= measures.group_gaps(crows, theirs)
            details["teacher"] = {"name": teacher, "crows_pairs": theirs.details, "weat": theirs_weat.details}
        return Found(metrics, details, crows.items)

    about = {
        "teachers": [fingerprint(weights(teacher))] if teacher else [], "limit": _rows(settings),
        "data": [_digest(path) for path in (pairs, words) if path is not None],
    }  # fmt: skip
    return Plan(measures.VERSION, about, measure)


def efficiency(options: Options, candidate: Candidate, settings: Settings) -> Plan:
    """Sizes, and speeds on this machine, of which the settings name what they depend on."""
    import torch

    from llmkd.evaluation.measures import efficiency as measures

    place = torch.device(_place(options.device))
    rows = options.batch_size if isinstance(options.batch_size, int) else 1
    about = {
        "batch_size": rows, "device": measures.device_name(place),
        "threads": torch.get_num_threads() if place.type == "cpu" else None,
    }  # fmt: skip

    def measure() -> Found:
        model, _ = _loaded(candidate.folder, candidate.adapter, options.device)
        return measures.measure_efficiency(model.model, batch_size=rows)

    return Plan(measures.VERSION, about, measure)


def _place(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _words() -> Path | None:
    try:
        return files.find("weat_words", (".json",))
    except files.MissingFile:
        return None


def _digest(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"--data: {path} does not exist: give a file of pairs")
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _loaded(folder: Path, adapter: Path | None, device: str | None) -> tuple[Any, Any]:
    """A saved model as a Teacher that answers ``score(batch)``, and its tokenizer."""
    from llmkd import modelling
    from llmkd.config import Student
    from llmkd.teachers.local import LocalTeacher

    section = Student(model_name_or_path=str(folder), dtype="auto")
    tokenizer = modelling.load_tokenizer(section)
    model = modelling.load_student(section, tokenizer)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return LocalTeacher("model", model.to(_place(device)).eval()), tokenizer


def _subjects(options: Options, candidate: Candidate, settings: Settings, needs_teacher: bool = True) -> Any:
    from llmkd.evaluation.measures import subjects

    rows = _rows(settings)
    if candidate.run is not None:
        sources = [_source(options.data)] if options.data else ()
        return subjects.subjects_of_run(
            candidate.run, teacher=options.teacher, baseline=options.baseline, sources=sources, max_rows=rows,
            needs_teacher=needs_teacher, device=options.device,
        )  # fmt: skip
    sources = [options.data] if options.data else _quickstart(candidate)
    length = options.model_args.get("max_length", LENGTH)
    return subjects.subjects_of_models(
        str(candidate.folder), options.teacher, sources, baseline=options.baseline, max_rows=rows or ROWS,
        max_length=length, device=options.device,
    )  # fmt: skip


def _source(file: str) -> Any:
    from llmkd.config import DatasetSource

    return DatasetSource(path=file, domain=Path(file).name.partition(".")[0] or "all")


def _quickstart(candidate: Candidate) -> list[Any]:
    """Held-out code and prose, and the problems where the model can be asked in a chat."""
    from llmkd.config import DatasetSource

    domains = ("code", "prose", "math") if candidate.has_chat_template() else ("code", "prose")
    return [DatasetSource(path=QUICKSTART, name=name, split="heldout", domain=name) for name in domains]


def _rows(settings: Settings) -> int | None:
    if settings.limit is None:
        return None
    if isinstance(settings.limit, float):
        raise ValueError(f"--limit: {settings.limit} is a share, and our own measures take a number of rows: give one")
    return settings.limit


def _about(options: Options, candidate: Candidate, settings: Settings) -> dict[str, Any]:
    """What the numbers depend on beside the model: teachers and baseline by their weights, and the rows."""
    recipe = candidate.recipe()
    return {
        "teachers": [fingerprint(weights(name)) for name in _teachers(options, candidate)],
        "baseline": _baseline(options, candidate),
        "data": _digest_of_rows(options, recipe),
        "limit": _rows(settings),
        "max_length": None if candidate.run is not None else options.model_args.get("max_length", LENGTH),
    }


def _baseline(options: Options, candidate: Candidate) -> str | None:
    """The weights of the one in --baseline, else of the run's own."""
    if options.baseline:
        return find(options.baseline).fingerprint
    own = candidate.run / "baseline" / "model" if candidate.run is not None else None
    return fingerprint(own) if own is not None and own.is_dir() else None


def _teachers(options: Options, candidate: Candidate) -> list[str]:
    """The one in --teacher, else those of the run."""
    if options.teacher:
        return [options.teacher]
    return [section["model_name_or_path"] for section in candidate.recipe().get("teachers") or []]


def _digest_of_rows(options: Options, recipe: Mapping[str, Any]) -> str:
    """Of the file in --data, or of what the recipe says of evaluation, with the files that it names."""
    said = {part: recipe.get(part) for part in ("data", "eval", "train")} if options.data is None else options.data
    digest = hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=8)
    sources = (recipe.get("eval") or {}).get("datasets") or []
    for name in [options.data] if options.data else [source.get("path", "") for source in sources]:
        if Path(name).is_file():
            digest.update(Path(name).read_bytes())
    return digest.hexdigest()


Measure = Callable[[Options, Candidate, Settings], Plan]
MEASURES: Mapping[str, Measure] = {
    "fidelity": fidelity,
    "calibration": calibration,
    "bias": bias,
    "efficiency": efficiency,
}
