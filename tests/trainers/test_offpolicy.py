"""The loop around the objective: what it draws, how long it trains, what it logs, which checkpoint it ends with."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmkd import config
from llmkd.trainers.settings import settings_of, train_fields

from runs import (
    built,
    chats,
    close,
    held_out,
    main_with,
    make_inputs,
    metrics,
    prose,
    recipe,
    row_formulas,
    trained,
    training_lines,
    weights,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


# -- what a line of the log says ---------------------------------------------------------------------------------------


def test_line_is_the_mean_over_the_tokens_of_its_steps(inputs: Path, tmp_path: Path) -> None:
    """Three steps a line, a student that stands still: per term and per domain the float64 mean over all the tokens
    of the three steps, which are of different number."""
    changes = {
        "train.max_steps": 6, "train.logging_steps": 3, "train.learning_rate": 1e-12,
        "train.gradient_accumulation_steps": 2, "train.per_device_train_batch_size": 4,
    }  # fmt: skip
    job = built(recipe(inputs, tmp_path / "run", changes))
    drawn = [job.trainer.train_dataset[i] for i in job.trainer._get_train_sampler()]
    job.trainer.train()
    lines = training_lines(job.trainer.state.log_history)
    student, teacher = (AutoModelForCausalLM.from_pretrained(inputs / n).eval() for n in ("student", "teacher"))
    tokens = 0
    for line, rows in zip(lines, (drawn[:24], drawn[24:48]), strict=True):
        found = [(row["domains"][0], row_formulas(student, teacher, row)) for row in rows]
        for term, formula in (("kd/value", "forward_kl"), ("ce/value", "cross_entropy"), ("agreement", "agreement")):
            for name, domains in (("", {0, 1}), ("/prose", {0}), ("/chats", {1})):
                expected = torch.cat([f[formula] for d, f in found if d in domains]).mean()
                assert close(line[f"{term}{name}"], float(expected)), (term, name)
        tokens += sum(sum(row["counted"]) for row in rows)
        assert line["tokens"] == tokens
    assert [line["step"] for line in lines] == [3, 6]


def test_loss_is_the_weighted_sum_of_its_terms(inputs: Path, tmp_path: Path) -> None:
    for line in trained(recipe(inputs, tmp_path / "run")):
        assert close(line["loss"], 0.75 * line["kd/value"] + 0.5 * line["ce/value"])


def test_term_without_weight_is_measured_and_trains_nothing(inputs: Path, tmp_path: Path) -> None:
    terms = {"ce": {"term": "cross_entropy"}, "watched": {"term": "reverse_kl", "weight": 0.0}}
    watched = trained(recipe(inputs, tmp_path / "a", {"objective.terms": terms}))
    alone = trained(recipe(inputs, tmp_path / "b", {"objective.terms": {"ce": terms["ce"]}}))
    assert [line["loss"] for line in watched] == [line["loss"] for line in alone]
    assert all(line["watched/value"] > 0 for line in watched)


def test_masked_term_logs_what_it_kept(inputs: Path, tmp_path: Path) -> None:
    terms = {
        "kd": {"term": "forward_kl"},
        "chats": {"term": "cross_entropy", "mask": {"domains": ["chats"]}, "normalize": "kept"},
    }
    for line in trained(recipe(inputs, tmp_path / "run", {"objective.terms": terms})):
        assert "chats/value/prose" not in line
        assert line["chats/value"] == line["chats/value/chats"]
        assert close(line["loss"], line["kd/value"] + line["chats/value"])


def test_one_domain_has_one_line_a_term(inputs: Path, tmp_path: Path) -> None:
    changes = {"data.datasets": [{"path": str(inputs / "prose.jsonl")}], "train.max_steps": 1}
    line = trained(recipe(inputs, tmp_path / "run", changes))[0]
    assert not [key for key in line if key.endswith("/all")]


# -- what is drawn -----------------------------------------------------------------------------------------------------


def texts_of(job: Any) -> list[tuple[int, str]]:
    """(domain, row) of everything that the trainer's own loader yields."""
    out = []
    for batch in job.trainer.get_train_dataloader():
        for ids, domain in zip(batch["input_ids"], batch["domain_ids"], strict=True):
            pad = job.tokenizer.pad_token_id
            out.append((int(domain[0]), job.tokenizer.decode([i for i in ids.tolist() if i != pad])))
    return out


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"train.num_train_epochs": 1}, 14),
        ({"train.num_train_epochs": 2}, 28),
        ({"train.num_train_epochs": 0.5}, 7),
        ({"train.num_train_epochs": 2, "train.gradient_accumulation_steps": 4}, 8),
        ({"train.num_train_epochs": 9, "train.max_steps": 5}, 5),
    ],
    ids=["one", "two", "half", "accumulated", "max_steps wins"],
)
def test_epochs_are_turned_into_steps(inputs: Path, tmp_path: Path, changes: dict[str, Any], steps: int) -> None:
    """105 rows, 8 or 32 a step."""
    job = built(recipe(inputs, tmp_path / "run", {"train.max_steps": None, **changes}))
    assert job.trainer.args.max_steps == steps
    job.trainer.train()
    assert job.trainer.state.global_step == steps


