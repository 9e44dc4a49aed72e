"""The sections of a recipe and their keys.

Rules that need more than one key are in `rules.py`; what is not built yet is named in a field's `not_built`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from llmkd.config.objective_section import POLICY_TERMS, Objective
from llmkd.config.rewards_section import Reward
from llmkd.config.section import Files, Section, TextOrList
from llmkd.config.values import shown

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Hub(Section):
    model_id: str = Field(description="repository to push to, user/name")
    private: bool = Field(default=False, description="make the repository private")
    push: Literal["end", "checkpoint"] = Field(default="end", description="push the final model, or each checkpoint")


class Run(Section):
    name: str = Field(default="run", description="name; left out, that of the recipe's file")
    output_dir: str = Field(description="the run folder")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of everything random")
    report_to: TextOrList = Field(default="none", description="none, tensorboard, wandb, trackio, or a list of them")
    resume: Literal["never", "auto"] = Field(default="never", description="auto: go on from the last checkpoint")
    world_size: int | None = Field(default=None, ge=1, description="number of processes the recipe is meant for")
    hub: Hub | None = Field(default=None, description="push to the Hugging Face hub")


class Lora(Section):
    r: int = Field(default=16, ge=1, description="rank")
    lora_alpha: int = Field(default=32, ge=1, description="scale; the update is multiplied by lora_alpha / r")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout in front of the adapter")
    target_modules: TextOrList = Field(default="all-linear", description="modules that get an adapter")
    modules_to_save: list[str] | None = Field(default=None, description="modules trained and saved whole")
    use_rslora: bool = Field(default=False, description="scale by lora_alpha / sqrt(r)")
    use_dora: bool = Field(default=False, description="weight-decomposed adapters")
    bias: Literal["none", "all", "lora_only"] = Field(default="none", description="which biases are trained")
    task_type: Literal["CAUSAL_LM"] = Field(default="CAUSAL_LM", description="peft's task type")


class Quantization(Section):
    load_in_4bit: bool = Field(default=False, description="4-bit weights (bitsandbytes)")
    load_in_8bit: bool = Field(default=False, description="8-bit weights (bitsandbytes)")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field(default="nf4", description="4-bit data type")
    bnb_4bit_use_double_quant: bool = Field(default=False, description="quantise the scales too")
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="dtype of the matrix products"
    )


class Student(Section):
    model_name_or_path: str | None = Field(default=None, description="hub name or folder; or give from_config")
    from_config: dict[str, Any] | None = Field(
        default=None, description="a fresh model: keys of a transformers config, model_type among them"
    )
    tokenizer_name_or_path: str | None = Field(default=None, description="its tokenizer; required with from_config")
    revision: str | None = Field(default=None, description="branch, tag or commit")
    dtype: Dtype = Field(default="float32", description="dtype of the weights")
    attn_implementation: str | None = Field(default=None, description="eager, sdpa, flash_attention_2, ...")
    trust_remote_code: bool = Field(default=False, description="run code from the model's repository")
    chat_template: str | None = Field(default=None, description="path of a Jinja chat template")
    lora: Lora | None = Field(default=None, description="train adapters in place of all weights")
    quantization: Quantization | None = Field(default=None, description="quantised base (QLoRA); needs lora")
    merged_export: bool = Field(default=True, description="with lora: also write the merged model")
    save_dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="dtype of the final model; null is that of the training"
    )


class Teacher(Section):
    name: str = Field(default="teacher", description="what a term calls it; unique")
    kind: Literal["local"] = Field(
        default="local",
        description="where it runs",
        json_schema_extra={"not_built": ["server", "cache", "ensemble", "self"]},
    )
    model_name_or_path: str = Field(description="hub name or folder")
    revision: str | None = Field(default=None, description="branch, tag or commit")
    dtype: Dtype = Field(default="auto", description="dtype of the weights")
    attn_implementation: str | None = Field(default=None, description="eager, sdpa, flash_attention_2, ...")
    trust_remote_code: bool = Field(default=False, description="run code from the model's repository")
    quantization: Quantization | None = Field(default=None, description="quantised weights")
    template: Literal["student", "own"] = Field(
        default="student", description="on whose rendering of a chat it is scored"
    )


TASKS_PATH = "llmkd/tasks"  # problems that are made, in place of rows that are read


class DatasetSource(Section):
    path: str = Field(description="local file or folder, hub data set, llmkd/quickstart, or llmkd/tasks")
    name: str | None = Field(default=None, description="configuration of the data set, or the task")
    split: str = Field(default="train", description="split to read")
    domain: str = Field(default="all", description="domain its rows count to; two sources may share one")
    weight: float | None = Field(default=None, gt=0, description="share when drawing, with sampling.kind: weighted")
    data_files: Files | None = Field(default=None, description="files inside path, as in datasets.load_dataset")
    streaming: bool = Field(default=False, description="read without downloading all of it")
    max_rows: int | None = Field(default=None, ge=1, description="use the first rows only")
    columns: dict[str, str] | None = Field(
        default=None, description="our column: theirs; ours are messages, prompt, completion, text"
    )
    options: dict[str, Any] | None = Field(
        default=None, description="llmkd/tasks: the task's difficulty, and the seed of its problems (default 0)"
    )

    @field_validator("options")
    @classmethod
    def _is_of_task(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if value is not None and info.data.get("path", TASKS_PATH) != TASKS_PATH:
            raise ValueError(f"read by path: {TASKS_PATH} only, not by {shown(info.data['path'])}: leave it out")
        return value


class Sampling(Section):
    kind: Literal["proportional", "weighted", "uniform"] = Field(
        default="proportional", description="draw by number of rows, by weight, or from every source alike"
    )


class Data(Section):
    datasets: list[DatasetSource] = Field(min_length=1, description="the training sources")
    sampling: Sampling = Field(default_factory=Sampling, description="how rows are drawn from several sources")


class Train(Section):
    method: Literal["sft", "offpolicy", "onpolicy", "rl"] = Field(
        description="the trainer",
        json_schema_extra={"not_built": ["classification"]},
    )
    options: dict[str, Any] = Field(default_factory=dict, description="fields of the method's config")

    @field_validator("method", mode="before")
    @classmethod
    def _is_no_term(cls, value: object) -> object:
        if value in POLICY_TERMS:
            raise ValueError(f"{value} is a term: give method: rl and objective.terms: {{policy: {{term: {value}}}}}")
        return value


class EvalTask(Section):
    task: Literal["arithmetic", "countdown", "knights_and_knaves", "zebra", "programs"] = Field(description="the task")
    name: str | None = Field(default=None, description="what its results are called; null is the task's name")
    levels: list[Annotated[int, Field(ge=1, le=4)]] | None = Field(
        default=None, min_length=1, description="arithmetic: difficulty levels, 1 to 4; null is all"
    )
    options: dict[str, Any] | None = Field(
        default=None, description="other tasks: the difficulty, as in data.datasets, and a seed of the problems"
    )
    n: int = Field(default=100, ge=1, description="number of problems; of arithmetic without samples, of each level")
    samples: int = Field(default=0, ge=0, description="completions of a problem, at temperature 1; 0 is one, greedy")
    k: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None, min_length=1, description="the k of pass@k, each at most samples; null is [1]"
    )
    max_new_tokens: int = Field(default=128, ge=1, description="longest completion")

    @property
    def label(self) -> str:
        return self.name or self.task

    @property
    def by_level(self) -> bool:
        """Whether it is measured by exact match, level by level, in place of pass@k."""
        return self.task == "arithmetic" and self.samples == 0

    @property
    def difficulty(self) -> dict[str, Any]:
        """Its options, as the table of tasks takes them."""
        return {"levels": self.levels} if self.levels else self.options or {}


class Eval(Section):
    datasets: list[DatasetSource] = Field(default_factory=list, description="held-out sources")
    samples: int = Field(default=0, ge=0, description="completions logged at each evaluation")
    tasks: list[EvalTask] = Field(default_factory=list, description="tasks with a checkable answer")
    baseline: bool = Field(default=False, description="train the same student on cross-entropy alone, to compare")
    fidelity: bool = Field(default=True, description="KL to the teacher and agreement with it")
    max_rows: int | None = Field(default=None, ge=1, description="rows of each held-out source")


class Recipe(Section):
    """One run, validated before anything is loaded."""

    run: Run = Field(description="where the run goes and what it is called")
    student: Student = Field(description="the model that is trained")
    teachers: list[Teacher] = Field(default_factory=list, description="the models it learns from")
    data: Data = Field(description="what it is trained on")
    objective: Objective = Field(description="the loss: a sum of terms (method sft: may be left out)")
    rewards: list[Reward] = Field(default_factory=list, description="what completions are graded by (rl, nft)")
    train: Train = Field(description="method, and the fields of the method's config")
    eval: Eval = Field(default_factory=Eval, description="what is measured during and after training")

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe in the shape of the YAML file; `from_dict` makes the same Recipe of it."""
        plain = self.model_dump(by_alias=True)
        plain["train"] = {"method": self.train.method, **plain["train"]["options"]}
        return plain
