"""What the README says can be done: its commands, keys, files and tables exist and are current."""

import importlib.util
import re
from pathlib import Path

import pytest

from llmkd import cli, config
from llmkd.config.overrides import apply
from llmkd.methods import markdown
from llmkd.terms import TERMS
from llmkd.terms import markdown as terms_markdown
from llmkd.trainers.settings import train_fields

from readme_blocks import README, ROOT, block, quickstart

DOCUMENTS = [
    "README.md", "CONTRIBUTING.md", "LOG.md", "recipes/README.md", "eval/tasks/README.md", "eval/studies/README.md",
]  # fmt: skip
every_document = pytest.mark.parametrize("name", DOCUMENTS)


def text(name: str = "README.md") -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def first_screen() -> str:
    return "\n".join(README.read_text(encoding="utf-8").splitlines()[:40])


@pytest.mark.parametrize("command", ["make demo", "make test", "make test-full"])
def test_command_is_in_the_first_screen(command: str) -> None:
    assert command in first_screen()


@every_document
def test_make_targets_exist(name: str) -> None:
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text(name), re.MULTILINE))
    assert named <= targets()


@every_document
def test_modules_exist(name: str) -> None:
    for module in re.findall(r"-m (llmkd[\w.]*)", text(name)):
        assert importlib.util.find_spec(module), module


@every_document
def test_links_and_paths_exist(name: str) -> None:
    folder = (ROOT / name).parent
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text(name)) if "://" not in link]
    missing = [link for link in links if not (folder / link).exists()]
    paths = re.findall(r"\b(?:recipes|tests|llmkd)/[\w./-]+\w\.(?:yaml|py|md)\b", text(name))
    assert not missing + [path for path in paths if not (ROOT / path).exists()]


@every_document
def test_commands_of_llmkd_exist(name: str) -> None:
    named = set(re.findall(r"`llmkd ([a-z]+)", text(name)))
    assert named <= {"methods", *cli.MODULES, *cli.NOT_BUILT}


def test_shown_recipe_is_the_quickstart() -> None:
    assert block(text(), "recipe") == quickstart(), "run: python tests/readme_blocks.py"


def test_table_of_methods_is_current() -> None:
    assert block(text(), "methods") == markdown(), "run: python tests/readme_blocks.py"


@pytest.mark.parametrize("name", ["demo-table", "teacher-table"])
def test_measured_table_is_there(name: str) -> None:
    assert "|---" in block(text(), name)


@every_document
def test_overrides_are_accepted(name: str) -> None:
    """Every `section.key=value` in the text applies to a recipe that has what it names."""
    sections = "|".join(config.Recipe.model_fields)
    said = text(name).split("<!-- methods -->")  # the changes in that table go together: tests/test_methods.py
    said = said[0] + said[-1].split("<!-- /methods -->")[-1]
    for override in re.findall(rf"(?<![\w.])((?:{sections})\.[\w.]+=[^\s`]+)", said):
        recipe: dict = {
            "run": {"output_dir": "runs/x"}, "student": {"model_name_or_path": "org/small"},
            "teachers": [{"model_name_or_path": "org/big"}], "data": {"datasets": [{"path": "rows.jsonl"}]},
            "objective": {"terms": {"kd": {"term": "forward_kl"}}}, "train": {"method": "offpolicy"},
        }  # fmt: skip
        apply(recipe, override)
        config.from_dict(recipe, train_fields=train_fields())


FIELDS = ["over_long", "muon_learning_rate", "early_stopping_patience", "metric_for_best_model", "packing", "max_steps"]


@pytest.mark.parametrize("key", FIELDS)
def test_named_field_of_train_exists(key: str) -> None:
    assert f"`{key}" in text() or f"train.{key}" in text()
    assert key in train_fields()


def test_table_of_terms_is_current_and_whole() -> None:
    assert block(text(), "terms") == terms_markdown(), "run: python tests/readme_blocks.py"
    assert list(TERMS) == re.findall(r"^\| `(\w+)` \|", block(text(), "terms"), re.MULTILINE)


def test_run_folder_is_described_in_full() -> None:
    """Every name that `llmkd.run` lists for the run folder stands in the README."""
    listed = (ROOT / "llmkd" / "run.py").read_text(encoding="utf-8").split('"""')[1]
    names = re.findall(r"^(\w[\w.-]*/?)(?= {2,})", listed, re.MULTILINE)
    assert len(names) >= 8
    assert all(name in text() for name in names)


@every_document
def test_lines_fit(name: str) -> None:
    starts = ("|", "![", "    - {path")
    long = [line for line in text(name).splitlines() if len(line) > 120 and not line.startswith(starts)]
    assert not long


def test_markers_are_paired() -> None:
    found = re.findall(r"<!-- (/?)([\w-]+) -->", Path(README).read_text(encoding="utf-8"))
    assert [name for slash, name in found if not slash] == [name for slash, name in found if slash]
