"""Inside the sandbox: namespaces and limits, and the processes of the tests and of the code.

Started by ``sandbox`` as ``python -I -u sandbox_inside.py DESCRIPTOR``: a request on standard input (one message of
settings and code, one of tests), the verdict as one message on DESCRIPTOR, output of the code on standard output.

    this process      new namespaces (where asked), waits, kills what is left
      the tests       first process of the process namespace: when it ends, the kernel ends all others
        the code      limits, an empty folder, no descriptor but its two pipes and the output

Standard library only, nothing of this package.  Linux; elsewhere limits alone.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

NEW_MOUNTS, NEW_NAMES, NEW_IPC, NEW_USER, NEW_PROCESSES, NEW_NETWORK = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
SET_DEATH_SIGNAL, SET_DUMPABLE, SET_NO_NEW_PRIVILEGES, SET_SUBREAPER = 1, 4, 38, 36
MOUNT_SETATTR, AT_FDCWD, RECURSIVE, READ_ONLY = 442, -100, 0x8000, 0x1
NO_SETUID, NO_DEVICES, BIND, PRIVATE = 0x2, 0x4, 0x1000 | 0x4000, 0x4000 | 0x40000
NOBODY = 65534
INSIDE = 1000
OPEN_FILES = 64
FILES = 4096
PROCESSES_OF_OURS = 2
HIDDEN = ("/tmp", "/var/tmp", "/run", "/dev/shm", "/root", "/home")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """A step of the isolation was refused: a fault of the machine, not of the code."""


def main() -> int:
    result = int(sys.argv[1])
    talk, apart = _neighbour("sandbox_talk"), _neighbour("sandbox_apart")
    request = talk.read_message(0)
    try:
        if request["namespaces"]:
            _isolate(request["folder"], request["file_mb"])
        elif os.geteuid() == 0:
            _lose_most_of_root(request["folder"])
        _prctl(SET_DUMPABLE, 0)  # the code must not open this process's memory or descriptors
        _prctl(SET_SUBREAPER, 1)
        tests = os.fork()
        if tests == 0:
            _tests(talk, apart, request, result)
    except (Unavailable, OSError) as error:
        talk.write_message(result, ["unavailable", str(error)])
        return 1
    signal.signal(signal.SIGTERM, lambda *_: os.kill(tests, signal.SIGKILL))
    _prctl(SET_DEATH_SIGNAL, signal.SIGTERM)  # where whoever started it is killed
    os.waitid(os.P_PID, tests, os.WEXITED | os.WNOWAIT)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    kill_children()
    return 0


def _neighbour(name: str) -> ModuleType:
    """A module beside this file, without its folder on the path, where it would hide modules of the same name."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- namespaces --------------------------------------------------------------------------------------------------------


def _call(name: str, *args: Any) -> None:
    if getattr(LIBC, name)(*args) != 0:
        said = " ".join(a.decode() for a in args if isinstance(a, bytes))
        raise Unavailable(f"{name} {said}: {os.strerror(ctypes.get_errno())}")


def _prctl(option: int, value: int) -> None:
    if LINUX:
        _call("prctl", option, value, 0, 0, 0)


def _lose_root() -> None:
    """Root has no limit on processes and owns the machine's files, in a user namespace too: become nobody."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(SET_DUMPABLE, 1)  # else /proc/self belongs to root
    if not os.access(os.__file__, os.R_OK):
        raise Unavailable(f"the user nobody cannot read Python's library, {Path(os.__file__).parent}")


def _lose_most_of_root(folder: str) -> None:
    """Without namespaces nobody may be unable to read Python.  Then the files stay root's, all other rights go, and
    the limit on processes counts those of nobody."""
    os.chown(folder, NOBODY, NOBODY)
    os.setresuid(NOBODY, 0, 0)
    if os.access(os.__file__, os.R_OK):  # asks for the real user
        os.seteuid(0)
        _lose_root()
    elif LINUX:
        os.chmod(folder, 0o777)
        _lose_capabilities()
        _prctl(SET_DUMPABLE, 1)


def _isolate(folder: str, file_mb: int) -> None:
    """Root arranges what is seen with its own rights, since nobody may see too little; others with the rights that a
    user namespace gives them."""
    if not LINUX:
        raise Unavailable(f"{sys.platform} has no namespaces")
    if os.geteuid() == 0:
        _call("unshare", NEW_MOUNTS)
        _see_little(folder, file_mb)
        _lose_root()
        _new_user()
    else:
        _new_user()
        _see_little(folder, file_mb)
    _call("unshare", NEW_NETWORK | NEW_PROCESSES | NEW_IPC | NEW_NAMES)


def _new_user() -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", NEW_USER | NEW_MOUNTS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{INSIDE} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{INSIDE} {group} 1")


def _see_little(folder: str, file_mb: int) -> None:
    """All that is seen becomes read-only; temporary folders, sockets and homes become empty but for Python; the folder
    becomes an empty file system of its own."""
    _call("mount", None, b"/", None, ctypes.c_ulong(PRIVATE), None)
    python = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix)}
    for place in dict.fromkeys(Path(p).resolve() for p in (*HIDDEN, Path(folder).parent)):
        if not place.is_dir() or any(place.is_relative_to(p) for p in python):
            continue
        kept = {p: os.open(p, os.O_PATH) for p in python if p.is_relative_to(place)}
        _mount("tmpfs", str(place), options="size=1m,mode=755")
        for path, descriptor in kept.items():
            path.mkdir(parents=True, exist_ok=True)
            _mount("none", str(path), BIND, source=f"/proc/self/fd/{descriptor}")
            os.close(descriptor)
    os.makedirs(folder, exist_ok=True)
    _set_read_only("/", True, RECURSIVE)
    _set_read_only("/proc", False)  # until the first process of the namespace mounts its own
    _mount("tmpfs", folder, options=f"size={file_mb}m,nr_inodes={FILES},mode=777")


def _mount(kind: str, place: str, flags: int = NO_SETUID | NO_DEVICES, options: str = "", source: str = "none") -> None:
    _call("mount", source.encode(), place.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


def _set_read_only(place: str, value: bool, depth: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY * value, READ_ONLY * (not value), 0, 0)
    if LIBC.syscall(MOUNT_SETATTR, AT_FDCWD, place.encode(), depth, attributes, ctypes.sizeof(attributes)) != 0:
        raise Unavailable(f"mount_setattr {place}: {os.strerror(ctypes.get_errno())}")


def _own_processes() -> None:
    """``/proc`` of the new namespace, or none: containers that mask parts of theirs allow no other."""
    try:
        _mount("proc", "/proc", NO_SETUID | NO_DEVICES | READ_ONLY)
    except Unavailable:
        _mount("tmpfs", "/proc", NO_SETUID | NO_DEVICES | READ_ONLY)


def _lose_capabilities() -> None:
    """What could undo the mounts.  A user namespace of the code's own finds them locked."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


