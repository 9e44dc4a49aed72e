"""What a run shows to the person who watches it."""

from pathlib import Path

import pytest

from runs import main_with, make_inputs, recipe


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def test_training_shows_a_bar_with_the_steps_and_the_loss(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = recipe(inputs, tmp_path / "run", {"train.max_steps": 3, "train.logging_steps": 1})
    del data["train"]["disable_tqdm"]  # what a recipe gets that says nothing
    assert main_with(data) == 0
    shown = capfd.readouterr().err
    assert "3/3" in shown and "loss=" in shown


def test_the_bar_can_be_left_out(inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main_with(recipe(inputs, tmp_path / "run", {"train.max_steps": 3, "train.disable_tqdm": True})) == 0
    assert "3/3" not in capfd.readouterr().err


def test_the_last_lines_are_the_table_and_the_folder(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main_with(recipe(inputs, tmp_path / "run", {"train.max_steps": 1})) == 0
    lines = capfd.readouterr().out.strip().splitlines()
    assert lines[-1] == f"run folder: {(tmp_path / 'run').resolve()}"
    assert any("parameters" in line for line in lines)