def test_every_row_once_a_pass(inputs: Path, tmp_path: Path) -> None:
    data = recipe(inputs, tmp_path / "run", {"train.max_steps": None, "train.num_train_epochs": 1})
    job = built(data)
    indices = list(job.trainer._get_train_sampler())
    assert Counter(indices[:105]) == Counter(range(105))
    assert len(indices) == 14 * 8, "the last step is filled from the next pass"
    assert Counter(d for d, _ in texts_of(job)[:105]) == {0: 60, 1: 45}


def test_weights_are_the_shares_of_the_rows_drawn(inputs: Path, tmp_path: Path) -> None:
    sources = [
        {"path": str(inputs / f"{d}.jsonl"), "domain": d, "weight": w} for d, w in (("prose", 1.0), ("chats", 4.0))
    ]
    job = built(recipe(inputs, tmp_path / "run", {"data.datasets": sources, "train.max_steps": 200}))
    drawn = texts_of(job)
    share = sum(d for d, _ in drawn) / len(drawn)
    assert abs(share - 0.8) < 5 * (0.8 * 0.2 / 1600) ** 0.5, "five standard deviations"
    first = [text for d, text in drawn if d == 1][:45]
    assert len(set(first)) == len({tuple(m["content"] for m in row["messages"]) for row in chats(45)})


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_streams_are_mixed_by_weight_and_do_not_end(inputs: Path, tmp_path: Path, packing: bool) -> None:
    sources = [
        {"path": str(inputs / f"{d}.jsonl"), "domain": d, "weight": w, "streaming": True}
        for d, w in (("prose", 1.0), ("chats", 1.0))
    ]
    changes = {"data.datasets": sources, "train.packing": packing, "train.max_steps": 40}
    job = built(recipe(inputs, tmp_path / "run", changes))
    job.trainer.train()
    lines = training_lines(job.trainer.state.log_history)
    assert len(lines) == 40 and lines[-1]["loss"] < lines[0]["loss"]
    assert all("kd/value/prose" in line and "kd/value/chats" in line for line in lines)


def test_stream_gives_each_row_once_a_pass(inputs: Path, tmp_path: Path) -> None:
    changes = {"data.datasets": [{"path": str(inputs / "prose.jsonl"), "streaming": True}], "train.max_steps": 15}
    loader = iter(built(recipe(inputs, tmp_path / "run", changes)).trainer.get_train_dataloader())
    rows = [tuple(ids[counted].tolist()) for _ in range(15) for batch in [next(loader)]
            for ids, counted in zip(batch["input_ids"], batch["counted"], strict=True)]  # fmt: skip
    assert len(rows) == 120
    assert Counter(rows[:60]) == Counter(rows[60:])
    assert len(set(rows[:60])) > 0.8 * len({row["text"] for row in prose(60)})


# -- evaluation and the best checkpoint --------------------------------------------------------------------------------


