import os
import subprocess
import sys
from pathlib import Path

import setup_chromium

SCRIPT = Path(setup_chromium.__file__)


def test_what_stands_before_apt_get():
    everything = {"apt-get": "/usr/bin/apt-get", "sudo": "/usr/bin/sudo"}.get
    assert setup_chromium.prefix(everything, True, lambda: False) == []
    assert setup_chromium.prefix(everything, False, lambda: True) == ["sudo", "-n"]
    assert "root" in setup_chromium.prefix(everything, False, lambda: False)
    assert "no apt-get" in setup_chromium.prefix(lambda name: None, True, lambda: True)


def test_where_it_cannot_be_installed_one_line_says_why(tmp_path):
    environment = {**os.environ, "PATH": str(tmp_path)}
    for arguments, code in (["--if-supported"], 0), ([], 2):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True
        )
        assert done.returncode == code
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert "no apt-get" in done.stderr


def test_where_it_is_nothing_is_done(tmp_path):
    (tmp_path / "chromium").write_text("#!/bin/sh\n")
    (tmp_path / "chromium").chmod(0o755)
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"chromium is installed: {tmp_path / 'chromium'}\n")
