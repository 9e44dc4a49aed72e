"""The recipe: its sections, how it is read, and what is said when it is wrong."""

from llmkd.config.errors import RecipeError
from llmkd.config.help import help_text
from llmkd.config.loading import from_dict, load
from llmkd.config.sections import (
    Data,
    DatasetSource,
    Eval,
    EvalTask,
    Hub,
    Lora,
    Mask,
    Objective,
    Quantization,
    Recipe,
    Run,
    Sampling,
    Schedule,
    Student,
    Teacher,
    Temperature,
    TemperatureColumn,
    Term,
    TokenWeight,
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
    "from_dict",
    "help_text",
    "load",
]
