"""The final model, in a form that loads with ``from_pretrained`` alone."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from llmkd.build import Job
from llmkd.modelling import load_student

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
        if lora and student.merged_export:
            merge(job, target, folder / "model")
        elif student.save_dtype:
            convert(target, getattr(torch, student.save_dtype))
        job.tokenizer.save_pretrained(folder / ("model" if (folder / "model").is_dir() else "adapter"))
    trainer.accelerator.wait_for_everyone()


def merge(job: Job, adapter: Path, target: Path) -> None:
    """Load the base model once more, unquantised, put the adapter into its weights and save it."""
    from peft import PeftModel

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
