"""Settings and fixtures of all tests. The environment is set before anything imports torch or the hub's clients."""

import atexit
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "disabled"
# One thread a process: the runner starts a worker per core and some tests start two processes of their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A hub folder of our own: neither a cached data set nor an accelerate default of the user changes a test.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="llmkd-tests-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

# What a shell starts in the background is told to ignore Ctrl-C; the commands under test must hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
import torch  # noqa: E402

from serving import MISSING, Server, serve, vllm_installed  # noqa: E402
from tiny import sentences, tiny_model, tiny_tokenizer  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("LLMKD_ASSETS") or ROOT.parent / "shared" / "assets")

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_assets = pytest.mark.skip(reason=f"no assets at {ASSETS}; set LLMKD_ASSETS")
    no_vllm = pytest.mark.skip(reason=MISSING)
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("assets") and not ASSETS.is_dir():
            item.add_marker(no_assets)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if item.get_closest_marker("vllm") and not vllm_installed():
            item.add_marker(no_vllm)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models, tokenizers and data, for tests marked `assets`."""
    if not ASSETS.is_dir():
        pytest.skip(f"no assets at {ASSETS}; set LLMKD_ASSETS")
    return ASSETS


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of `tiny.tiny_tokenizer`, 384 entries."""
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer and random Llama (2 layers, hidden 64, tied head), read-only by agreement."""
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def final_model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `model/` that a whole run left behind: `model_folder` distilled for four steps from a wider teacher."""
    from llmkd.train import main

    folder = tmp_path_factory.mktemp("distilled")
    teacher = tiny_model(folder / "teacher", hidden=96, seed=1)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in sentences()[:64]))
    recipe = {
        "run": {"output_dir": str(folder / "run")},
        "student": {"model_name_or_path": str(model_folder)},
        "teachers": [{"model_name_or_path": str(teacher)}],
        "data": {"datasets": [{"path": str(folder / "rows.jsonl")}]},
        "objective": {"terms": {"kd": {"term": "forward_kl"}}},
        "train": {"method": "offpolicy", "use_cpu": True, "max_steps": 4, "max_length": 32, "learning_rate": 1e-4},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    assert main([str(folder / "recipe.yaml")]) == 0
    return folder / "run" / "model"


@pytest.fixture(scope="session")
def vllm_server(final_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real vLLM server on the final model of a run, for the whole session of this worker."""
    if not vllm_installed():
        pytest.skip(MISSING)
    with serve(final_model, tmp_path_factory.mktemp("vllm") / "server.log") as server:
        yield server
