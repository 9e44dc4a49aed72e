"""Whom a measure looks at: the student of a finished run or any saved model, its teachers, its baseline, held-out rows.

Nothing is trained and nothing is written here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from llmkd import config, modelling
from llmkd.backbone import check_family, head_rows
from llmkd.build import domains_of
from llmkd.config import DatasetSource, Eval, EvalTask, Recipe, Student, Teacher
from llmkd.data.collate import Collator
from llmkd.data.pipeline import prepare_held_out
from llmkd.data.vocabulary import compare
from llmkd.run import finished
from llmkd.teachers.local import LocalTeacher
from llmkd.trainers.held_out import HeldOut
from llmkd.trainers.settings import OffPolicySettings, train_fields

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subjects:
    """student, baseline: models to be asked as a teacher is, ``score(batch) -> States``; teachers and their tokenizers
    by name; held_out: a set for each domain, a row of it is an item; vocabulary: the rows V that all heads share;
    tasks: problems to be solved; names: what student, baseline and teachers are, for people.
    """

    student: LocalTeacher
    teachers: dict[str, LocalTeacher]
    baseline: LocalTeacher | None
    tokenizer: Any
    teacher_tokenizers: dict[str, Any]
    held_out: list[HeldOut]
    vocabulary: int
    tasks: Sequence[EvalTask]
    names: dict[str, str]

    @property
    def device(self) -> torch.device:
        return next(self.student.model.parameters()).device


def subjects_of_run(
    folder: Path,
    *,
    teacher: str | None = None,
    baseline: str | None = None,
    sources: Sequence[DatasetSource | str] = (),
    max_rows: int | None = None,
    needs_teacher: bool = True,
    device: str | None = None,
) -> Subjects:
    """The student in ``RUN/model``, the baseline in ``RUN/baseline/model`` where there is one, and what the recipe
    names.

    The teachers are loaded in the recipe's dtype, the others in the one they were saved in; nothing is autocast.

    Args:
        teacher: another teacher in place of the recipe's: a folder or a hub name.
        baseline: another baseline in place of the run's own: a folder, a hub name or a run that has ended.
        sources: other held-out data in place of ``eval.datasets``, as in ``subjects_of_models``.
        max_rows: rows of each held-out source; left out, the recipe's ``eval.max_rows``.
        needs_teacher: refuse a run without one.
        device: such as ``cuda:0``; left out, a GPU where there is one and the recipe allows it.

    Raises ValueError for a folder that holds no run, a run that has not ended, one without a teacher or without
    held-out data, and for whatever of it cannot be loaded.
    """
    recipe = recipe_of_run(folder, teacher=teacher, sources=sources, max_rows=max_rows, needs_teacher=needs_teacher)
    own = folder / "baseline"
    beside = _baseline(baseline) if baseline else _saved_student(recipe, own) if finished(own) else None
    return _subjects(
        recipe, _saved_student(recipe, folder), beside,
        "cpu" if recipe.train.options.get("use_cpu") and device is None else device,
        {"student": folder.resolve().name, "baseline": baseline or f"{folder.resolve().name}/baseline"},
    )  # fmt: skip


def subjects_of_models(
    student: str,
    teacher: str | None,
    sources: Sequence[DatasetSource | str],
    *,
    baseline: str | None = None,
    max_rows: int | None = None,
    max_length: int | None = 1024,
    batch_size: int = 8,
    tasks: Sequence[EvalTask] = (),
    device: str | None = None,
) -> Subjects:
    """Saved models (a folder, a hub name or ``llmkd/quickstart-teacher``) on data of any kind that a recipe reads.

    Args:
        sources: as in a recipe's ``eval.datasets``; a bare text is a file's path, its domain the file's name.
        baseline: what stands beside the student, a model as these or a run that has ended.
        max_rows: rows of each source.
        max_length: longest row in tokens; longer ones are cut.

    Raises ValueError where something cannot be loaded or the tokenizers differ.
    """
    recipe = recipe_of_models(
        student, teacher, sources, max_rows=max_rows, max_length=max_length, batch_size=batch_size, tasks=tasks
    )
    names = {"student": student} | ({"baseline": baseline} if baseline else {})
    return _subjects(recipe, (recipe.student, None), _baseline(baseline) if baseline else None, device, names)


def _source(source: DatasetSource | str) -> DatasetSource:
    if isinstance(source, DatasetSource):
        return source
    return DatasetSource(path=source, domain=Path(source).name.partition(".")[0] or "all")


def recipe_of_run(
    folder: Path,
    *,
    teacher: str | None = None,
    sources: Sequence[DatasetSource | str] = (),
    max_rows: int | None = None,
    needs_teacher: bool = True,
) -> Recipe:
    """The recipe of a run that has ended, changed as in ``subjects_of_run``; ValueError as there.  Loads no model."""
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(f"{folder}: is no run folder (no recipe.yaml): give run.output_dir of a run that has ended")
    if finished(folder) is None:
        raise ValueError(
            f"{folder}: the run has not ended (no summary.json): wait for it, or go on with it (run.resume=auto)"
        )
    recipe = config.load(folder / "recipe.yaml", train_fields=train_fields)
    if teacher is not None:
        recipe = recipe.model_copy(update={"teachers": [Teacher(model_name_or_path=teacher)]})
    if needs_teacher and not recipe.teachers:
        raise ValueError(f"{folder}: the run has no teacher (recipe.yaml: teachers): give one with --teacher")
    changes = {"datasets": [_source(source) for source in sources]} if sources else {}
    changes |= {"max_rows": max_rows} if max_rows is not None else {}
    recipe = recipe.model_copy(update={"eval": recipe.eval.model_copy(update=changes)})
    if not recipe.eval.datasets:
        raise ValueError(f"{folder}: the run has no held-out data (recipe.yaml: eval.datasets): give some with --data")
    return recipe


def recipe_of_models(
    student: str,
    teacher: str | None,
    sources: Sequence[DatasetSource | str],
    *,
    max_rows: int | None = None,
    max_length: int | None = 1024,
    batch_size: int = 8,
    tasks: Sequence[EvalTask] = (),
) -> Recipe:
    """What ``subjects_of_models`` is asked, as a recipe; ValueError without data.  Loads no model."""
    given = [_source(source) for source in sources]
    if not given:
        raise ValueError("there is no held-out data: give a file of rows with --data")
    return Recipe(
        run=config.Run(output_dir="unused"), student=Student(model_name_or_path=student, dtype="auto"),
        teachers=[Teacher(model_name_or_path=teacher)] if teacher else [], data=config.Data(datasets=given),
        objective=config.Objective(terms={"ce": config.Term(term="cross_entropy")}),
        train=config.Train(method="sft", options={"max_length": max_length, "per_device_eval_batch_size": batch_size}),
        eval=Eval(datasets=given, max_rows=max_rows, tasks=list(tasks)),
    )  # fmt: skip


Saved = tuple[Student, Path | None]
"""How a model is loaded, and the adapter that is put upon it."""


def _saved_student(recipe: Recipe, folder: Path) -> Saved:
    """What a run left behind: ``model/``, or its base and ``adapter/``."""
    tokenizer = str(next((folder / n for n in ("model", "adapter") if (folder / n).is_dir()), folder / "model"))
    own = {"tokenizer_name_or_path": tokenizer, "chat_template": None, "lora": None}
    if not (folder / "model").is_dir() and (folder / "adapter").is_dir():
        return recipe.student.model_copy(update=own), folder / "adapter"
    fresh = {"model_name_or_path": str(folder / "model"), "from_config": None, "revision": None, "dtype": "auto",
             "quantization": None}  # fmt: skip
    return recipe.student.model_copy(update=own | fresh), None


def _baseline(given: str) -> Saved:
    folder = Path(given)
    if not (folder / "recipe.yaml").is_file():
        return Student(model_name_or_path=given, dtype="auto"), None
    if finished(folder) is None:
        raise ValueError(f"{folder}: the baseline's run has not ended (no summary.json): wait for it, or go on with it")
    return _saved_student(config.load(folder / "recipe.yaml", train_fields=train_fields), folder)


def _subjects(
    recipe: Recipe, saved: Saved, other: Saved | None, device: str | None, names: Mapping[str, str]
) -> Subjects:
    names = {**names, **{t.name: t.model_name_or_path for t in recipe.teachers}}
    tokenizer = modelling.load_tokenizer(saved[0])
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    student = _asked("student", saved, tokenizer, place)
    baseline = _asked("baseline", other, tokenizer, place) if other else None
    own = [t.name for t in recipe.teachers if t.template == "own"]
    teachers, tokenizers = {}, {}
    for section in recipe.teachers:
        model = modelling.load_teacher(section).to(place)
        check_family(model, packed=False, where=f"teachers.{section.name}")
        teachers[section.name] = LocalTeacher(section.name, model, own_rendering=section.name in own)
        tokenizers[section.name] = modelling.load_teacher_tokenizer(section)
    others = {name: (tokenizers[name], teacher.model) for name, teacher in teachers.items()}
    if baseline and other:
        others["baseline"] = (modelling.load_tokenizer(other[0]), baseline.model)
    vocabulary = _shared_rows(student.model, tokenizer, others, names)
    return Subjects(
        student, teachers, baseline, tokenizer, tokenizers,
        _held_out(recipe, tokenizer, {name: tokenizers[name] for name in own}), vocabulary, recipe.eval.tasks,
        names,
    )  # fmt: skip


def _shared_rows(student: nn.Module, tokenizer: Any, others: Mapping[str, Any], names: Mapping[str, str]) -> int:
    rows = head_rows(student)
    for name, (theirs, model) in others.items():
        shared, note = compare(tokenizer, theirs, head_rows(student), head_rows(model), (names["student"], names[name]))
        if note:
            logger.warning(note)
        rows = min(rows, shared)
    return rows


def _asked(name: str, saved: Saved, tokenizer: Any, device: torch.device) -> LocalTeacher:
    section, adapter = saved
    model = modelling.load_student(section, tokenizer)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    model = model.to(device).eval()
    check_family(model, packed=False, where=name)
    return LocalTeacher(name, model)


def _held_out(recipe: Recipe, tokenizer: Any, own: Mapping[str, Any]) -> list[HeldOut]:
    """Rows are items, so they are not packed, whatever the recipe does."""
    defaults = {spec.name: spec.default for spec in fields(OffPolicySettings)}
    settings = SimpleNamespace(**(defaults | recipe.train.options | {"eval_packing": False}))
    collate = Collator(
        pad_id=tokenizer.pad_token_id, packed=False, teachers=tuple(own),
        teacher_pad_ids=tuple(t.pad_token_id for t in own.values()),
    )  # fmt: skip
    rows = prepare_held_out(recipe.eval, settings, tokenizer, own, domains_of(recipe))
    return [HeldOut(name, found, collate, settings.per_device_eval_batch_size) for name, found in rows.items()]
