"""The final model, in a form that loads with ``from_pretrained`` alone."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from huggingface_hub import HfApi
from transformers import set_seed

from llmkd.build import Job
from llmkd.modelling import load_student, whole_at_load

logger = logging.getLogger(__name__)


def save_final(job: Job) -> None:
    """Write ``model/``; after LoRA ``adapter/``, and ``model/`` with the adapter merged in unless the recipe says no.

    ``student.save_dtype`` is the dtype of what is written; the training's otherwise.  All processes must call this.
    """
    folder = Path(job.recipe.run.output_dir)
    trainer, student = job.trainer, job.recipe.student
    lora = student.lora is not None
    target = folder / ("adapter" if lora else "model")
    trainer.save_model(str(target))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        with whole_at_load():  # this process is alone here
            if lora and student.merged_export:
                merge(job, target, folder / "model")
            elif student.save_dtype:
                convert(target, getattr(torch, student.save_dtype))
        job.tokenizer.save_pretrained(folder / ("model" if (folder / "model").is_dir() else "adapter"))
    trainer.accelerator.wait_for_everyone()


def push(job: Job) -> str | None:
    """Upload the final model, card included, to the hub; what went wrong if it did, since the run itself is safe."""
    hub = job.recipe.run.hub
    if hub is None or not job.trainer.args.should_save:
        return None
    folder = Path(job.recipe.run.output_dir)
    api = HfApi()
    try:
        api.create_repo(hub.model_id, private=hub.private, exist_ok=True)
        for name in ("model", "adapter"):
            if (folder / name).is_dir():
                inside = "" if name == "model" or not (folder / "model").is_dir() else "adapter"
                api.upload_folder(repo_id=hub.model_id, folder_path=folder / name, path_in_repo=inside)
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors
        reason = str(error).strip().splitlines()[0]
        return f"run.hub: {hub.model_id} was not pushed ({reason}): the model is in {folder}; push it with `hf upload`"
    return None


def merge(job: Job, adapter: Path, target: Path) -> None:
    """Load the base model once more, unquantised, put the adapter into its weights and save it."""
    from peft import PeftModel

    set_seed(job.recipe.run.seed)  # a fresh student is made again from the seed
    base = load_student(job.recipe.student.model_copy(update={"quantization": None}), job.tokenizer)
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    if job.recipe.student.save_dtype:
        merged = merged.to(getattr(torch, job.recipe.student.save_dtype))
    merged.save_pretrained(target)


def convert(folder: Path, dtype: torch.dtype) -> None:
    """Write a saved model again in another dtype."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    model.save_pretrained(folder)
