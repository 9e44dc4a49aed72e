"""Completions drawn by vLLM inside a training: what it is asked, against the installed vLLM; on a GPU, real runs.

Without a GPU vLLM's engine has a stand-in, which draws from the student itself; all else is TRL's own way to vLLM.
"""

import ast
import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from trl import DistillationConfig, GRPOConfig
from trl.generation import vllm_client, vllm_generation

from runs import built, make_inputs, metrics, write_rows
from serving import free_port, wait_until_up
from tiny import tiny_llama, tiny_tokenizer

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
CONFIGS = {"rl": GRPOConfig, "onpolicy": DistillationConfig}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    tiny_tokenizer(folder / "padded")
    tiny_llama(folder / "padded", vocab=448, initializer_range=0.1, seed=6)
    write_rows(folder / "sums.jsonl", [{"prompt": f"{a} + {b} ="} for a in range(5) for b in range(5)])
    (folder / "own.py").write_text(
        "def short(prompt, completion, reference):\n    return float(len(completion) % 3 == 0)\n"
    )
    return folder


def recipe(inputs: Path, output: Path, method: str, **train: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "run": {"output_dir": str(output), "seed": 3},
        "student": {"model_name_or_path": str(inputs / "student")},
        "teachers": [{"model_name_or_path": str(inputs / "teacher")}],
        "data": {"datasets": [{"path": str(inputs / "sums.jsonl")}]},
        "objective": {"terms": {"kd": {"term": "reverse_kl"}}},
        "train": {
            "method": method, "max_steps": 2, "per_device_train_batch_size": 8, "max_completion_length": 6,
            "learning_rate": 1e-3, "logging_steps": 1, "disable_tqdm": True, "use_vllm": True,
            "vllm_mode": "colocate", **train,
        },
    }  # fmt: skip
    if method == "rl":
        data["objective"]["terms"]["policy"] = {"term": "grpo"}
        data["rewards"] = [{"path": f"{inputs / 'own.py'}:short", "column": None, "correct": True}]
        data["train"]["num_generations"] = 4
    return data


# -- the installed signatures -----------------------------------------------------------------------------------------


def test_what_recipes_say_of_vllm_are_fields_of_trls_configs() -> None:
    said = 0
    for path in RECIPES.rglob("*.yaml"):
        train = (yaml.safe_load(path.read_text()) or {}).get("train") or {}
        keys = {key for key in train if "vllm" in key}
        if keys:
            assert keys <= set(CONFIGS[train["method"]].__dataclass_fields__), path
            said += len(keys)
    assert said > 0


def keywords(function: Any, called: str) -> set[str]:
    """Of the calls of a name inside a function."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == called]
    assert calls, f"{called} is not called any more"
    return {keyword.arg for call in calls for keyword in call.keywords if keyword.arg is not None}


@pytest.mark.vllm
def test_the_engine_takes_what_trl_gives_it() -> None:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    given = keywords(vllm_generation.VLLMGeneration._init_vllm, "LLM")
    known = set(inspect.signature(LLM.__init__).parameters) | set(EngineArgs.__dataclass_fields__)
    assert {"gpu_memory_utilization", "logprobs_mode"} <= given <= known


@pytest.mark.vllm
@pytest.mark.parametrize("generation", [{}, {"logit_bias": {384: -100.0}}])
def test_the_server_takes_what_trls_client_asks(monkeypatch: pytest.MonkeyPatch, generation: dict) -> None:
    """With the padding of a head left out, as ours are."""
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    asked: list[dict[str, Any]] = []

    def post(self: Any, url: str, json: dict[str, Any]) -> Any:
        asked.append(json)
        return {"choices": []}

    monkeypatch.setattr(vllm_client.VLLMClient, "_post", post)
    monkeypatch.setattr(vllm_client, "parse_logprobs", lambda choices: ([], []))
    client = object.__new__(vllm_client.VLLMClient)
    client.base_url, client.model = "http://nowhere", "tiny"
    client.generate(prompts=[[5, 6]], n=4, max_tokens=6, generation_kwargs=generation)
    sent = json.loads(json.dumps(asked[0]))  # as it goes over the wire
    assert set(sent) <= set(CompletionRequest.model_fields)
    request = CompletionRequest(**sent)
    assert (request.n, request.max_tokens, request.logprobs) == (4, 6, 0)
    assert request.logit_bias == ({"384": -100.0} if generation else None)


# -- whole runs beside a stand-in of the engine -----------------------------------------------------------------------


class Engine:
    """It draws with the student's own forward, and says the log-probabilities after temperature and bias."""

    def __init__(self, student: Any) -> None:
        self.student, self.asked, self.loads, self.resets = student, [], [], 0
        inner = SimpleNamespace(load_weights=lambda weights: self.loads.extend(name for name, _ in weights))
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=inner))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def generate(self, prompts: list[dict], sampling_params: Any, use_tqdm: bool) -> list[Any]:
        self.asked.append(sampling_params)
        return [self._written(prompt["prompt_token_ids"], sampling_params) for prompt in prompts]

    @torch.no_grad()
    def _written(self, prompt: list[int], asked: Any) -> Any:
        ids, said = list(prompt), []
        for _ in range(asked.max_tokens):
            logits = self.student(input_ids=torch.tensor([ids])).logits[0, -1] / asked.temperature
            for token, bias in (asked.logit_bias or {}).items():
                logits[token] += bias
            logp = logits.log_softmax(-1)
            ids.append(token := int(torch.multinomial(logp.exp(), 1)))
            said.append({token: SimpleNamespace(rank=1, logprob=float(logp[token]))})
            if token == self.student.config.eos_token_id:
                break
        written = SimpleNamespace(token_ids=ids[len(prompt) :], logprobs=said)
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[written])


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    made: list[Engine] = []

    def init(self: Any) -> None:
        made.append(Engine(self.model))
        self.llm, self._llm_weights_sleeping = made[-1], False

    monkeypatch.setattr(vllm_generation.VLLMGeneration, "_init_vllm", init)
    return made


