"""A small valid recipe, and what is said when one value of it is changed."""

from typing import Any

import pytest

from llmkd.config import RecipeError, TrainField, from_dict

FIELDS = {
    field.name: field
    for field in [
        TrainField("learning_rate", (float,), False, None),
        TrainField("max_steps", (int,), False, None),
        TrainField("max_length", (int,), True, None),
        TrainField("logging_steps", (float,), False, None),
        TrainField("warmup_steps", (float,), False, None),
        TrainField("packing", (bool,), False, None),
        TrainField("bf16", (bool,), True, None),
        TrainField("eval_strategy", (str,), False, ("no", "steps", "epoch")),
        TrainField("optim", (str,), False, ("adamw_torch", "muon")),
        TrainField("lr_scheduler_kwargs", (dict, str), True, None),
        TrainField("include_for_metrics", (list,), False, None),
        TrainField("per_device_train_batch_size", (int,), False, None),
        TrainField("gradient_accumulation_steps", (int,), False, None),
        TrainField("max_grad_norm", (float,), False, None),
        TrainField("early_stopping_patience", (int,), True, None),
        TrainField("output_dir", (str,), True, None),
        TrainField("seed", (int,), False, None),
        TrainField("hub_token", (str,), True, None),
    ]
}

RECIPE = """\
run: {output_dir: runs/x, seed: 3}
student: {model_name_or_path: org/small}
teachers:
  - {model_name_or_path: org/big, dtype: bfloat16}
data:
  datasets:
    - {path: code.jsonl, domain: code}
    - {path: math.jsonl, domain: math}
objective:
  temperature: {student: 1, teacher: 2.0}
  terms:
    ce: {term: cross_entropy, weight: 0.5}
    kd: {term: forward_kl, mask: {positions: [0, 10]}}
train: {method: offpolicy, learning_rate: 5e-7, max_steps: 10}
eval: {tasks: [{task: arithmetic, levels: [1, 2]}]}
"""


def plain() -> dict[str, Any]:
    """The recipe above as the dict that YAML makes of it, written out by hand."""
    return {
        "run": {"output_dir": "runs/x", "seed": 3},
        "student": {"model_name_or_path": "org/small"},
        "teachers": [{"model_name_or_path": "org/big", "dtype": "bfloat16"}],
        "data": {"datasets": [{"path": "code.jsonl", "domain": "code"}, {"path": "math.jsonl", "domain": "math"}]},
        "objective": {
            "temperature": {"student": 1, "teacher": 2.0},
            "terms": {
                "ce": {"term": "cross_entropy", "weight": 0.5},
                "kd": {"term": "forward_kl", "mask": {"positions": [0, 10]}},
            },
        },
        "train": {"method": "offpolicy", "learning_rate": 5e-7, "max_steps": 10},
        "eval": {"tasks": [{"task": "arithmetic", "levels": [1, 2]}]},
    }


MISSING = object()


def changed(path: str, value: Any) -> dict[str, Any]:
    """The recipe with one value set (or, with MISSING, removed)."""
    data = plain()
    place: Any = data
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in way:
        place = place[step]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return data


def problems(data: Any, fields: dict[str, TrainField] | None = FIELDS) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        from_dict(data, source="x.yaml", train_fields=fields)
    return str(caught.value).splitlines()


def only_problem(path: str, value: Any, fields: dict[str, TrainField] | None = FIELDS) -> str:
    """The one line said about the recipe with one value changed."""
    lines = problems(changed(path, value), fields)
    assert len(lines) == 1, lines
    return lines[0]
