"""Untrusted Python, such as a model's answer to a programming problem, run against tests under limits.

``run(code, tests)`` starts processes of its own for each pair: one runs the code, another the tests (``sandbox_apart``
says how they talk).  Where the machine allows it they live in Linux namespaces: no network, not even the local one;
no other process in sight; the whole file system read-only, with temporary folders, sockets and homes empty; one empty
folder to write in; and when the tests end, the kernel kills every process of theirs, whatever it did to hide.

Where namespaces are refused (most containers) ``Verdict.isolation`` says ``limits``: limits on time, memory,
processes and files hold; network, programs and writing outside the folder are refused inside Python alone, which
code that is written for it gets past; and processes that escape their group are searched and killed.
``why_not_namespaces`` has the reason.

What is proved.  ``passed`` means that the tests ran to their end in a process that never ran the code, on plain data
that the code's process sent.  Exit codes, printed markers, ``os._exit``, patched builtins, objects that equal
everything and looks into other frames or processes have no part in it.  What cannot be proved:

1.  That the code solves the problem: it may know the answers that these tests ask for.
2.  What the tests call *is* what the code says it is.  A test that checks an answer with a helper function of the
    code's (HumanEval/32 and its ``poly``) believes that helper: put the helper into the tests.  Two objects of the
    code's own classes are equal if it says so; one of them and plain data never are.
3.  ``together=True``, for tests that need the code in their own process (they subclass its classes, use ``isinstance``
    or ``except`` with them, or patch them), takes the code's word for everything.  Not for rewards.
4.  A name that is both a builtin or a standard module and a function of the code (MBPP has a ``sum``) is taken from
    the code only if it is the ``entry_point``; otherwise code could redefine the ``set`` or ``abs`` that a test uses.
5.  Reading: the code sees the installed Python and all that anybody on the machine may read outside homes.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, Literal
from uuid import uuid4

from llmkd.rewards.sandbox_talk import read_message, write_message

Status = Literal["passed", "failed", "timeout", "memory", "crashed", "syntax"]
INSIDE = Path(__file__).with_name("sandbox_inside.py")
GRACE = 2.0
"""Seconds the processes get to end by themselves after a kill was asked for, before they are killed from here."""


@dataclass(frozen=True)
class Limits:
    """seconds: of wall time, start included; cpu_seconds: whole seconds of each process of the code's; memory_mb: the
    address space of each process; processes: of the code's and their threads; file_mb: a file, and with namespaces
    all files together; output_kb: the end of the output that is kept."""

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_mb: int = 1024
    processes: int = 16
    file_mb: int = 16
    output_kb: int = 16

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"sandbox limits: {name} is {value}: give a number above 0")


@dataclass(frozen=True)
class Verdict:
    """passed: status is ``passed``.  message: what was wrong and the test's line; stdout: the end of what the code
    printed, standard error included; isolation: ``namespaces`` or ``limits``."""

    passed: bool
    status: Status
    message: str
    stdout: str
    seconds: float
    isolation: Literal["namespaces", "limits"]


def run(
    code: str, tests: str, limits: Limits | None = None, *, entry_point: str | None = None, together: bool = False,
    stop: Event | None = None,
) -> Verdict:  # fmt: skip
    """Run ``code``, then ``tests``, which see the names that the code defined.

    entry_point: the function asked for, needed where it has the name of a builtin; together: run the tests in the
    process of the code (see above); stop: set from another thread, it ends the run as a timeout.

    Raises: ValueError where the tests themselves are not Python; RuntimeError where the machine refuses even limits.
    """
    try:
        compile(tests, "<tests>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte
        raise ValueError(f"sandbox: the tests are not Python ({error}): mend the data they come from") from None
    reason = why_not_namespaces()
    return _run(code, tests, limits or Limits(), reason is None, entry_point, together, stop or Event())


def run_many(
    pairs: Iterable[tuple[str, str]], limits: Limits | None = None, workers: int | None = None, **named: Any
) -> list[Verdict]:
    """``run`` for many pairs of code and tests, in their order; workers: at a time, by default one a core."""
    stop = Event()
    why_not_namespaces()  # once, not by every thread at the same time
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        try:
            waiting = [pool.submit(run, code, tests, limits, stop=stop, **named) for code, tests in pairs]
            return [each.result() for each in waiting]
        except BaseException:  # an interrupt of the user's too: no process may live on
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@cache
def why_not_namespaces() -> str | None:
    """None where this machine lets us make namespaces, else the reason; tried once."""
    try:
        found = _run("", "", Limits(), True, None, False, Event())
    except RuntimeError as error:
        return str(error)
    return None if found.passed else found.message


def _run(
    code: str, tests: str, limits: Limits, namespaces: bool, entry_point: str | None, together: bool, stop: Event
) -> Verdict:
    start, token = time.monotonic(), uuid4().hex
    with _empty_folder() as folder, tempfile.TemporaryFile() as request:
        settings = asdict(limits) | {"code": code, "namespaces": namespaces, "folder": folder, "together": together,
                                     "entry_point": entry_point}  # fmt: skip
        for message in (settings, tests):
            write_message(request.fileno(), message)
        request.seek(0)
        result, inner = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-u", str(INSIDE), str(inner)], stdin=request, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, pass_fds=(inner,), env=_environment(folder, token), cwd=folder,
                start_new_session=True,
            )  # fmt: skip
        except BaseException:
            os.close(result)
            raise
        finally:
            os.close(inner)
        try:
            output, said = _listen(process, result, start + limits.seconds, limits.output_kb * 1024, stop)
        finally:
            _end(process, token, namespaces)
            os.close(result)
    found = _verdict(said, output, limits, stop)
    if found[0] == "unavailable":
        raise RuntimeError(f"sandbox: this machine refuses the isolation asked for: {found[1]}")
    return Verdict(found[0] == "passed", found[0], found[1], output.decode(errors="replace"),
                   time.monotonic() - start, "namespaces" if namespaces else "limits")  # fmt: skip


@contextmanager
def _empty_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="sandbox-")
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder)
        except (RecursionError, OSError):  # folders inside each other, deeper than Python goes; taken permissions
            subprocess.run(["rm", "-rf", folder], stderr=subprocess.DEVNULL, check=False)


def _environment(folder: str, token: str) -> dict[str, str]:
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LLMKD_SANDBOX": token,
    }  # fmt: skip


def _listen(
    process: subprocess.Popen[bytes], result: int, deadline: float, keep: int, stop: Event
) -> tuple[bytes, bytes | None]:
    """The end of the output, and what the process of the tests said; None for that at the deadline."""
    assert process.stdout
    output, said = b"", b""
    with selectors.DefaultSelector() as selector:
        selector.register(result, selectors.EVENT_READ)
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or stop.is_set():
                return output, None
            ready = {key.fd for key, _ in selector.select(min(left, 0.2))}
            if process.stdout.fileno() in ready:
                part = os.read(process.stdout.fileno(), 2**16)
                output = (output + part)[-keep:]
                if not part:
                    selector.unregister(process.stdout)
            elif result in ready:  # only when the output is read as far as it came
                part = os.read(result, 2**16)
                if not part:
                    return output, said
                said += part


def _verdict(said: bytes | None, output: bytes, limits: Limits, stop: Event) -> tuple[Any, str]:
    if said is None:
        return "timeout", "stopped" if stop.is_set() else f"no verdict after {limits.seconds:g} s"
    if not said:
        tail = output.decode(errors="replace").strip().splitlines()[-1:]
        return "crashed", " ".join(["the process of the tests ended without a verdict", *tail])
    read, write = os.pipe()
    try:
        os.write(write, said)
        status, message = read_message(read)
    finally:
        os.close(read)
        os.close(write)
    return status, message


def _end(process: subprocess.Popen[bytes], token: str, namespaces: bool) -> None:
    """End all processes of a run.  The first one kills its children when it is asked to end; it dies with its
    namespace's first process, and so does everything in there."""
    assert process.stdout
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    process.stdout.close()
    if not namespaces:
        _kill_marked(f"LLMKD_SANDBOX={token}".encode())


def _kill_marked(mark: bytes) -> None:
    """Kill processes that carry the run's mark in their environment: those that killed their keeper first."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
