"""Tasks of a recipe as the page tells of them."""

import json
from pathlib import Path
from typing import Any

import yaml

from llmkd.evaluation.report.facts import asked_and_reached, columns_of, results
from llmkd.evaluation.report.reading import read_run

from run_folders import write_run

TASKS = [{"task": "countdown", "name": "hard"}, {"task": "zebra"}]
INTERVALS = {"hard": {"pass@8": {"value": 0.125, "low": 0.1, "high": 0.2, "n": 8}}}


def with_tasks(folder: Path, found: dict[str, Any], intervals: dict[str, Any] | None = None) -> Any:
    write_run(folder, name=folder.name, baseline=False)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["eval"]["tasks"] = TASKS
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    summary = json.loads((folder / "summary.json").read_text())
    for of in summary["results"].values():
        of |= {"tasks": found} | ({} if intervals is None else {"task_intervals": intervals})
    (folder / "summary.json").write_text(json.dumps(summary))
    return read_run(folder)


def test_task_is_told_by_its_name(tmp_path: Path) -> None:
    run = with_tasks(tmp_path / "run", {"hard": {"pass@8": 0.125}, "zebra": {"pass@1": 0.0}})
    assert "asked for, there: hard, zebra" in asked_and_reached([run])
    page = results([run])
    assert "hard: pass@8" in page and "12.5%" in page and "zebra: pass@1" in page


def test_task_that_is_not_there_is_told(tmp_path: Path) -> None:
    run = with_tasks(tmp_path / "run", {"countdown": {"pass@1": 0.0}, "zebra": {"pass@1": 0.0}})
    assert "asked for, not there: hard" in asked_and_reached([run])


def test_teacher_of_an_older_run_without_intervals_is_the_same_teacher(tmp_path: Path) -> None:
    found = {"hard": {"pass@8": 0.125}, "zebra": {}}
    runs = [with_tasks(tmp_path / "new", found, INTERVALS), with_tasks(tmp_path / "old", found)]
    assert [name for name in columns_of(runs) if "teacher" in name] == ["teacher"]
    runs = [runs[0], with_tasks(tmp_path / "other", {"hard": {"pass@8": 0.25}, "zebra": {}})]
    assert [name for name in columns_of(runs) if "teacher" in name] == ["teacher", "teacher of other"]
