"""A process of a benchmark that is asked one thing at a time and answers with lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class Process:
    """script: a file beside this one, given ``job`` as JSON; name: of what it measures; threads: as many as it may use.

    Its answers are kept in ``answers``; one whose ``status`` is not ``ok`` is the last.
    """

    def __init__(self, script: str, job: Mapping[str, Any], *, name: str, threads: int, scratch: Path) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(dir=scratch, prefix=f"{name}-"))
        self.errors = self.folder / "stderr"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, HERE / script, json.dumps(job)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=environment(threads, self.folder),
            )  # fmt: skip
        self.answers: list[dict[str, Any]] = []

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with suppress(BrokenPipeError):  # what it was not there to read
            self.process.communicate()

    def answer(self) -> bool:
        """Wait for the next answer; False if there will be no more after it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            self.answers.append(json.loads(line))
            return bool(self.answers[-1].get("status", "ok") == "ok")
        code = self.process.wait()
        text = self.errors.read_text(errors="replace").strip().splitlines()
        message = f"exit code {code}: {text[-1] if text else ''}"
        if code < 0:
            message = f"killed by signal {-code}" + (": the machine's memory may be too small" if code == -9 else "")
        self.answers.append({"status": "failed", "message": message})
        return False

    def round(self) -> bool:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it died while others had their round: there is no answer, and that is a row
            self.process.stdin.write("round\n")
            self.process.stdin.flush()
        return self.answer()


def environment(threads: int, folder: Path) -> dict[str, str]:
    """Of a worker: so many threads, no network, and a compiler that finds nothing from an earlier run."""
    count = str(threads)
    path = [str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count,
        "TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
        "PYTHONPATH": os.pathsep.join(filter(None, path)), "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
    }  # fmt: skip