@pytest.mark.vllm
@pytest.mark.parametrize("method", CONFIGS)
def test_a_run_asks_as_the_recipe_says_and_sends_all_weights(
    inputs: Path, tmp_path: Path, method: str, engines: list[Engine]
) -> None:
    trainer = built(recipe(inputs, tmp_path / "run", method, use_cpu=True)).trainer
    trainer.train()
    (engine,) = engines
    assert [(a.n, a.max_tokens, a.temperature, a.logit_bias) for a in engine.asked] == [(1, 6, 1.0, None)] * 2
    assert sorted(engine.loads) == sorted([name for name, _ in trainer.model.named_parameters()] * 2)
    assert engine.resets == 2
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 2 and all(line["grad_norm"] > 0 for line in lines)
    if method == "rl":  # the student drew: no token is more likely than it said
        assert engine.asked[0].logprobs == 0
        assert [line["sampling/importance_sampling_ratio/mean"] for line in lines] == pytest.approx([1, 1], abs=1e-4)


@pytest.mark.vllm
@pytest.mark.parametrize("method", CONFIGS)
def test_the_padding_of_a_head_is_not_drawn(inputs: Path, tmp_path: Path, method: str, engines: list[Engine]) -> None:
    data = recipe(inputs, tmp_path / "run", method, use_cpu=True, max_steps=1)
    data["student"]["model_name_or_path"] = str(inputs / "padded")
    built(data).trainer.train()
    assert engines[0].asked[0].logit_bias == dict.fromkeys(range(384, 448), -100.0)


# -- real runs --------------------------------------------------------------------------------------------------------


def assert_learns(data: dict[str, Any], method: str) -> None:
    """On one GPU, in a process of its own: an engine keeps its memory until the process ends."""
    output = Path(data["run"]["output_dir"])
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(data))
    command, environment = [sys.executable, "-m", "llmkd.train", str(path)], os.environ | {"CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-6000:]
    lines = [line for line in metrics(output) if "loss" in line]
    assert len(lines) == 2 and all(line["grad_norm"] > 0 for line in lines)
    if method == "rl":
        for line in lines:  # the weights in vLLM are the student's, also after an update; bfloat16 on both sides
            assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=0.1)


@pytest.mark.gpu
@pytest.mark.vllm
@pytest.mark.parametrize("method", CONFIGS)
def test_colocated(inputs: Path, tmp_path: Path, method: str) -> None:
    assert_learns(recipe(inputs, tmp_path / "run", method, bf16=True, vllm_gpu_memory_utilization=0.2), method)


@contextmanager
def server(model: Path, log: Path) -> Iterator[str]:
    """A server on the second GPU that takes weights, as TRL's documentation starts it."""
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port),
        "--host", "127.0.0.1", "--gpu-memory-utilization", "0.3", "--max-model-len", "256", "--max-logprobs", "-1",
        "--logprobs-mode", "processed_logprobs", "--weight-transfer-config", '{"backend": "nccl"}',
    ]  # fmt: skip
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "CUDA_VISIBLE_DEVICES": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        wait_until_up(process, url := f"http://127.0.0.1:{port}", log)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.gpu
@pytest.mark.vllm
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: the server has one for itself")
@pytest.mark.parametrize("method", CONFIGS)
def test_beside_a_server(inputs: Path, tmp_path: Path, method: str) -> None:
    with server(inputs / "student", tmp_path / "server.log") as url:
        data = recipe(
            inputs, tmp_path / "run", method, bf16=True, vllm_mode="server", vllm_server_base_url=url,
            vllm_group_port=free_port(),
        )  # fmt: skip
        assert_learns(data, method)
