"""The `objective` section: its terms and what each may say."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator

from llmkd.config.section import Number, Section, number_or_section
from llmkd.config.values import shown
from llmkd.terms import SEQUENCE_TERMS, TERMS, SequenceTermName, TermName


class TemperatureColumn(Section):
    column: str = Field(description="column of the data that holds a temperature for each row")


TemperatureValue = Annotated[Number | Annotated[TemperatureColumn, Tag("<section>")], Discriminator(number_or_section)]


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


NumberOrSchedule = Annotated[Number | Annotated[Schedule, Tag("<section>")], Discriminator(number_or_section)]


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
        description="which tokens it reads; method rl: correct, incorrect, group_all_wrong; null or none is all",
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

    @field_validator("mask", mode="before")
    @classmethod
    def _none_is_null(cls, value: object) -> object:
        return None if value == "none" else value

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