def test_epoch_strategies_are_steps_of_an_epoch(inputs: Path, tmp_path: Path) -> None:
    changes = {
        "train.max_steps": None, "train.num_train_epochs": 2, "train.eval_strategy": "epoch",
        "train.save_strategy": "epoch", "train.logging_strategy": "epoch", "eval.datasets": held_out(inputs),
    }  # fmt: skip
    assert main_with(recipe(inputs, tmp_path / "run", changes)) == 0
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [14, 28]
    assert [line["step"] for line in lines if "eval/prose/ce" in line] == [14, 28]
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-14", "checkpoint-28"]


def overfitting(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Six chats over and over at a high rate: what was held out gets better at first and then worse."""
    return recipe(inputs, output, {
        "data.datasets": [{"path": str(inputs / "chats.jsonl"), "domain": "chats", "max_rows": 6}],
        "objective.terms": {"ce": {"term": "cross_entropy"}}, "eval.datasets": held_out(inputs),
        "teachers.0.model_name_or_path": str(inputs / "near"), "train.learning_rate": 1e-2,
        "train.max_steps": 20, "train.eval_strategy": "steps", "train.eval_steps": 2, "train.save_steps": 2,
        "train.load_best_model_at_end": True, "train.save_total_limit": 1, **changes,
    })  # fmt: skip


@pytest.mark.parametrize(("metric", "rate"), [("eval/prose/kl", 1e-2), ("eval/mean/agreement", 5e-4)])
def test_best_checkpoint_is_the_one_at_the_end(inputs: Path, tmp_path: Path, metric: str, rate: float) -> None:
    """The final model is that of the lowest KL (or highest agreement) in the log, and what the summary measures."""
    changes = {"train.metric_for_best_model": metric, "train.learning_rate": rate}
    data = overfitting(inputs, tmp_path / "run", **changes)
    assert main_with(data) == 0
    curve = {line["step"]: line[metric] for line in metrics(tmp_path / "run") if metric in line}
    best = (max if metric.endswith("agreement") else min)(curve, key=curve.get)
    assert len(set(curve.values())) > 3 and best != 20, "the last one would be the best anyway"
    kept = tmp_path / "run" / f"checkpoint-{best}"
    assert kept.is_dir()
    final, at_best = weights(tmp_path / "run" / "model"), weights(kept)
    assert final.keys() == at_best.keys() and all(torch.equal(final[k], at_best[k]) for k in final)
    changes = {"student.model_name_or_path": str(tmp_path / "run" / "model"), "train.metric_for_best_model": metric}
    job = built(overfitting(inputs, tmp_path / "again", **changes))
    assert close(job.trainer.evaluate()[metric.replace("eval/", "eval_")], curve[best])


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("eval/prose/kl", False), ("eval/mean/ce", False), ("eval/mean/bits_per_byte", False), ("eval_chats/kl", False),
     ("eval/chats/agreement", True)],
)  # fmt: skip
def test_lower_is_better_but_for_agreement(inputs: Path, tmp_path: Path, metric: str, greater: bool) -> None:
    data = overfitting(inputs, tmp_path / "run", **{"train.metric_for_best_model": metric})
    args = settings_of(config.from_dict(data, train_fields=train_fields()))
    assert args.greater_is_better is greater


def test_early_stop_by_a_domains_kl(inputs: Path, tmp_path: Path) -> None:
    """It stops after two evaluations in a row that are no better than the best so far, and not before."""
    metric = "eval/prose/kl"
    changes = {"train.metric_for_best_model": metric, "train.early_stopping_patience": 2, "train.max_steps": 60}
    assert main_with(overfitting(inputs, tmp_path / "run", **changes)) == 0
    lines = metrics(tmp_path / "run")
    curve = [line[metric] for line in lines if metric in line]
    best, worse = float("inf"), []
    for value in curve:
        worse.append(0 if value < best else worse[-1] + 1)
        best = min(best, value)
    assert worse[-1] == 2 and max(worse[:-1]) < 2
    assert lines[-1]["step"] == 2 * len(curve) < 60


def test_checkpoints_over_the_limit_are_removed(inputs: Path, tmp_path: Path) -> None:
    changes = {"train.max_steps": 12, "train.save_steps": 2, "train.save_total_limit": 2}
    assert main_with(recipe(inputs, tmp_path / "run", changes)) == 0
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]
