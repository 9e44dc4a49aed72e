"""Stands between ``llmkd compare`` and one run, so that the run never outlives it unseen.

    python shepherd.py PIPE COMMAND ...

Starts the command in a session of its own: a Ctrl-C in the terminal does not reach it twice.  When the other end of
the pipe says so, or is closed because the study was killed, every process of the command gets SIGTERM, on which a run
saves a checkpoint and ends; or, if it says so, SIGKILL.  Ends, with the command's exit code, when all of them have
ended.  The standard library alone: it is there at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

STOP, KILL = b"t", b"k"
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: what a dying launcher leaves behind becomes ours, not init's


def main(pipe: int, command: Sequence[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe alone says when to stop
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    try:
        child = subprocess.Popen(command, start_new_session=True, restore_signals=True, preexec_fn=_default_signals)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    threading.Thread(target=_watch, args=(pipe, child.pid), daemon=True).start()
    code = 0
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return code if code >= 0 else 128 - code
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _watch(pipe: int, group: int) -> None:
    stopping = False
    while True:
        asked = os.read(pipe, 1)
        if asked == KILL or not stopping:  # a second SIGTERM would not let a run save
            try:
                os.killpg(group, signal.SIGKILL if asked == KILL else signal.SIGTERM)
            except ProcessLookupError:
                return
        stopping = True
        if asked in (b"", KILL):
            return


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
