"""Work whose length nobody can foretell (computer algebra, a user's regular expression), done under a limit.

``ask(job, values)`` sends a job to one helper process, which is started at the first job and kept. Each job may use
``CPU_SECONDS`` of the processor; then the kernel ends the helper, whatever it was doing, and the next job starts a new
one. So it works in any thread, needs no signal of this process, and the answer depends on the work and not on how busy
the machine is. The helper reads text and computes; it never runs it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

Job = Literal["equal", "match"]

INSIDE = Path(__file__).with_name("bounded_inside.py")
CPU_SECONDS = 2
"""Whole seconds of the processor that a job may use; the helper's own start is not counted."""
WALL_SECONDS = 120.0
"""Seconds after which a helper that gets no processor is given up."""

_lock = threading.Lock()
_helper: subprocess.Popen[bytes] | None = None
_owner = 0  # the process that started the helper: a fork must not talk into its parent's


def ask(job: Job, *values: Any) -> bool | None:
    """The job's answer, None where it took too much time or memory.

    equal, answer, reference: whether two mathematical expressions in LaTeX are equal; match, pattern, text: whether
    the whole text matches the regular expression.
    """
    global _helper, _owner
    request = json.dumps([job, CPU_SECONDS, *values]).encode() + b"\n"
    with _lock:
        if _helper is None or _owner != os.getpid() or _helper.poll() is not None:
            _helper, _owner = _started(), os.getpid()
        said = _exchange(_helper, request)
        if said is None:
            _end()
            return None
    return json.loads(said)


def _started() -> subprocess.Popen[bytes]:
    folders = [folder for folder in sys.path if folder]
    return subprocess.Popen(
        [sys.executable, "-I", str(INSIDE), *folders], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True,
    )  # fmt: skip


def _exchange(helper: subprocess.Popen[bytes], request: bytes) -> bytes | None:
    """The helper's line of answer, None where it ended or stayed silent."""
    assert helper.stdin and helper.stdout
    deadline, said = time.monotonic() + WALL_SECONDS, b""
    try:
        _send(helper.stdin.fileno(), request)
        while not said.endswith(b"\n"):
            ready, _, _ = select.select([helper.stdout], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(helper.stdout.fileno(), 2**12) if ready else b""
            if not part:
                return None
            said += part
    except BrokenPipeError:
        return None
    return said


def _send(file: int, request: bytes) -> None:
    while request:
        request = request[os.write(file, request) :]


@atexit.register
def _end() -> None:
    """End this process's own helper."""
    global _helper
    if _helper is not None and _owner == os.getpid():
        assert _helper.stdin and _helper.stdout
        _helper.kill()
        _helper.wait()
        _helper.stdin.close()
        _helper.stdout.close()
    _helper = None
