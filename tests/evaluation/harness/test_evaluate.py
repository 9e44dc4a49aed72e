"""`llmkd-eval`: lm_eval's own numbers, each task stored once, and what went wrong said in a line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmkd.evaluation.exact_match import arithmetic_by_level
from llmkd.evaluation.harness import benchmark, catalogue
from llmkd.evaluation.results import Record, Store
from llmkd.modelling import EMBEDDED, resolve

Evaluate = Callable[..., int]
ROOT = Path(__file__).parents[3]
TASKS = ("llmkd_lambada", "llmkd_sst2", "llmkd_crows_pairs", "llmkd_gsm8k")
SHORT = ("--gen_kwargs", "max_gen_toks=8")

BY_HAND = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
model, tasks, include, out = sys.argv[1:]
manager = TaskManager(include_path=include, include_defaults=False)
found = {}
for task in tasks.split(","):
    found |= simple_evaluate(model="hf", model_args={"pretrained": model}, tasks=[task], task_manager=manager,
                             batch_size=8, device="cpu", gen_kwargs="max_gen_toks=8", bootstrap_iters=0)["results"]
json.dump(found, open(out, "w"))
"""


def records(folder: Path) -> dict[str, Record]:
    return {record.task: record for record in Store(folder).records()}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*@*")}


