"""What code in the sandbox cannot do: use up the machine, outlive its run, see or reach what is outside."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkd.rewards import sandbox
from llmkd.rewards.sandbox import Limits, run, run_many

from sandboxes import QUICK, RIGHT, TESTS, WRONG, left_alive, marked

# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_fork_bomb_is_held_and_cleared_away(isolation: str, nest: str) -> None:
    code = """
    import os
    made = 0
    try:
        for _ in range(5000):
            if os.fork() == 0:
                while True: os.getppid()
            made += 1
    except OSError: pass
    print('made', made)
    """
    found = run(textwrap.dedent(code) + RIGHT, TESTS, Limits(seconds=20, processes=8))
    assert found.passed, found
    most = 8 if isolation == "namespaces" else 8 * (os.cpu_count() or 1) + 50  # where others' processes count too
    assert 1 <= int(found.stdout.split()[1]) < most
    assert left_alive(nest) == []


ESCAPE = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        for d in range(3): os.close(d)
        time.sleep(600)
    os._exit(0)
os.wait()
"""


def test_a_double_fork_does_not_survive(isolation: str, nest: str) -> None:
    assert run(ESCAPE + RIGHT, TESTS).passed
    assert left_alive(nest) == []
    assert run(ESCAPE + "\nwhile True: pass", TESTS, Limits(seconds=2, cpu_seconds=30)).status == "timeout"
    assert left_alive(nest) == []


def test_a_file_has_a_limit_and_the_folder_is_gone_afterwards(isolation: str) -> None:
    code = """
    import os, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    print(os.getcwd(), os.listdir('.'))
    with open('big', 'wb', buffering=0) as file:
        try:
            while True: file.write(bytes(2**18))
        except OSError as error: print(os.path.getsize('big'))
    """
    found = run(textwrap.dedent(code) + RIGHT, TESTS, Limits(file_mb=2))
    assert found.passed, found
    folder, listing, size = found.stdout.split()
    assert listing == "[]" and 2**20 < int(size) <= 2 * 2**20
    assert not Path(folder).exists()


def test_nothing_outside_the_folder_can_be_written(isolation: str, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    tmp_path.chmod(0o777)
    (tmp_path / "there").chmod(0o666)
    code = f"""
    import os, pathlib
    place, done = pathlib.Path({str(tmp_path)!r}), []
    for name, act in {{
        'new': lambda: (place / 'new').write_text('x'), 'there': lambda: (place / 'there').write_text('x'),
        'remove': lambda: os.remove(place / 'there'), 'folder': lambda: os.mkdir(place / 'folder'),
        'home': lambda: pathlib.Path('/var/tmp/sandbox-test').write_text('x'),
    }}.items():
        try: act(); done.append(name)
        except OSError: pass
    print(done)
    """
    found = run(textwrap.dedent(code) + RIGHT, TESTS)
    assert found.passed and found.stdout == "[]\n", found
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("there", "mine")]


def test_the_environment_and_the_input_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "xyzzy")
    code = "import os, sys\nprint(dict(os.environ), repr(sys.stdin.read()), sys.flags.isolated)\n" + RIGHT
    found = run(code, TESTS)
    assert found.passed and "xyzzy" not in found.stdout and found.stdout.endswith(" '' 1\n")


def test_homes_and_other_processes_are_out_of_sight(namespaces: None, tmp_path: Path) -> None:
    code = f"import os\nprint([os.statvfs(p).f_flag & 1 for p in ('/', '/tmp', {sys.prefix!r}, '.')])\n"
    code += f"print(os.path.exists({str(tmp_path)!r}), [p for p in os.listdir('/proc') if p.isdigit()])\n"
    found = run(code + RIGHT, TESTS)
    assert found.passed
    read_only, seen = found.stdout.splitlines()
    assert read_only == "[1, 1, 1, 0]"
    seen, processes = seen.split(" ", 1)
    assert len(processes.split(",")) <= 2
    assert seen == "False" or not str(tmp_path).startswith("/tmp")


