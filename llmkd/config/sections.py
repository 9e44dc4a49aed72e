"""The sections of a recipe and their keys.

Rules that need more than one key are in `rules.py`; what is not built yet is named in a field's `not_built`.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationInfo,
    field_validator,
)

from llmkd.config.rewards_section import Reward
from llmkd.config.values import number_from_text, shown
from llmkd.terms import SEQUENCE_TERMS, TERMS, SequenceTermName, TermName

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def _text_or_list(value: object) -> object:
    entries = value if isinstance(value, list) else [value]
    if all(isinstance(entry, str) and entry for entry in entries):
        return value
    raise ValueError(f"{shown(value)} is neither text nor a list of texts: give one of the two")


def _files(value: object) -> object:
    return value if isinstance(value, dict) else _text_or_list(value)


TextOrList = Annotated[str | list[str], PlainValidator(_text_or_list)]
Files = Annotated[str | list[str] | dict[str, Any], PlainValidator(_files)]


class Section(BaseModel):
    """Unknown keys are refused, nothing is converted (but an int may stand for a float), nothing can be set later."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        str_min_length=1,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_number(cls, value: object, info: ValidationInfo) -> object:
        wants_float = info.field_name and _takes_float(cls.model_fields[info.field_name].annotation)
        return number_from_text(value) if wants_float else value


def _takes_float(annotation: Any) -> bool:
    return annotation is float or any(_takes_float(member) for member in get_args(annotation))


def _number_or_section(value: object) -> str:
    return "<section>" if isinstance(value, dict | BaseModel) else "<number>"


# A number, or a mapping with keys of its own. The tags stand in pydantic's paths and are taken out of messages.
Number = Annotated[float, Tag("<number>")]


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


class TemperatureColumn(Section):
    column: str = Field(description="column of the data that holds a temperature for each row")


TemperatureValue = Annotated[Number | Annotated[TemperatureColumn, Tag("<section>")], Discriminator(_number_or_section)]


class Temperature(Section):
    student: TemperatureValue = Field(default=1.0, description="divides the student's logits; or {column: NAME}")
    teacher: TemperatureValue = Field(default=1.0, description="divides the teacher's logits; or {column: NAME}")

    @field_validator("student", "teacher")
    @classmethod
    def _is_above_zero(cls, value: float | TemperatureColumn) -> float | TemperatureColumn:
        if isinstance(value, float) and value <= 0:
            raise ValueError(f"{value:g} is outside (0, inf): give a number inside it")
        return value


class Schedule(Section):
    schedule: Literal["constant", "linear", "cosine", "switch_at", "piecewise", "adaptive"] = Field(
        description="how it goes from `from` to `to`; piecewise: through points; adaptive: TAID's t"
    )
    start: float | None = Field(default=None, alias="from", description="value before the first step")
    stop: float | None = Field(default=None, alias="to", description="value after `steps` steps")
    steps: int | None = Field(default=None, ge=1, description="optimizer steps; null is the whole run")
    points: list[list[float]] | None = Field(default=None, min_length=1, description="[step, value] pairs (piecewise)")
    alpha: float | None = Field(default=None, gt=0, description="how fast an adaptive t rises, default 5e-4")
    beta: float | None = Field(default=None, ge=0, lt=1, description="its momentum, default 0.99")


NumberOrSchedule = Annotated[Number | Annotated[Schedule, Tag("<section>")], Discriminator(_number_or_section)]


class Mask(Section):
    domains: list[str] | None = Field(default=None, min_length=1, description="keep tokens of these domains")
    positions: list[int | None] | None = Field(
        default=None, description="[from, to): index among the row's counted tokens; null is the end"
    )

    @field_validator("positions")
    @classmethod
    def _is_range(cls, value: list[int | None] | None) -> list[int | None] | None:
        if value is None:
            return None
        start, end = value if len(value) == 2 else (None, None)
        if start is None or start < 0 or (end is not None and end <= start):
            raise ValueError(f"{shown(value)} is not a range: give [from, to] with 0 <= from < to, or [from, null]")
        return value


PolicyTermName = Literal["grpo", "nft"]
if TYPE_CHECKING:
    AnyTermName = TermName | SequenceTermName | PolicyTermName
else:  # one list of names, for the messages
    AnyTermName = Literal[(*get_args(TermName), *SEQUENCE_TERMS, *get_args(PolicyTermName))]
POLICY_TERMS: tuple[str, ...] = get_args(PolicyTermName)
SampleMask = Literal["correct", "incorrect", "group_all_wrong"]
# Terms that read no teacher; every other term needs one.
TEACHERLESS_TERMS = frozenset(name for name, row in TERMS.items() if not row.needs_teacher) | {*POLICY_TERMS}


