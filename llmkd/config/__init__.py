"""The recipe: its sections, how it is read, and what is said when it is wrong."""

from llmkd.config.errors import RecipeError
from llmkd.config.help import help_text
from llmkd.config.loading import TrainFields, from_dict, load
from llmkd.config.objective_section import Mask, Objective, Schedule, Temperature, TemperatureColumn, Term, TokenWeight
from llmkd.config.rewards_section import Reward
from llmkd.config.sections import (
    Data,
    DatasetSource,
    Eval,
    EvalTask,
    Hub,
    Lora,
    Quantization,
    Recipe,
    Run,
    Sampling,
    Student,
    Teacher,
    Train,
)
from llmkd.config.train_options import TrainField

__all__ = [
    "Data",
    "DatasetSource",
    "Eval",
    "EvalTask",
    "Hub",
    "Lora",
    "Mask",
    "Objective",
    "Quantization",
    "Recipe",
    "RecipeError",
    "Reward",
    "Run",
    "Sampling",
    "Schedule",
    "Student",
    "Teacher",
    "Temperature",
    "TemperatureColumn",
    "Term",
    "TokenWeight",
    "Train",
    "TrainField",
    "TrainFields",
    "from_dict",
    "help_text",
    "load",
]