@pytest.fixture(scope="module")
def measured(model_folder: Path, start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of TASKS on the tiny model: read-only by agreement."""
    folder = tmp_path_factory.mktemp("measured")
    words = (model_folder, "--tasks", ",".join(TASKS), "--output_path", folder, *SHORT, "--log_samples")
    assert start(*words).wait(timeout=300) == 0
    return folder


def test_scores_are_lm_evals_to_the_last_digit(measured: Path, model_folder: Path, files: Path, tmp_path: Path) -> None:
    """Against lm_eval in a process of its own, which loads the model anew for each task.  One task a call and the same
    batch size, since the padding of a batch changes the seventh digit."""
    command = [sys.executable, "-c", BY_HAND, str(model_folder), ",".join(TASKS), str(catalogue.OWN)]
    subprocess.run([*command, str(tmp_path / "o.json")], check=True, env=os.environ | {"LLMKD_EVAL_DATA": str(files)})
    theirs = json.loads((tmp_path / "o.json").read_text())
    ours = records(measured)
    compared = 0
    for task in TASKS:
        for key, value in theirs[task].items():
            name, _, chosen = key.partition(",")
            if chosen and not name.endswith("_stderr"):
                found = ours[task].metrics[name if chosen == "none" else key]
                assert found.estimate.value == value, (task, key)
                compared += 1
    assert compared == 7
    assert 0 < ours["llmkd_crows_pairs"].metrics["likelihood_diff"].estimate.value < 100


@pytest.mark.full
def test_scores_are_those_of_the_lm_eval_command(
    model_folder: Path, evaluate: Evaluate, local_files: Path, tmp_path: Path
) -> None:
    """`python -m lm_eval`, as a user types it, with its defaults but for the device."""
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model_folder}",
        "--tasks", "llmkd_crows_pairs", "--include_path", str(catalogue.OWN), "--device", "cpu",
        "--output_path", str(tmp_path),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    (path,) = tmp_path.glob("*/results_*.json")
    theirs = json.loads(path.read_text())["results"]["llmkd_crows_pairs"]
    out = tmp_path / "ours"
    assert evaluate(model_folder, "--tasks", "llmkd_crows_pairs", "--batch_size", 1, "--output_path", out) == 0
    ours = records(out)["llmkd_crows_pairs"].metrics
    assert ours["likelihood_diff"].estimate.value == theirs["likelihood_diff,none"]
    assert ours["pct_stereotype"].estimate.value == theirs["pct_stereotype,none"]


def test_a_record_holds_lm_evals_json_and_intervals(measured: Path) -> None:
    record = records(measured)["llmkd_lambada"]
    kept = record.details["lm_eval"]
    assert kept["results"]["llmkd_lambada"]["perplexity,none"] == record.metrics["perplexity"].estimate.value
    assert kept["config"]["model"] == "hf"
    assert kept["n-samples"]["llmkd_lambada"] == {"original": 30, "effective": 30}
    perplexity = record.metrics["perplexity"].estimate
    assert perplexity.low < perplexity.value < perplexity.high
    assert record.metrics["perplexity"].better == "lower"


def test_items_are_stored_for_paired_comparisons(measured: Path) -> None:
    record = records(measured)["llmkd_gsm8k"]
    items = Store(measured).items(record)
    assert [item["doc_id"] for item in items] == list(range(8))
    assert set(items[0]["scores"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    shares = [item["scores"]["exact_match,flexible-extract"] for item in items]
    assert sum(shares) / len(shares) == record.metrics["exact_match,flexible-extract"].estimate.value


def test_lm_evals_files_are_written_as_lm_eval_writes_them(measured: Path, model_folder: Path) -> None:
    (folder,) = (path for path in measured.iterdir() if path.is_dir())
    assert folder.name == str(model_folder).replace("/", "__")
    (path,) = folder.glob("results_*.json")
    found = json.loads(path.read_text())
    assert list(found["results"]) == list(TASKS)
    assert set(found["task_hashes"]) == set(TASKS)
    assert {p.name.split("_20")[0] for p in folder.glob("samples_*.jsonl")} == {f"samples_{task}" for task in TASKS}
    lines = next(folder.glob("samples_llmkd_sst2_*.jsonl")).read_text().splitlines()
    assert json.loads(lines[0])["arguments"]["gen_args_0"]["arg_1"] == " negative"


def test_a_second_call_measures_nothing(
    measured: Path, model_folder: Path, evaluate: Evaluate, local_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(measured)
    words = (model_folder, "--tasks", ",".join(TASKS), "--output_path", measured, *SHORT, "--batch_size", 4)
    assert evaluate(*words) == 0
    assert times(measured) == before
    said = capsys.readouterr().out
    assert said.count("is there already") == len(TASKS)
    assert "loading" not in said
    assert "perplexity" in said  # the table is shown all the same


def test_other_settings_weights_or_rows_are_measured_anew(
    model_folder: Path, evaluate: Evaluate, local_files: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    out = tmp_path / "out"

    def measured_anew(*words: object) -> bool:
        count = len(times(out))
        assert evaluate(model, "--tasks", "llmkd_sst2", "--output_path", out, *words) == 0
        return ("is there already" not in capsys.readouterr().out) and len(times(out)) == count + 2

    assert measured_anew("--limit", 4)
    assert not measured_anew("--limit", 4)
    assert measured_anew("--limit", 5)
    assert measured_anew("--limit", 4, "--num_fewshot", 1)
    assert measured_anew("--limit", 4, "--seed", 7)
    weights = load_file(model / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert measured_anew("--limit", 4)
    other = tmp_path / "files"
    shutil.copytree(local_files, other)
    with (other / "sst2_dev.jsonl").open("a") as file:
        file.write('{"text": "one more", "label": 1}\n')
    monkeypatch.setenv("LLMKD_EVAL_DATA", str(other))
    assert measured_anew("--limit", 4)


def test_a_killed_call_goes_on_with_the_next_task(
    model_folder: Path, start: Callable[..., Any], evaluate: Evaluate, local_files: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = (model_folder, "--tasks", "llmkd_sst2,llmkd_arithmetic", "--limit", 40, "--output_path", tmp_path)
    process = start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("*@*.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = times(tmp_path)
    assert set(records(tmp_path)) == {"llmkd_sst2"}
    assert evaluate(*words) == 0
    said = capsys.readouterr().out
    assert "llmkd_sst2: is there already" in said
    assert set(records(tmp_path)) == {"llmkd_sst2", "llmkd_arithmetic"}
    assert before.items() <= times(tmp_path).items()


def test_results_of_a_run_go_into_its_folder(
    final_model: Path, evaluate: Evaluate, local_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = final_model.parent
    assert evaluate(run, "--tasks", "llmkd_sst2", "--limit", 2) == 0
    assert set(records(run / "eval")) == {"llmkd_sst2"}
    assert str(run / "eval") in capsys.readouterr().out.replace("\n", "")


def test_a_model_of_nan_is_marked_and_the_rest_is_done(
    model_folder: Path, evaluate: Evaluate, local_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "nan"
    shutil.copytree(model_folder, model)
    weights = {
        name: torch.full_like(weight, torch.nan) for name, weight in load_file(model / "model.safetensors").items()
    }
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    for _ in range(2):  # the second time it is there already, and still missing
        assert evaluate(model, "--tasks", "llmkd_sst2,llmkd_lambada", "--output_path", tmp_path / "out") == 1
        said = capsys.readouterr().out
        assert "missing" in said
    found = records(tmp_path / "out")
    assert set(found) == {"llmkd_sst2", "llmkd_lambada"}
    assert not found["llmkd_sst2"].metrics
    assert found["llmkd_sst2"].details["missing"] == {"acc": "the model gives NaN"}
    for path in (tmp_path / "out").glob("*.json"):
        assert "NaN" not in path.read_text().replace("gives NaN", "")


def test_a_task_that_fails_is_told_and_the_rest_is_done(
    model_folder: Path, evaluate: Evaluate, local_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny model reads 512 tokens: it cannot write 600."""
    words = ("--tasks", "llmkd_gsm8k,llmkd_sst2", "--limit", 2, "--gen_kwargs", "max_gen_toks=600")
    assert evaluate(model_folder, *words, "--output_path", tmp_path) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Give --gen_kwargs max_gen_toks=N with a smaller N" in said
    assert set(records(tmp_path)) == {"llmkd_sst2"}


def test_a_missing_file_fails_a_task_and_is_left_out_of_the_offline_suite(
    model_folder: Path, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("LLMKD_EVAL_DATA", raising=False)
    assert evaluate(model_folder, "--tasks", "llmkd_sst2", "--output_path", tmp_path) == 1
    assert "set LLMKD_EVAL_DATA" in capsys.readouterr().out
    assert evaluate(model_folder, "--suite", "offline", "--limit", 1, "--output_path", tmp_path) == 0
    said = capsys.readouterr().out
    assert "llmkd_sst2: left out" in said.replace("\n", " ")
    own = ("llmkd_quickstart_code", "llmkd_quickstart_prose", "llmkd_quickstart_math", "llmkd_arithmetic")
    assert set(records(tmp_path)) == set(own)


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        (catalogue, ("--tasks", "llmkd_sst2"), "need the lm_eval package: pip install 'llmkd[eval]'"),
        (benchmark, ("--tasks", "llmkd_sst2", "--model", "vllm"), "needs the vllm package: pip install 'llmkd[vllm]'"),
    ],
)
def test_a_missing_extra_is_told_by_its_name(
    module: Any, words: tuple[str, ...], said: str, model_folder: Path, evaluate: Evaluate,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert evaluate(model_folder, *words) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_task_is_told_with_the_nearest(
    model_folder: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(model_folder, "--tasks", "llmkd_lambda,hellaswagg") == 2
    error = capsys.readouterr().err
    assert "--tasks: llmkd_lambda: no task of this name" in error
    assert "llmkd_lambada" in error


def test_a_task_of_the_hub_offline_is_told_with_the_local_one(
    model_folder: Path, evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(model_folder, "--tasks", "sst2", "--output_path", tmp_path) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "HF_HUB_OFFLINE forbids to fetch it" in said
    assert "llmkd_sst2 reads local files" in said


def test_a_task_of_ones_own_in_a_folder(
    model_folder: Path, evaluate: Evaluate, local_files: Path, tmp_path: Path
) -> None:
    text = (catalogue.OWN / "llmkd_sst2.yaml").read_text().replace("task: llmkd_sst2", "task: mine")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(text)
    words = ("--include_path", tmp_path / "tasks", "--limit", 3, "--output_path", tmp_path)
    assert evaluate(model_folder, "--tasks", "mine", *words) == 0
    assert records(tmp_path)["mine"].metrics["acc"].estimate.n == 3
    (tmp_path / "tasks" / "mine.yaml").write_text(f"# a remark\n{text}")
    assert evaluate(model_folder, "--tasks", "mine", *words) == 0
    assert len(list(tmp_path.glob("mine@*.json"))) == 1
    (tmp_path / "tasks" / "mine.yaml").write_text(text.replace("positive or negative", "good or bad"))
    assert evaluate(model_folder, "--tasks", "mine", *words) == 0
    assert len(list(tmp_path.glob("mine@*.json"))) == 2


def test_a_group_is_one_task_over_all_its_items(
    model_folder: Path, evaluate: Evaluate, local_files: Path, tmp_path: Path
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "both.yaml").write_text(
        "group: both\ntask: [llmkd_sst2, llmkd_lambada]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\nmetadata: {version: 1.0}\n"
    )
    words = ("--include_path", tmp_path / "tasks", "--limit", 6, "--output_path", tmp_path)
    assert evaluate(model_folder, "--tasks", "both", *words) == 0
    found = records(tmp_path)["both"]
    items = Store(tmp_path).items(found)
    assert {item["task"] for item in items} == {"llmkd_sst2", "llmkd_lambada"}
    assert found.metrics["acc"].estimate.n == 12
    assert found.metrics["acc"].estimate.value == sum(item["scores"]["acc"] for item in items) / 12


def test_a_run_that_left_an_adapter_alone_is_its_base_with_it(
    model_folder: Path, evaluate: Evaluate, local_files: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(tmp_path / "adapter")
    (tmp_path / "recipe.yaml").write_text(f"student: {{model_name_or_path: {model_folder}}}\n")
    (tmp_path / "summary.json").write_text("{}")
    words = ("--tasks", "llmkd_crows_pairs", "--limit", 3)
    assert evaluate(tmp_path, *words) == 0
    assert evaluate(model_folder, *words, "--output_path", tmp_path / "base") == 0
    adapted, base = (records(tmp_path / name)["llmkd_crows_pairs"] for name in ("eval", "base"))
    name = "likelihood_diff"
    assert adapted.metrics[name].estimate.value != pytest.approx(base.metrics[name].estimate.value, rel=1e-3)


def test_a_model_that_cannot_be_loaded_is_one_message(
    model_folder: Path, evaluate: Evaluate, local_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--tasks", "llmkd_sst2,llmkd_lambada", "--model_args", "dtype=float31", "--output_path", tmp_path)
    assert evaluate(model_folder, *words) == 2
    error = capsys.readouterr().err
    assert "cannot be loaded by lm_eval's hf" in error
    assert "Traceback" not in error


def test_the_quickstarts_teacher_solves_what_a_runs_own_evaluation_says(evaluate: Evaluate, tmp_path: Path) -> None:
    """Level 1 and 2 of 12 problems: prompts, greedy decoding and grading are the same two ways."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "tasks").mkdir()
    text = (catalogue.OWN / "llmkd_arithmetic.yaml").read_text()
    text = text.replace("n: 100 # of each level", "{n: 12, levels: [1, 2]}").replace(
        "task: llmkd_arithmetic", "task: few"
    )
    (tmp_path / "tasks" / "few.yaml").write_text(text)
    words = ("--tasks", "few", "--include_path", tmp_path / "tasks", "--apply_chat_template", "--model_args",
             "dtype=float32", "--output_path", tmp_path)  # fmt: skip
    assert evaluate(EMBEDDED, *words) == 0
    model = AutoModelForCausalLM.from_pretrained(resolve(EMBEDDED), dtype=torch.float32)
    expected = arithmetic_by_level(model, AutoTokenizer.from_pretrained(resolve(EMBEDDED)), [1, 2], 12, 96)
    found = records(tmp_path)["few"].metrics
    assert {level: found[f"exact_match_level_{level}"].estimate.value for level in "12"} == expected
    assert found["exact_match"].estimate.value > 0.5
