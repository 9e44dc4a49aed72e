"""MODEL_OR_RUN: what is taken for a model, and what is refused with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkd.evaluation.harness import candidate
from llmkd.modelling import EMBEDDED


def test_a_run_is_its_model_and_its_results_go_into_the_run(final_model: Path) -> None:
    run = final_model.parent
    found = candidate.find(str(run))
    assert found.folder == final_model
    assert found.results(Path("elsewhere")) == run / "eval"


def test_a_folder_keeps_its_results_outside(model_folder: Path) -> None:
    found = candidate.find(str(model_folder))
    assert found.run is None
    assert found.results(None) == Path("eval-results") / found.name
    assert found.results(Path("out")) == Path("out")


def test_a_run_and_its_model_folder_are_the_same_weights(final_model: Path) -> None:
    assert candidate.find(str(final_model)).fingerprint == candidate.find(str(final_model.parent)).fingerprint


def test_the_embedded_teacher_is_found_by_its_name() -> None:
    assert candidate.find(EMBEDDED).name == EMBEDDED


def test_an_adapter_alone_is_its_base_with_it(model_folder: Path, final_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "lora"
    shutil.copytree(model_folder, run / "adapter")
    (run / "recipe.yaml").write_text(f"student: {{model_name_or_path: {model_folder}}}\n")
    (run / "summary.json").write_text("{}")
    found = candidate.find(str(run))
    assert (found.folder, found.adapter) == (model_folder, run / "adapter")
    assert found.fingerprint != candidate.find(str(model_folder)).fingerprint
    with (run / "adapter" / "model.safetensors").open("ab") as file:
        file.write(b" ")
    assert candidate.find(str(run)).fingerprint != found.fingerprint


def test_a_hub_name_is_the_snapshot_that_was_fetched(model_folder: Path) -> None:
    """As the hub's client keeps it, without the network."""
    from huggingface_hub.constants import HF_HUB_CACHE

    kept = Path(HF_HUB_CACHE) / "models--somebody--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    shutil.copytree(model_folder, kept / "snapshots" / ("0" * 40))
    found = candidate.find("somebody/tiny")
    assert found.name == "somebody/tiny"
    assert found.folder == kept / "snapshots" / ("0" * 40)
    assert found.fingerprint == candidate.find(str(model_folder)).fingerprint
    assert found.results(None) == Path("eval-results") / "somebody__tiny"


def changed(folder: Path, target: Path, **config: object) -> Path:
    shutil.copytree(folder, target)
    saved = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(saved | config))
    return target


@pytest.fixture
def wrong(request: pytest.FixtureRequest, tmp_path: Path, model_folder: Path) -> str:
    """A MODEL_OR_RUN that is none, by the name of what is wrong with it."""
    kind = request.param
    if kind == "no head":
        return str(changed(model_folder, tmp_path / "bare", architectures=["LlamaModel"]))
    if kind == "unfinished run":
        (tmp_path / "recipe.yaml").write_text("{}")
        return str(tmp_path)
    if kind == "no model":
        (tmp_path / "notes.txt").write_text("")
        return str(tmp_path)
    if kind == "no weights":
        shutil.copy(model_folder / "config.json", tmp_path)
        return str(tmp_path)
    if kind == "file":
        (tmp_path / "model.bin").write_text("")
        return str(tmp_path / "model.bin")
    return {"no folder": "./nowhere/at/all", "hub, offline": "somebody/some-model"}[kind]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("no head", "LlamaModel has no head to generate text"),
        ("unfinished run", "the run has not ended (no summary.json)"),
        ("no model", "is no saved model (no config.json)"),
        ("no weights", "holds no weights"),
        ("file", "is a file"),
        ("no folder", "no such folder"),
        ("hub, offline", "HF_HUB_OFFLINE forbids to fetch it"),
    ],
    indirect=["wrong"],
)
def test_what_is_no_model_is_one_message_and_code_2(
    wrong: str, said: str, evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(wrong, "--tasks", "llmkd_arithmetic") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("llmkd-eval: ") and error.count("\n") == 1