def _name_or_section(value: object) -> str:
    return "<section>" if isinstance(value, dict | BaseModel) else "<name>"


MaskOrName = Annotated[
    Annotated[Mask, Tag("<section>")] | Annotated[SampleMask, Tag("<name>")], Discriminator(_name_or_section)
]


class TokenWeight(Section):
    by: Literal["student_entropy", "teacher_entropy", "teacher_confidence", "position", "column", "importance"] = Field(
        description="entropy / ln V, the teacher's largest probability, 2^(-position / half_life), a column, or q over "
        "what the token was drawn from (method onpolicy)"
    )
    column: str | None = Field(default=None, description="column of the data with a weight for each row (column)")
    half_life: float | None = Field(default=None, gt=0, description="tokens after which it halves (position)")
    floor: float = Field(default=0.0, ge=0, le=1, description="the weight w becomes floor + (1 - floor) w^power")
    power: float = Field(default=1.0, gt=0, description="see floor")


class Term(Section):
    term: AnyTermName = Field(
        description="the loss, by its name; future_reverse_kl: of method onpolicy; grpo and nft: of method rl",
        json_schema_extra={"not_built": ["sinkhorn", "features"]},
    )
    weight: NumberOrSchedule = Field(default=1.0, description="factor of the term: a number or a schedule")
    mask: MaskOrName | None = Field(
        default=None,
        description="which counted tokens the term reads; method rl: correct, incorrect, group_all_wrong; null is all",
    )
    estimator: Literal["k1_reward", "k2", "k3", "exact", "topk"] | None = Field(
        default=None, description="method rl: how reverse_kl is made on the student's samples; null is k2"
    )
    k: int | None = Field(default=None, ge=1, description="estimator topk: likeliest tokens, default 64")
    completions: Literal["own", "data"] | None = Field(
        default=None,
        description="method onpolicy: which completions it reads, the student's own or the data's; null is both",
    )
    normalize: Literal["all", "kept"] = Field(
        default="all", description="divide by all counted tokens, or by those the mask keeps"
    )
    token_weight: TokenWeight | None = Field(default=None, description="how much each token weighs; null is alike")
    returns: Literal["normalised", "plain"] | None = Field(
        default=None, description="future_reverse_kl: mean (null) or sum of the rewards of the tokens that follow"
    )
    teacher: str | None = Field(default=None, description="name of its teacher, where there are several")
    alpha: float | None = Field(default=None, description="skew_forward_kl, skew_reverse_kl, alpha_beta")
    beta: float | None = Field(default=None, description="jsd, alpha_beta")
    mu: float | None = Field(default=None, description="adaptive_kl: mass of the head")
    low: float | None = Field(default=None, description="balanced_kl: weight of the less pressing divergence")
    high: float | None = Field(default=None, description="balanced_kl: weight of the more pressing divergence")
    gamma: float | None = Field(default=None, description="nkd: weight of the tokens that are not the target")
    t: NumberOrSchedule | None = Field(default=None, description="taid: how far its target goes; null is adaptive")
    of: dict[str, float] | None = Field(default=None, description="mixture: divergences and their shares")
    detach_mixture: bool | None = Field(default=None, description="skew_reverse_kl: no gradient through the mixture")
    advantage: Literal["normalised", "plain", "unweighted"] | None = Field(
        default=None, description="nft: (c - r) / sqrt(r (1 - r)), c - r, or (c - r) / (1 - r); null is normalised"
    )
    negative_weight: float | None = Field(default=None, ge=0, description="nft: of wrong completions; null is 1")

    @field_validator("weight")
    @classmethod
    def _is_not_negative(cls, value: float | Schedule) -> float | Schedule:
        if isinstance(value, float) and value < 0:
            raise ValueError(f"{value:g} is outside [0, inf): give a number inside it")
        return value

    @property
    def knobs(self) -> dict[str, Any]:
        """What is given of the numbers and switches of its formula."""
        names = ("alpha", "beta", "mu", "low", "high", "gamma", "t", "of", "detach_mixture")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.term == "taid":
            given.setdefault("t", Schedule(schedule="adaptive"))
        return given


class Objective(Section):
    temperature: Temperature = Field(default_factory=Temperature, description="temperatures of every divergence")
    logit_standardize: bool = Field(
        default=False, description="divergences see (logits - mean) / std over the vocabulary, before the temperature"
    )
    compiled: bool = Field(default=False, description="compile the loss with torch.compile (CPU; a C++ compiler)")
    terms: dict[str, Term] = Field(min_length=1, description="the terms that are summed, each under a name")


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
