"""Install Debian's Chromium, which the tests of `llmkd report` open its pages in: `python tests/setup_chromium.py`.

A second call finds it there and does nothing. It takes apt-get, and root or a sudo that asks for no password. With
`--if-supported` a machine where that is not so, or where the installation fails, is reported and is no error: the
tests that need a browser are then skipped.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

NAMES = ("chromium", "chromium-browser", "google-chrome")
ADVICE = "install Chromium by hand, or leave it out: the tests that open pages are then skipped."


def installed(which: Callable[[str], str | None] = shutil.which) -> str | None:
    return next((path for name in NAMES if (path := which(name))), None)


def prefix(which: Callable[[str], str | None], root: bool, sudo: Callable[[], bool]) -> list[str] | str:
    """What to put before apt-get, or why it cannot be run here."""
    if not which("apt-get"):
        return "this system has no apt-get"
    if root:
        return []
    if which("sudo") and sudo():
        return ["sudo", "-n"]
    return "apt-get needs root, and sudo is not there or asks for a password"


def sudo_works() -> bool:
    return subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0


def install(before: list[str]) -> str | None:
    """Why the installation failed, in one line, or None."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            [*before, "apt-get", *words], env=environment, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode and words != ["update"]:  # old lists may do
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            return f"apt-get {' '.join(words)} failed ({lines[-1] if lines else done.returncode})"
    return None


def main(arguments: list[str]) -> int:
    found = installed()
    if found:
        print(f"chromium is installed: {found}")
        return 0
    before = prefix(shutil.which, os.geteuid() == 0, sudo_works)
    reason = before if isinstance(before, str) else install(before)
    if reason is None:
        print(f"chromium is installed: {installed()}")
        return 0
    print(f"setup-chromium: {reason}; {ADVICE}", file=sys.stderr)
    return 0 if "--if-supported" in arguments else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
