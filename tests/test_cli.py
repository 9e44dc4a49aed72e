"""The commands: what is built answers, what is not says so in one line."""

import subprocess
import sys

import pytest

from llmkd import cli
from llmkd.methods import METHODS


@pytest.mark.parametrize("command", list(cli.NOT_BUILT))
@pytest.mark.parametrize("rest", [[], ["recipes/quickstart.yaml", "--fast"], ["--help"]])
def test_unbuilt_command_says_so_in_one_line(command: str, rest: list[str], capsys: pytest.CaptureFixture) -> None:
    assert cli.main([command, *rest]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert f"llmkd {command}: not built yet" in said.err


def test_unbuilt_program_says_so_in_one_line(capsys: pytest.CaptureFixture) -> None:
    assert cli.gen(["job.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "llmkd-gen: not built yet" in said
    assert cli.gen(["--help"]) == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize("command", list(cli.MODULES))
def test_help_of_a_command_describes_its_options(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: llmkd {command}" in out and "--" in out.split("options:")[1].replace("--help", "")


def test_help_of_the_evaluation_describes_its_options(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.evaluate(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "usage: llmkd-eval" in out and "--tasks" in out


def test_help_lists_every_command(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage")
    assert all(name in out for name in ["methods", *cli.MODULES, *cli.NOT_BUILT])


def test_methods_are_listed(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    for method in METHODS:
        assert method.terms in out and method.paper in out and method.evidence in out


@pytest.mark.parametrize("arguments", [[], ["distil"], ["methods", "--colour"]])
def test_mistake_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_commands_start_without_torch() -> None:
    """A command that only prints must not wait for the heavy imports."""
    check = "import sys, llmkd.cli; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'trl')))"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0
