"""What the tests of the sandbox run in it, and how they look for what it left behind."""

import os
import time
from pathlib import Path

from llmkd.rewards.sandbox import Limits

QUICK = Limits(seconds=20, cpu_seconds=2)
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
RIGHT = "def add(a, b):\n    return a + b"
WRONG = "def add(a, b):\n    return a - b"


def marked(text: str) -> list[int]:
    """Processes whose command line or environment holds `text`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in said and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def left_alive(text: str) -> list[int]:
    """The marked processes, once those that are being reaped have gone; [] as a rule."""
    end = time.monotonic() + 5
    while (found := marked(text)) and time.monotonic() < end:
        time.sleep(0.02)
    return found
