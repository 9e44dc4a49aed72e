"""Studies of tiny recipes, with real runs that start at once (`warm.py`)."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import yaml

from runs import held_out, make_inputs, recipe, write_recipe

WARM = Path(__file__).with_name("warm.py")
STEPS = 3


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("warm", WARM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


warm = _module()


@dataclass
class Running:
    """A command that runs.  said: its output; pid: to be killed."""

    connection: socket.socket
    pid: int
    out: Path
    err: Path

    def wait(self) -> int:
        code = warm.exit_code(self.connection)
        with suppress(psutil.NoSuchProcess):  # a killed process closes its connection a moment before it has gone
            psutil.Process(self.pid).wait(30)
        return code


@dataclass
class Desk:
    """Where studies are written and run.  changes to `recipe` and `study` are dotted keys and top-level keys."""

    inputs: Path
    folder: Path
    server: str
    counted: int = 0
    code: int = -1
    out: str = ""
    err: str = ""

    def study(self, changes: Mapping[str, Any] | None = None, recipe_changes: Mapping[str, Any] | None = None) -> Path:
        """Two arms, cross-entropy and forward KL, two seeds, three steps; None takes a key out."""
        base = recipe(self.inputs, Path("unused"), {
            "eval.datasets": held_out(self.inputs), "train.save_steps": 1, "train.max_steps": STEPS,
            "objective": {"terms": {"kd": {"term": "forward_kl"}}}, **(recipe_changes or {}),
        })  # fmt: skip
        write_recipe(base, self.folder / "base.yaml")
        data: dict[str, Any] = {
            "name": "tiny",
            "recipe": "base.yaml",
            "arms": {
                "ce": {"overrides": {"objective.terms": {"kd": {"term": "cross_entropy"}}}},
                "kl": {},
            },
            "varies": ["objective"],
            "seeds": [3, 4],
            "launcher": [sys.executable, "-S", "-I", str(WARM), "run", self.server],
            **(changes or {}),
        }
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}, sort_keys=False))
        return path

    def started(self, path: Path, *arguments: str, to: str = "out") -> Running:
        self.counted += 1
        out, err = (self.folder / f"{self.counted}.{kind}" for kind in ("stdout", "stderr"))
        with out.open("wb") as first, err.open("wb") as second:
            words = [str(path), *arguments, "--output-dir", str(self.folder / to)]
            connection, pid = warm.ask(self.server, "compare", words, first.fileno(), second.fileno())
        return Running(connection, pid, out, err)

    def compare(self, path: Path, *arguments: str, to: str = "out") -> int:
        """`llmkd compare`, to its end; what it said is in `out` and `err`."""
        running = self.started(path, *arguments, to=to)
        code = running.wait()
        self.out, self.err = running.out.read_text(), running.err.read_text()
        assert "Traceback" not in self.err, self.err
        return code

    def table(self, to: str = "out") -> dict[str, Any]:
        return json.loads((self.folder / to / "table.json").read_text())

    def without_seconds(self, to: str = "out") -> tuple[Any, str, str]:
        """table.json, table.md and curves.json but for the seconds of the runs."""
        found = self.table(to)
        for arm in found["arms"].values():
            for run in arm["runs"].values():
                run["seconds"] = None
        text = (self.folder / to / "table.md").read_text()
        text = re.sub(r"(finished \| \d+ \| [\d,]+ \|) \d+ \|", r"\1", text)
        return found, text, (self.folder / to / "curves.json").read_text()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("warm") / "socket"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, str(WARM), "serve", str(path)], env=environment)
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    yield str(path)
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def desk(inputs: Path, tmp_path: Path, server: str) -> Desk:
    return Desk(inputs, tmp_path, server)


@pytest.fixture(scope="session")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory, server: str) -> Desk:
    """The study that nothing happened to: run once, read by many."""
    found = Desk(inputs, tmp_path_factory.mktemp("whole"), server)
    found.code = found.compare(found.study())
    return found
