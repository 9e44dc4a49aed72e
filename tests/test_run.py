"""The run folder: who may write into it, and what a run leaves there for people and programs."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmkd import __version__, config, run
from llmkd.trainers.settings import train_fields

from runs import held_out, main_with, make_inputs, metrics, recipe


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def ran(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A run with a baseline and the folder that it left."""
    folder = tmp_path_factory.mktemp("ran") / "run"
    changes = {
        "eval.datasets": held_out(inputs), "eval.baseline": True, "train.max_steps": 3,
        "eval.tasks": [{"task": "arithmetic", "levels": [1], "n": 2, "max_new_tokens": 4}],
    }  # fmt: skip
    data = recipe(inputs, folder, changes)
    assert main_with(data) == 0
    return data, folder


def parsed(data: dict[str, Any]) -> config.Recipe:
    return config.from_dict(data, train_fields=train_fields())


# -- what a run leaves -------------------------------------------------------------------------------------------------


def test_folder_holds_what_the_docstring_says(ran: tuple[dict[str, Any], Path]) -> None:
    _, folder = ran
    names = {path.name for path in folder.iterdir()}
    expected = {"recipe.yaml", "environment.json", "metrics.jsonl", "model", "summary.json", "README.md", "baseline"}
    assert expected <= names
    assert not [path for path in folder.rglob("*.partial")]
    assert {"recipe.yaml", "metrics.jsonl", "model", "summary.json"} <= {
        p.name for p in (folder / "baseline").iterdir()
    }


def test_written_recipe_is_the_resolved_one(ran: tuple[dict[str, Any], Path]) -> None:
    """It loads to the same recipe, and nothing in it is left to a default."""
    data, folder = ran
    written = config.load(folder / "recipe.yaml", train_fields=train_fields())
    named = parsed({**data, "run": {**data["run"], "name": "run"}})
    assert written == named
    plain = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert plain["objective"]["temperature"] == {"student": 1.0, "teacher": 1.0}
    assert plain["data"]["sampling"] == {"kind": "proportional"}


def test_baseline_differs_in_its_objective_alone(ran: tuple[dict[str, Any], Path]) -> None:
    _, folder = ran
    mine, theirs = (run.flat(yaml.safe_load((f / "recipe.yaml").read_text())) for f in (folder, folder / "baseline"))
    differing = {key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)}
    assert {key.split(".")[0] for key in differing} == {"run", "objective", "train", "eval"}
    assert {key for key in differing if key.startswith("train")} == {"train.method"}
    assert {key for key in differing if key.startswith("eval")} == {"eval.baseline"}
    assert {key for key in differing if key.startswith("run")} == {"run.output_dir", "run.name"}
    assert [line["step"] for line in metrics(folder)] == [line["step"] for line in metrics(folder / "baseline")]
    assert [line["tokens"] for line in metrics(folder)] == [line["tokens"] for line in metrics(folder / "baseline")]


def test_environment_names_versions_and_commit(ran: tuple[dict[str, Any], Path]) -> None:
    import torch
    import transformers
    import trl

    found = json.loads((ran[1] / "environment.json").read_text())
    assert found["llmkd"] == __version__
    assert (
        found["packages"]["torch"] == torch.__version__.split("+")[0] or found["packages"]["torch"] == torch.__version__
    )
    assert found["packages"]["transformers"] == transformers.__version__
    assert found["packages"]["trl"] == trl.__version__
    assert found["python"] and found["device"].startswith(("cpu", "NVIDIA"))


def test_summary_has_the_three_models_side_by_side(ran: tuple[dict[str, Any], Path], inputs: Path) -> None:
    found = json.loads((ran[1] / "summary.json").read_text())
    assert list(found["results"]) == ["teacher", "baseline", "student"]
    assert found["steps"] == 3 and found["processes"] == 1
    for name, result in found["results"].items():
        assert result["parameters"] > 0
        assert result["held_out"].keys() == {"prose", "chats"}
        for measures in result["held_out"].values():
            assert {"ce", "bits_per_byte"} <= measures.keys()
            assert ("kl" in measures) == ("agreement" in measures) == (name != "teacher")
        assert 0 <= result["tasks"]["arithmetic"]["1"] <= 1
    for name, folder in (("student", ran[1]), ("baseline", ran[1] / "baseline")):
        assert found["results"][name]["tokens"] == metrics(folder)[-1]["tokens"]
        assert found["results"][name]["seconds"] >= 0
    assert found["results"]["student"] != found["results"]["baseline"]