# -- network -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()):  # the way is open for us
            pass
        yield server.getsockname()[1]


@pytest.mark.parametrize("way", ["socket", "urllib", "child"])
def test_the_network_is_out_of_reach(way: str, port: int, isolation: str) -> None:
    connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
    code = {
        "socket": connect,
        "urllib": f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}', timeout=2)",
        "child": f"import subprocess, sys; subprocess.run([sys.executable, '-c', {connect!r}], check=True)",
    }[way]
    code = f"import traceback\ntry:\n    {code}\n    print('connected')\nexcept Exception: traceback.print_exc()\n"
    found = run(code + RIGHT, TESTS)
    assert found.passed and "connected" not in found.stdout.splitlines(), found
    refused = ("Network is unreachable", "the sandbox refuses", "Errno 101", "CalledProcessError", "Errno 1]")
    assert any(said in found.stdout for said in refused), found


def test_unix_sockets_of_the_machine_are_out_of_reach(namespaces: None) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0llmkd-test-{os.getpid()}")
        server.listen()
        code = "import socket\ns = socket.socket(socket.AF_UNIX)\ntry:\n    s.connect(%r)\n    print('connected')\n"
        found = run(code % f"\0llmkd-test-{os.getpid()}" + "except OSError: pass\n" + RIGHT, TESTS)
    assert found.passed and found.stdout == ""


def test_capabilities_do_not_undo_the_isolation(namespaces: None, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    code = """
    import ctypes, os
    libc = ctypes.CDLL(None, use_errno=True)
    print(int(open('/proc/self/status').read().split('CapEff:')[1].split()[0], 16))
    def remount(): return libc.mount(None, b'/', None, ctypes.c_ulong(0x20 | 0x1000), None)
    print(remount(), libc.umount2(b'/tmp', 2))
    print(libc.unshare(0x10000000 | 0x00020000) and 0, remount(), libc.umount2(b'/tmp', 2))
    """
    found = run(textwrap.dedent(code) + RIGHT, TESTS)
    assert found.passed and found.stdout == "0\n-1 -1\n0 -1 -1\n", found


# -- many --------------------------------------------------------------------------------------------------------------


def test_many_keep_their_order() -> None:
    pairs = [(RIGHT if i % 3 else WRONG, TESTS) for i in range(24)]
    found = run_many(pairs, QUICK, workers=8)
    assert [v.passed for v in found] == [bool(i % 3) for i in range(24)]


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_leaves_no_process(ended_by: signal.Signals, isolation: str, nest: str) -> None:
    script = f"""
from llmkd.rewards import sandbox
if {isolation!r} == "limits":
    sandbox.why_not_namespaces = lambda: "not asked for"
print("ready", flush=True)
limits = sandbox.Limits(seconds=60, cpu_seconds=60)
sandbox.run_many([({ESCAPE!r} + "while True: pass", "")] * 6, limits, workers=3)
"""
    command = [sys.executable, "-c", script]
    environment = os.environ | {"TMPDIR": nest}  # a killed process leaves its folders
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    try:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        end = time.monotonic() + 30
        # Of each run four: its keeper, the tests, the code and what escaped it (or, for a moment, what that came from).
        while len(alive := marked(f"{nest}/sandbox-")) < 12 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(alive) >= 12
        process.send_signal(ended_by)
        said = process.communicate(timeout=30)[1]
        assert (b"KeyboardInterrupt" in said) == (ended_by == signal.SIGINT)
    finally:
        process.kill()
        process.wait()
    assert left_alive(nest) == []


def test_folders_too_deep_for_python_are_cleared_away() -> None:
    with sandbox._empty_folder() as folder:
        path = folder
        for _ in range(1500):
            path += "/d"
            os.mkdir(path)
    assert not Path(folder).exists()