# -- the two processes -------------------------------------------------------------------------------------------------


def _tests(talk: ModuleType, apart: ModuleType, request: dict[str, Any], result: int) -> None:
    """The process of the tests; never returns."""
    try:
        if request["namespaces"]:
            _own_processes()
            _lose_capabilities()
        _prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
        _prctl(SET_NO_NEW_PRIVILEGES, 1)
        os.chdir(request["folder"])
        to_code, from_code = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            _code(apart, request, to_code[0], from_code[1])
    except (Unavailable, OSError) as error:
        talk.write_message(result, ["unavailable", str(error)])
        os._exit(1)
    os.close(to_code[0])
    os.close(from_code[1])
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _limit(resource.RLIMIT_AS, request["memory_mb"] * 2**20)
    _limit(resource.RLIMIT_CORE, 0)
    code = apart.Code(from_code[0], to_code[1], request["entry_point"])
    # Only now do the tests leave the pipe: the process of the code has no copy.
    status, message = apart.judge(code, talk.read_message(0), request["together"])
    if status == "crashed":
        waited, cpu_seconds = _wait(pid)
        status, message = apart.ending(message, waited, cpu_seconds, request["cpu_seconds"])
    talk.write_message(result, [status, message[:2000]])
    os._exit(0)


def _code(apart: ModuleType, request: dict[str, Any], incoming: int, outgoing: int) -> None:
    """The process of the code; never returns."""
    _prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for descriptor in range(3, 256):
        if descriptor not in (incoming, outgoing):
            _close(descriptor)
    cpu_seconds, memory = int(request["cpu_seconds"]), request["memory_mb"] * 2**20
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory + 2**24))
    _limit(resource.RLIMIT_FSIZE, request["file_mb"] * 2**20)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    if request["namespaces"]:
        _limit(resource.RLIMIT_NPROC, request["processes"] + PROCESSES_OF_OURS)
    else:  # all processes of the user count, and so do those of the runs beside this one
        _limit(resource.RLIMIT_NPROC, _tasks_of_user() + request["processes"] * (os.cpu_count() or 1))
    if LINUX:
        _prctl(SET_DUMPABLE, 1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not request["namespaces"]:
        sys.addaudithook(_refuse_outside(request["folder"]))
    try:
        apart.Served(incoming, outgoing).run(request["code"])
    except EOFError:
        pass
    finally:
        os._exit(1)


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, value))


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return


def _wait(pid: int) -> tuple[int, float]:
    """How the process of the code ended, and the CPU seconds it took; it is killed if it lives on without its pipe."""
    for _ in range(50):
        found, waited, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return waited, usage.ru_utime + usage.ru_stime
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    _, waited, usage = os.wait4(pid, 0)
    return waited, usage.ru_utime + usage.ru_stime


def _tasks_of_user() -> int:
    """Threads of this user: without a namespace the limit counts them all."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            said = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            count += int(said["Threads"]) if int(said["Uid"].split()[0]) == os.getuid() else 0
        except (OSError, KeyError):
            continue
    return count


def _refuse_outside(folder: str) -> Any:
    """Where there are no namespaces: no sockets, no programs, no changes outside the folder.  An audit hook cannot be
    taken off by Python code, but it is no wall: it stops what code does by the way, not what is written against it."""
    inside = os.path.realpath(folder) + os.sep
    refused = ("socket.", "ctypes.", "subprocess.", "os.exec", "os.posix_spawn", "os.system", "os.kill", "os.chdir",
               "gc.get_")  # fmt: skip
    changing = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
                "os.chown", "os.utime", "shutil.")  # fmt: skip

    def outside(path: Any) -> bool:
        if isinstance(path, int):
            return False
        return not os.path.realpath(os.fsdecode(path)).startswith(inside)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(refused):
            raise PermissionError(f"the sandbox refuses {event}")
        if event == "open" and args[2] & WRITING and outside(args[0]):
            raise PermissionError(f"the sandbox refuses to write {args[0]}")
        if event.startswith(changing) and any(outside(p) for p in args if isinstance(p, (str, bytes))):
            raise PermissionError(f"the sandbox refuses {event} of {args[0]}")

    return hook


# -- the end -----------------------------------------------------------------------------------------------------------


def kill_children(seconds: float = 5.0) -> None:
    """Kill and reap all below this process: orphans come to it, since it is their subreaper."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            found, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if found == 0:
            for pid in _children():
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)


def _children() -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