def test_card_holds_base_teacher_data_objective_and_results(ran: tuple[dict[str, Any], Path], inputs: Path) -> None:
    _, folder = ran
    card = (folder / "README.md").read_text()
    assert card == (folder / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers" and "llmkd" in front["tags"] and "distillation" in front["tags"]
    for words in (
        str(inputs / "student"), str(inputs / "teacher"), str(inputs / "prose.jsonl"), "0.75 x forward_kl (`kd`)",
        "0.5 x cross_entropy (`ce`)", __version__,
    ):  # fmt: skip
        assert words in card
    found = json.loads((folder / "summary.json").read_text())["results"]
    shown = f"{found['student']['held_out']['prose']['kl']:.3f}"
    assert re.search(rf"forward KL to the teacher: prose \| - \| [\d.]+ \| {shown} \|", card)


def test_table_is_printed(
    ran: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main_with(ran[0], "run.resume=auto") == 0
    shown = capsys.readouterr().out
    for words in ("teacher", "baseline", "student", "parameters", "tokens seen", "arithmetic level 1", str(ran[1])):
        assert words in shown


# -- whose folder it is ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(inputs: Path, tmp_path: Path) -> dict[str, Any]:
    return recipe(inputs, tmp_path / "run")


@pytest.mark.parametrize("content", [None, [], ["notes.txt"], ["recipe.yaml", "environment.json"]])
def test_folder_without_a_run_is_taken(small: dict[str, Any], tmp_path: Path, content: list[str] | None) -> None:
    if content is not None:
        (tmp_path / "run").mkdir()
    for name in content or []:
        (tmp_path / "run" / name).write_text("{}")
    run.claim(parsed(small), "x.yaml")
    assert config.load(tmp_path / "run" / "recipe.yaml", train_fields=train_fields()) == parsed(small)
    if content == ["notes.txt"]:
        assert (tmp_path / "run" / "notes.txt").read_text() == "{}"


@pytest.mark.parametrize("trace", ["metrics.jsonl", "checkpoint-5", "model", "adapter", "summary.json"])
def test_trace_of_a_run_is_seen(small: dict[str, Any], tmp_path: Path, trace: str) -> None:
    (tmp_path / "run" / trace).mkdir(parents=True)
    for resume in ("never", "auto"):
        small["run"]["resume"] = resume
        with pytest.raises(run.FolderInUse, match=trace):
            run.claim(parsed(small), "x.yaml")
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(parsed(small).to_dict()))
    run.claim(parsed(small), "x.yaml")
    small["run"]["resume"] = "never"
    with pytest.raises(run.FolderInUse, match=r"x\.yaml: run\.output_dir: .* holds a run already"):
        run.claim(parsed(small), "x.yaml")


@pytest.mark.parametrize(
    ("key", "value", "free"),
    [
        ("name", "another", True), ("report_to", "tensorboard", True),
        ("hub", {"model_id": "a/b"}, True), ("seed", 7, False), ("world_size", 2, False),
    ],
)  # fmt: skip
def test_what_a_resumed_run_may_change(small: dict[str, Any], tmp_path: Path, key: str, value: Any, free: bool) -> None:
    run.claim(parsed(small), "x.yaml")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    changed = {**small, "run": {**small["run"], key: value, "resume": "auto"}}
    if free:
        run.claim(parsed(changed), "x.yaml")
        return
    with pytest.raises(run.FolderInUse, match=rf"x\.yaml: run\.{key}: {value!r}, but .* was started with"):
        run.claim(parsed(changed), "x.yaml")


def test_flat_names_every_leaf() -> None:
    tree = {"a": {"b": 1, "c": None}, "d": [{"e": False}, 2], "f": [], "g": {}}
    assert run.flat(tree) == {"a.b": 1, "d.0.e": False, "d.1": 2}


def test_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    run.write_json(path, {"a": "é"})
    assert json.loads(path.read_text()) == {"a": "é"}

    def half(self: Path, text: str, encoding: str) -> None:
        with self.open("w", encoding=encoding) as file:
            file.write(text[:3])
        raise OSError("killed here")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="killed here"):
        run.write_json(path, {"b": 2})
    assert json.loads(path.read_bytes()) == {"a": "é"}


def test_run_is_finished_when_it_has_its_summary(tmp_path: Path) -> None:
    assert run.finished(tmp_path) is None
    run.write_json(tmp_path / "summary.json", {"steps": 3})
    assert run.finished(tmp_path) == {"steps": 3}


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_commit_is_what_git_says(tmp_path: Path) -> None:
    """On a branch, after its reference was packed, detached, and outside of a repository."""
    repository = tmp_path / "repository"
    (repository / "package").mkdir(parents=True)
    try:
        git(repository, "init", "-q")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    git(repository, "commit", "-q", "--allow-empty", "-m", "first")
    head = git(repository, "rev-parse", "HEAD").strip()
    assert run.commit(repository / "package") == head
    git(repository, "pack-refs", "--all")
    assert run.commit(repository / "package") == head
    git(repository, "checkout", "-q", "--detach")
    assert run.commit(repository / "package") == head
    assert run.commit(tmp_path) is None
