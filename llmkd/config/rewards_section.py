"""One entry of the recipe's `rewards`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from llmkd.config.reward_kinds import REWARD_KINDS, RewardKind
from llmkd.config.values import number_from_text


class Reward(BaseModel):
    """A function, its weight and its knobs, which stand beside the keys named here.

    Like every section nothing is converted and nothing can be set later; unlike them unknown keys are taken, as knobs
    of the function, and `rules_of_rewards` says which of them it does not have.
    """

    model_config = ConfigDict(
        extra="allow", strict=True, frozen=True, allow_inf_nan=False, str_min_length=1, protected_namespaces=()
    )

    kind: RewardKind | None = Field(default=None, description="the reward, by its name; or give path")
    path: str | None = Field(default=None, description="your own: package.module.function, or file.py:function")
    name: str | None = Field(default=None, description="what logs call it, unique; null is the kind or the function")
    weight: float = Field(default=1.0, description="factor in the sum of rewards; below 0 it is a penalty")
    correct: bool = Field(default=False, description="1.0 of this one means a right answer; masks read it")
    column: str | None = Field(
        default="answer", validate_default=True,
        description="column of the data that holds the reference; null, and with kinds that read none: none",
    )  # fmt: skip
    on_error: Literal["mask", "stop"] = Field(
        default="mask", description="a sample it raises for or gives no finite number: left out and counted, or stop"
    )

    @field_validator("weight", mode="before")
    @classmethod
    def _read_number(cls, value: object) -> object:
        return number_from_text(value)

    @field_validator("column")
    @classmethod
    def _is_read(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        return value if kind is None or REWARD_KINDS[kind].needs_reference else None

    @property
    def knobs(self) -> dict[str, Any]:
        """The function's own settings."""
        return dict(self.model_extra or {})

    @property
    def label(self) -> str:
        """What logs call it."""
        return self.name or self.kind or (self.path or "").replace(":", ".").rpartition(".")[2]
