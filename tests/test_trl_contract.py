"""What is taken from TRL and transformers beyond their public interface, with the signatures it is called by.

A new version that moves one of these fails here, by name, and not in a run.
"""

import inspect
from collections.abc import Callable

import pytest
import trl
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTConfig, SFTTrainer
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation

from llmkd.trainers.offpolicy import OffPolicyTrainer
from llmkd.trainers.settings import OffPolicySettings


def names(function: Callable) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_version_is_the_one_minor_that_is_pinned() -> None:
    assert trl.__version__.split(".")[:2] == ["1", "16"]


@pytest.mark.parametrize("function", [prepare_deepspeed, unwrap_model_for_generation])
def test_preparation_takes_model_and_accelerator(function: Callable) -> None:
    assert names(function)[:2] == ["model", "accelerator"]


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        ("_get_train_sampler", ["train_dataset"]),
        ("get_batch_samples", ["epoch_iterator", "num_batches", "device"]),
        ("compute_loss", ["model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("training_step", ["model", "inputs", "num_items_in_batch"]),
        ("create_optimizer", ["model"]),
        ("log", ["logs", "start_time"]),
        ("_save_checkpoint", ["model", "trial"]),
        ("_load_optimizer_and_scheduler", ["checkpoint"]),
    ],
)
def test_hook_has_the_parameters_that_are_overridden(hook: str, expected: list[str]) -> None:
    assert names(getattr(Trainer, hook)) == expected


def test_every_hook_that_is_overridden_exists_above() -> None:
    private = [name for name in vars(OffPolicyTrainer) if name.startswith("_") and not name.startswith("__")]
    assert not [name for name in private if callable(getattr(OffPolicyTrainer, name)) and not hasattr(SFTTrainer, name)]


def test_loss_that_is_already_divided_is_not_divided_again() -> None:
    source = inspect.getsource(Trainer.training_step)
    assert "self.loss_is_scaled_for_ga" in source and OffPolicyTrainer.loss_is_scaled_for_ga is True


def test_prepared_rows_are_left_alone() -> None:
    assert 'get("skip_prepare_dataset", False)' in inspect.getsource(SFTTrainer.__init__)


def test_checkpoints_are_rotated_by_the_arguments_given() -> None:
    assert {"output_dir", "save_total_limit", "best_model_checkpoint", "use_mtime"} <= set(names(rotate_checkpoints))


def test_settings_keep_the_fields_of_trl_and_add_few() -> None:
    ours = set(OffPolicySettings.__dataclass_fields__) - set(SFTConfig.__dataclass_fields__)
    assert ours == {"over_long", "muon_learning_rate", "early_stopping_patience"}
