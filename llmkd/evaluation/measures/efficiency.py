"""What a model costs: parameters, bytes, tokens a second, memory, and energy where the machine has a meter.

Speeds are of this machine, this precision and these lengths, all of which the settings name; they compare models
measured side by side and say nothing about a serving engine.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from llmkd.backbone import causal_lm, head_module
from llmkd.evaluation.intervals import Estimate
from llmkd.evaluation.measures.found import Found
from llmkd.evaluation.results import Metric

VERSION = "1"
POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Meter:
    """read: joules since some moment, of ``what``; None with the reason where there is no meter."""

    read: Callable[[], float] | None
    what: str


def measure_efficiency(
    model: nn.Module, *, batch_size: int = 1, prompt_tokens: int = 128, new_tokens: int = 64, repeats: int = 5,
    seed: int = 0,
) -> Found:  # fmt: skip
    """Reads random prompts ``[batch_size, prompt_tokens]``, then writes ``new_tokens`` a row greedily with a cache.

    One round to warm up, then ``repeats`` measured ones; speeds are medians, all rounds are in the details.

        parameters, non_embedding_parameters, bytes     of the model
        prefill   batch_size * prompt_tokens / seconds, in tokens/s
        decode    batch_size * new_tokens / seconds, in tokens/s, without the prefill
        working_memory  most bytes held during a round beyond what was held before it, so without the weights
        energy    joules for each written token, its share of the prefill and the machine's idling included

    Left out, with the reason in ``details["left_out"]``: memory and energy where nothing measures them.  Raises
    ValueError for lengths below 1 or beyond the model's positions.
    """
    lm = causal_lm(model)
    _check_lengths(lm, batch_size, prompt_tokens, new_tokens, repeats)
    was_training = lm.training
    lm.eval()
    device = next(lm.parameters()).device
    rows = int(lm.get_input_embeddings().weight.shape[0])
    ids = torch.randint(rows, (batch_size, prompt_tokens), generator=torch.Generator().manual_seed(seed)).to(device)
    meter = energy_meter(device)
    one_round(lm, ids, new_tokens)
    memory = working_memory(device, lambda: one_round(lm, ids, new_tokens))
    before = meter.read() if meter.read else 0.0
    rounds = [one_round(lm, ids, new_tokens) for _ in range(repeats)]
    joules = meter.read() - before if meter.read else None
    lm.train(was_training)

    written = batch_size * new_tokens
    metrics = {name: Metric(_known(value), "lower", unit) for name, (value, unit) in sizes(model).items()}
    speeds = {
        "prefill": [batch_size * prompt_tokens / p for p, _ in rounds],
        "decode": [written / d for _, d in rounds],
    }
    for name, values in speeds.items():
        metrics[name] = Metric(Estimate(median(values), None, None, repeats), "higher", "tokens/s")
    left_out = {}
    if isinstance(memory, str):
        left_out["working_memory"] = memory
    else:
        metrics["working_memory"] = Metric(_known(memory), "lower", "bytes")
    if joules is None:
        left_out["energy"] = meter.what
    else:
        metrics["energy"] = Metric(Estimate(joules / (repeats * written), None, None, repeats), "lower", "J/token")
    details = {"rounds": speeds, "left_out": left_out, "meter": meter.what if meter.read else None}
    return Found(metrics, details, (), {
        "batch_size": batch_size, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats,
        "device": device_name(device), "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "dtype": str(next(lm.parameters()).dtype).removeprefix("torch."),
    })  # fmt: skip


def _known(value: float) -> Estimate:
    """A number that was counted or measured once."""
    return Estimate(value, None, None, 1)


def _check_lengths(lm: Any, batch_size: int, prompt_tokens: int, new_tokens: int, repeats: int) -> None:
    given = {"batch_size": batch_size, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats}
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"efficiency: {name} is {value}: give at least 1")
    most = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    if most and prompt_tokens + new_tokens > most:
        raise ValueError(
            f"efficiency: prompt_tokens {prompt_tokens} + new_tokens {new_tokens} are more than the model's {most} "
            "positions: ask for fewer"
        )


# -- parts -------------------------------------------------------------------------------------------------------------


def sizes(model: nn.Module) -> dict[str, tuple[int, str]]:
    """Parameters, each shared one once; those that are neither input embedding nor output projection; bytes of all."""
    lm = causal_lm(model)
    every = {id(p): p for p in model.parameters()}
    embedding = {id(lm.get_input_embeddings().weight), *(id(p) for p in head_module(lm).parameters())}
    return {
        "parameters": (sum(p.numel() for p in every.values()), ""),
        "non_embedding_parameters": (sum(p.numel() for key, p in every.items() if key not in embedding), ""),
        "bytes": (sum(p.numel() * p.element_size() for p in every.values()), "bytes"),
    }


@torch.no_grad()
def one_round(lm: Any, ids: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of the prefill and of the decoding.  The prefill's forward gives the first token's logits, so that
    ``new_tokens`` further forward passes are what decoding is timed by."""
    # As in generation, only the last position goes through the head.
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(lm.forward).parameters else {}
    start = _now(ids.device)
    out = lm(input_ids=ids, use_cache=True, **last)
    middle = _now(ids.device)
    for _ in range(new_tokens):
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        out = lm(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
    return middle - start, _now(ids.device) - middle


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def working_memory(device: torch.device, act: Callable[[], Any]) -> int | str:
    """Most bytes held during ``act`` beyond those held before, or why that is unknown: of PyTorch's allocator on a GPU,
    of the process's resident pages on a CPU."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        act()
        return int(torch.cuda.max_memory_allocated(device) - before)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = _resident("VmRSS")
        act()
        return max(0, _resident("VmHWM") - before)
    except OSError as error:
        return f"the peak of resident memory cannot be read here ({error.strerror})"


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return device.type


# -- energy ------------------------------------------------------------------------------------------------------------


def energy_meter(device: torch.device, powercap: Path = POWERCAP) -> Meter:
    """The GPU's own counter (NVML) for a model on one, else the processor packages' (Linux RAPL)."""
    return _gpu_meter(device) if device.type == "cuda" else _processor_meter(powercap)


def _gpu_meter(device: torch.device) -> Meter:
    if find_spec("pynvml") is None:
        return Meter(None, "pynvml is not installed: pip install nvidia-ml-py")
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return Meter(None, f"this GPU has no energy counter ({error})")
    return Meter(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000, "the whole GPU, by NVML")


def _processor_meter(powercap: Path) -> Meter:
    # Their parts (intel-rapl:0:0) are in them already, and "psys" is the packages and more.
    domains = sorted(powercap.glob("*-rapl:[0-9]"))
    packages = [domain for domain in domains if (domain / "name").read_text().startswith("package")]
    if not packages:
        return Meter(None, f"no energy meter: {powercap} has no RAPL packages (virtual machines have none)")
    unreadable = [str(p / "energy_uj") for p in packages if not os.access(p / "energy_uj", os.R_OK)]
    if unreadable:
        return Meter(None, f"{unreadable[0]} is for root alone: run as root, or let it be read")
    ranges = [int((p / "max_energy_range_uj").read_text()) for p in packages]
    state = {"last": [_microjoules(p) for p in packages], "sum": 0}

    def read() -> float:
        """The counters start again from 0 at their range; read more often than that (minutes)."""
        now = [_microjoules(p) for p in packages]
        state["sum"] += sum((n - last) % most for n, last, most in zip(now, state["last"], ranges, strict=True))
        state["last"] = now
        return state["sum"] / 1e6

    return Meter(read, f"{len(packages)} processor package(s) with all that runs on them, by RAPL")


def _microjoules(package: Path) -> int:
    return int((package / "energy_uj").read_text())
