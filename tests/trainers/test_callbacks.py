"""What a run writes while it trains: metrics and samples as lines of JSON, events for tensorboard."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkd.trainers.callbacks import MetricsFile, Patience, Stop, cut_metrics, peak_memory, public_name

from runs import held_out, main_with, make_inputs, metrics, recipe


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def run(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logged") / "run"
    changes = {
        "train.max_steps": 6, "train.logging_steps": 2, "train.eval_strategy": "steps", "train.eval_steps": 3,
        "eval.datasets": held_out(inputs), "eval.samples": 2, "run.report_to": "tensorboard",
        "train.learning_rate": 5e-3,
    }  # fmt: skip
    assert main_with(recipe(inputs, folder, changes)) == 0
    return folder


# -- metrics.jsonl -----------------------------------------------------------------------------------------------------


def test_a_line_a_log_step_and_one_an_evaluation(run: Path) -> None:
    lines = metrics(run)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "eval/mean/kl" in line] == [3, 6]
    assert len(lines) == 5, "and no other"


def test_training_line_has_every_term_in_every_domain(run: Path) -> None:
    line = metrics(run)[0]
    measured = ("kd/value", "ce/value", "agreement", "student_entropy", "teacher_entropy")
    expected = {f"{name}{domain}" for name in measured for domain in ("", "/prose", "/chats")}
    assert line.keys() == expected | {"step", "seconds", "peak_memory", "loss", "grad_norm", "learning_rate", "tokens"}
    assert all(isinstance(value, (int, float)) for value in line.values())


def test_evaluation_line_has_every_measure_in_every_domain(run: Path) -> None:
    line = next(line for line in metrics(run) if "eval/mean/kl" in line)
    measures = ("ce", "kl", "bits_per_byte", "agreement", "entropy", "teacher_entropy")
    assert line.keys() == {f"eval/{d}/{m}" for d in ("prose", "chats", "mean") for m in measures} | {"step", "seconds"}


def test_peak_memory_is_that_of_a_process_that_holds_two_models(run: Path) -> None:
    held = [line["peak_memory"] for line in metrics(run) if "loss" in line]
    assert held == sorted(held) and 10**8 < held[0] <= peak_memory(torch.device("cpu"))


def test_seconds_and_tokens_grow(run: Path) -> None:
    lines = metrics(run)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds) and seconds[0] > 0
    tokens = [line["tokens"] for line in lines if "tokens" in line]
    assert tokens == sorted(tokens) and tokens[0] > 0


def test_summary_is_the_last_evaluation(run: Path) -> None:
    student = json.loads((run / "summary.json").read_text())["results"]["student"]
    last = [line for line in metrics(run) if "eval/mean/kl" in line][-1]
    for domain, measures in student["held_out"].items():
        for name, value in measures.items():
            assert value == last[f"eval/{domain}/{name}"]
    assert student["tokens"] == metrics(run)[-2].get("tokens", metrics(run)[-1].get("tokens"))


def test_names_in_the_log_are_the_recipes_names() -> None:
    assert public_name("eval_code/kl") == "eval/code/kl"
    assert public_name("eval_eval_x/kl") == "eval/eval_x/kl"
    assert public_name("kd/value/code") == "kd/value/code"


def test_another_rank_writes_nothing(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "m.jsonl").on_log(None, SimpleNamespace(is_world_process_zero=False), None, {"loss": 1.0})
    assert not (tmp_path / "m.jsonl").exists()


def test_time_of_earlier_parts_is_counted(tmp_path: Path) -> None:
    assert 100 <= MetricsFile(tmp_path / "m.jsonl", seconds_before=100.0).seconds < 101


@pytest.mark.parametrize(("step", "kept"), [(-1, []), (0, [0]), (2, [0, 1, 2]), (9, [0, 1, 2, 3])])
def test_cut_keeps_the_lines_up_to_a_step(tmp_path: Path, step: int, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(4)))
    cut_metrics(path, step)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == kept
    assert list(tmp_path.iterdir()) == [path]


def test_cut_drops_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 1, "lo')
    cut_metrics(path, 5)
    assert path.read_text() == '{"step": 1}\n'
    cut_metrics(tmp_path / "nothing.jsonl", 5)


# -- samples.jsonl -----------------------------------------------------------------------------------------------------


def test_samples_of_each_domain_at_each_evaluation(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["domain"]) for line in lines] == [
        (step, domain) for step in (3, 6) for domain in ("prose", "prose", "chats", "chats")
    ]
    assert all(line.keys() == {"step", "domain", "prompt", "reference", "completion"} for line in lines)


def test_samples_are_what_the_model_says(run: Path) -> None:
    """Greedy completions by the final model, one prompt at a time, without padding."""
    model, tokenizer = (auto.from_pretrained(run / "model") for auto in (AutoModelForCausalLM, AutoTokenizer))
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for line in (line for line in lines if line["step"] == 6):
        ids = torch.tensor([tokenizer(line["prompt"], add_special_tokens=False)["input_ids"]])
        made = model.eval().generate(ids, max_new_tokens=64, do_sample=False, pad_token_id=0)
        assert tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True) == line["completion"]


def test_prompt_of_a_chat_is_its_question_and_the_reference_its_answer(run: Path, inputs: Path) -> None:
    rows = [json.loads(line) for line in (inputs / "held_chats.jsonl").read_text().splitlines()][:2]
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for line, row in zip([line for line in lines if line["domain"] == "chats"][:2], rows, strict=True):
        question, answer = (message["content"] for message in row["messages"])
        assert line["prompt"] == f"<|user|>{question}<|end|><|assistant|>" and line["reference"] == answer


# -- trackers ----------------------------------------------------------------------------------------------------------


def test_tensorboard_gets_the_same_numbers(run: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = [path for path in run.rglob("events.out.tfevents.*")]
    assert events
    seen = {}
    for path in events:
        reader = accumulator.EventAccumulator(str(path))
        reader.Reload()
        for tag in reader.Tags()["scalars"]:
            seen[tag] = [(e.step, e.value) for e in reader.Scalars(tag)]
    loss = next(values for tag, values in seen.items() if tag.endswith("/loss"))
    lines = [line for line in metrics(run) if "loss" in line]
    assert [step for step, _ in loss] == [line["step"] for line in lines]
    assert [value for _, value in loss] == pytest.approx([line["loss"] for line in lines], rel=1e-6)
    assert any("kd/value/prose" in tag for tag in seen) and any("chats/kl" in tag for tag in seen)


# -- stopping ----------------------------------------------------------------------------------------------------------


def control() -> Any:
    return SimpleNamespace(should_save=False, should_training_stop=False)


def test_stop_saves_and_ends_at_the_end_of_the_step() -> None:
    stop, asked = Stop(alone=True), control()
    stop.on_step_end(None, SimpleNamespace(global_step=3, max_steps=9), asked)
    assert not asked.should_training_stop, "nobody asked"
    stop._ask(signal.SIGINT, None)
    stop.on_step_end(None, SimpleNamespace(global_step=4, max_steps=9), asked)
    assert asked.should_save and asked.should_training_stop
    with pytest.raises(KeyboardInterrupt):
        stop._ask(signal.SIGINT, None)


def test_one_of_several_processes_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        Stop(alone=False)._ask(signal.SIGTERM, None)


@pytest.mark.parametrize(("counted", "over"), [(0, False), (2, False), (3, True)])
def test_patience_goes_on_from_the_checkpoint(counted: int, over: bool) -> None:
    patience, flow = Patience(3), control()
    saved = {"Patience": {"args": {}, "attributes": {"early_stopping_patience_counter": counted}}}
    patience.on_train_begin(None, SimpleNamespace(stateful_callbacks=saved), flow)
    assert patience.early_stopping_patience_counter == counted and flow.should_training_stop is over
