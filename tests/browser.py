"""A page in headless Chromium, through its DevTools pipe: what it shows, what it asked the network for, what it said.

with opened(path, width=390, dark=True) as page:
    page.value("document.title")
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 120.0


def chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


needs_chromium = pytest.mark.skipif(
    chromium() is None, reason="no chromium here: python tests/setup_chromium.py installs Debian's"
)


class Page:
    """One tab.  requests: addresses it asked for; errors: what the console and the scripts complained of."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser, self.from_browser = to_browser, from_browser
        self.waiting, self.count, self.session = b"", 0, ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.loaded = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and wait for its answer; RuntimeError where it is refused."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is, as JSON; promises are waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def go(self, address: str) -> None:
        """Open an address and wait until its charts are drawn."""
        before = self.loaded
        self.call("Page.navigate", url=address)
        while self.loaded == before:
            self._next()
        self.value("window.drawn ?? null")

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            said = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **said)

    def emulate(self, width: int = 1280, height: int = 900, dark: bool = False, media: str = "") -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self.waiting:
            ready, _, _ = select.select([self.from_browser], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "chromium does not answer"
            read = os.read(self.from_browser, 1 << 16)
            assert read, "chromium has ended"
            self.waiting += read
        said, self.waiting = self.waiting.split(b"\0", 1)
        message = json.loads(said)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded += 1
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.errors.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(parameters["args"]))


@contextmanager
def browser() -> Iterator[Page]:
    """A headless Chromium with one empty tab; it ends with the block."""
    program = chromium()
    assert program is not None
    commands, to_browser = os.pipe()
    from_browser, answers = os.pipe()

    def as_three_and_four() -> None:  # the numbers that Chromium reads commands from and answers on
        high = [os.dup(commands), os.dup(answers)]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
             f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=as_three_and_four,
            env={**os.environ, "HOME": profile},
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        page = Page(to_browser, from_browser)
        try:
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                page.call(f"{domain}.enable")
            yield page
        finally:
            with suppress(OSError, AssertionError, RuntimeError):
                page.session = ""
                page.call("Browser.close")
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(to_browser)
            os.close(from_browser)


@contextmanager
def opened(path: Path, **look: Any) -> Iterator[Page]:
    """A file in a browser of its own, with its charts drawn."""
    with browser() as page:
        page.emulate(**look)
        page.go(path.resolve().as_uri())
        yield page
