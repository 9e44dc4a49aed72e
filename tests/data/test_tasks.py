"""Tasks as data sets: a recipe names one, and its problems are rows for training, evaluation and rewards."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import IterableDataset
from pydantic import ValidationError

from llmkd.config import DatasetSource
from llmkd.data.prompts import prompts_of
from llmkd.data.sources import load
from llmkd.data.tasks import arithmetic, table
from llmkd.rewards.table import load as load_reward

from chat_tokenizer import chat_tokenizer
from runs import built, main_with, make_inputs, metrics, one_message, recipe

WHERE = "data.datasets.0"


def source(name, **fields):
    return DatasetSource(**({"path": "llmkd/tasks", "name": name, "max_rows": 20} | fields))


def rows(name, **fields):
    return list(load(source(name, **fields), where=WHERE))


def refused(name, **fields):
    with pytest.raises(ValueError) as error:
        load(source(name, **fields), where=WHERE)
    assert str(error.value).startswith(WHERE) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", table.TASKS)
def test_the_reward_of_the_same_name_gives_each_row_1(name):
    reward = load_reward({"kind": name})
    for split in ("train", "heldout"):
        for row in rows(name, split=split):
            assert row["task"] == name
            (asked,), (solved,) = row["prompt"], row["completion"]
            assert (asked["role"], solved["role"]) == ("user", "assistant")
            assert reward(row["prompt"], solved["content"], row["answer"]) == 1.0
            assert reward(row["prompt"], solved["content"] + "0", row["answer"]) == 0.0


def test_an_answer_has_the_keys_of_its_own_row_alone():
    for row in rows("knights_and_knaves", max_rows=50):
        assert len(row["answer"]) == 3 and None not in row["answer"].values()


def test_options_are_the_difficulty_and_the_seed():
    for row in rows("countdown", options={"numbers": 3, "target": [5, 30]}):
        assert len(row["answer"]["numbers"]) == 3 and 5 <= row["answer"]["target"] <= 30
    assert all(len(row["answer"]) == 5 for row in rows("knights_and_knaves", options={"people": 5}))
    assert all(len(row["answer"]["houses"]) == 2 for row in rows("zebra", options={"houses": 2}))
    questions = [row["prompt"][0]["content"] for row in rows("arithmetic", options={"levels": [1], "seed": 4})]
    assert questions == [row["question"] for row in arithmetic.problems(4, 20, [1], "train")]


@pytest.mark.parametrize("name", table.TASKS)
def test_the_seed_is_0_unless_given_and_another_gives_other_rows(name):
    assert rows(name) == rows(name, options={"seed": 0})
    assert not {json.dumps(row) for row in rows(name)} & {json.dumps(row) for row in rows(name, options={"seed": 1})}


@pytest.mark.parametrize("name", table.TASKS)
def test_more_rows_begin_with_the_fewer(name):
    assert rows(name, max_rows=25)[:10] == rows(name, max_rows=10)


@pytest.mark.parametrize("name", table.TASKS)
def test_training_and_held_out_rows_share_no_question_over_seeds(name):
    def asked(split, n):
        found = [rows(name, split=split, max_rows=n, options={"seed": seed}) for seed in (0, 1)]
        return {row["prompt"][0]["content"] for part in found for row in part}

    train, heldout = asked("train", 80), asked("heldout", 8)
    assert len(train) > 120 and len(heldout) > 8 and not train & heldout


def test_the_rows_are_the_same_in_another_process():
    script = (
        "import json; from llmkd.data.tasks.table import TASKS, rows; "
        "print(json.dumps([rows(name, 5, 'heldout', {'seed': 3}) for name in TASKS]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "5"},
    )  # fmt: skip
    assert json.loads(run.stdout) == [table.rows(name, 5, "heldout", {"seed": 3}) for name in table.TASKS]


def test_a_stream_gives_the_same_rows():
    dataset = load(source("countdown", streaming=True), where=WHERE)
    assert isinstance(dataset, IterableDataset) and list(dataset) == rows("countdown")


def test_columns_may_be_renamed():
    dataset = load(source("countdown", columns={"prompt": "prompt", "completion": "completion"}), where=WHERE)
    assert dataset.column_names == ["prompt", "completion"]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("zebbra", {}, "name: there is no task 'zebbra'; did you mean zebra? allowed are arithmetic, countdown"),
        (None, {}, "name: there is no task None; allowed are arithmetic, countdown, knights_and_knaves, zebra, progr"),
        ("countdown", {"split": "test"}, "split: countdown has no split 'test'; it has train and heldout"),
        ("countdown", {"split": "train[:9]"}, "no split 'train[:9]'"),
        ("countdown", {"max_rows": None}, ".max_rows: a task has no end of rows; say how many problems to make"),
        ("countdown", {"options": {"number": 3}}, "countdown has no option 'number'; did you mean numbers? allowed are "
                                                  "seed, numbers, largest, target, use_all"),
        ("zebra", {"options": {"people": 3}}, "zebra has no option 'people'; allowed are seed, houses, attributes"),
        ("countdown", {"options": {"numbers": "3"}}, "options.numbers: '3' is not a whole number; the default is 4"),
        ("countdown", {"options": {"use_all": 1}}, "options.use_all: 1 is not true or false"),
        ("countdown", {"options": {"target": 24}}, "options.target: 24 is not a list; the default is [10, 100]"),
        ("countdown", {"options": {"target": [1.5, 3]}}, "options.target: 1.5 cannot be in it"),
        ("countdown", {"options": {"numbers": 9}}, "countdown: numbers 9 is out of range; choose one of 3, 4, 5, 6"),
        ("programs", {"options": {"seed": "x"}}, "options.seed: 'x' is not a whole number"),
        ("arithmetic", {"options": {"levels": [5]}}, "arithmetic: level 5 does not exist; choose from 1, 2, 3, 4"),
        ("arithmetic", {"options": {"levels": [[1]]}}, "options.levels: [1] cannot be in it"),
        ("arithmetic", {"options": {"levels": []}}, "no levels given"),
        ("knights_and_knaves", {"options": {"depth": 4}}, "depth 4 is out of range; choose one of 1, 2, 3"),
    ],
)  # fmt: skip
def test_what_a_task_does_not_take_is_one_message_with_what_it_does(name, fields, message):
    assert message in refused(name, **fields)


def test_options_elsewhere_are_refused_in_the_recipe():
    with pytest.raises(ValidationError, match=r"read by path: llmkd/tasks only, not by 'rows.jsonl': leave it out"):
        DatasetSource(path="rows.jsonl", options={"numbers": 3})
    assert DatasetSource(path="llmkd/tasks", options={"numbers": 3}).options == {"numbers": 3}


def test_the_rows_are_prompts_for_rewards():
    data = SimpleNamespace(datasets=[source("knights_and_knaves", domain="logic"), source("countdown", domain="sums")])
    prompts, lengths = prompts_of(data, chat_tokenizer(), ["logic", "sums"], ["answer"])
    assert lengths == [20, 20]
    wanted = rows("knights_and_knaves") + rows("countdown")
    assert [json.loads(row["reference"])["answer"] for row in prompts] == [row["answer"] for row in wanted]
    assert [row["prompt"] for row in prompts] == [row["prompt"] for row in wanted]


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def on_tasks(inputs, output, **changes):
    names = ("countdown", "knights_and_knaves")
    tasks = [{"path": "llmkd/tasks", "name": name, "domain": name, "max_rows": 30, "options": {"seed": 7}}
             for name in names]  # fmt: skip
    held = [task | {"split": "heldout", "max_rows": 4} for task in tasks]
    return recipe(inputs, output, {
        "teachers": [], "objective": None, "train.method": "sft", "train.max_steps": 2, "train.max_length": 700,
        "train.per_device_train_batch_size": 2, "data.datasets": tasks, "eval.datasets": held, **changes,
    })  # fmt: skip


def test_only_the_solution_counts(inputs, tmp_path):
    job = built(on_tasks(inputs, tmp_path / "run"))
    tokenizer = job.trainer.processing_class
    row = job.trainer.train_dataset[0]
    counted = [token for token, counts in zip(row["input_ids"], row["counted"], strict=True) if counts]
    wanted = rows("countdown", options={"seed": 7})[0]["completion"][0]["content"]
    assert tokenizer.decode(counted) == f"{wanted}<|end|>"


def test_a_run_on_tasks_trains_and_measures_each_domain_on_its_held_out_problems(inputs, tmp_path):
    assert main_with(on_tasks(inputs, tmp_path / "run")) == 0
    lines = metrics(tmp_path / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)
    held_out = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]["student"]["held_out"]
    assert set(held_out) == {"countdown", "knights_and_knaves"}
    assert all(0 < measures["ce"] < 20 for measures in held_out.values())


def test_a_wrong_option_in_a_recipe_ends_a_run_with_one_line(inputs, tmp_path, capsys):
    data = on_tasks(inputs, tmp_path / "run", **{"data.datasets.1.options": {"persons": 3}})
    assert main_with(data) != 0
    line = one_message(capsys)
    assert "data.datasets.1" in line and "knights_and_knaves has no option 'persons'" in line
    assert "allowed are seed, people, depth, width" in line
