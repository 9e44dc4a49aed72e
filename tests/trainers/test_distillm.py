"""DistiLLM on tiny models: a share of own steps that follows the held-out loss, and a buffer of what was written."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmkd import config
from llmkd.trainers.held_out import evaluate
from llmkd.trainers.onpolicy import OnPolicyTrainer
from llmkd.trainers.settings import train_fields

from runs import (
    assert_same_run,
    built,
    crashed,
    held_out,
    loaded,
    log_probs,
    main_with,
    make_inputs,
    metrics,
    noted,
    put,
    trained,
    training_lines,
)

EQUAL = 1e-5
ROWS = 8  # of a step


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def recipe(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """SKL on chats, all of the share on the student's own and a buffer of two steps; changes: dotted keys, with __ for
    the dots."""
    data = {
        "run": {"output_dir": str(output), "seed": 3, "resume": "auto"},
        "student": {"model_name_or_path": str(inputs / "student")},
        "teachers": [{"model_name_or_path": str(inputs / "teacher")}],
        "data": {"datasets": [{"path": str(inputs / "chats.jsonl"), "domain": "chats"}]},
        "objective": {"terms": {"kd": {"term": "skew_forward_kl", "alpha": 0.1}}},
        "train": {
            "method": "onpolicy", "use_cpu": True, "max_steps": 8, "per_device_train_batch_size": ROWS, "lmbda": 1.0,
            "replay_capacity": 16, "max_completion_length": 8, "learning_rate": 1e-3, "logging_steps": 1,
            "disable_tqdm": True,
        },
        "eval": {},
    }  # fmt: skip
    for key, value in changes.items():
        put(data, key.replace("__", "."), value)
    return data


def adaptive(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A share that starts at 0.4 and is looked at after every step."""
    settings = {
        "train__lmbda": 0.4, "train__lmbda_schedule": "adaptive", "train__eval_strategy": "steps",
        "train__eval_steps": 1, "eval__datasets": held_out(inputs),
    }  # fmt: skip
    return recipe(inputs, output, **settings | changes)


def draws(count: int) -> list[float]:
    """What each step draws, with the recipe's seed."""
    return [np.random.default_rng([3, step, 0, 1]).random() for step in range(count)]


def rows_of(batch: dict[str, Tensor]) -> list[tuple[int, ...]]:
    """The rows of a batch up to their last counted token, sorted: TRL shuffles them."""
    columns = zip(batch["input_ids"].tolist(), batch["counted"].tolist(), strict=True)
    return sorted(tuple(ids[: max(i for i, keep in enumerate(counted) if keep) + 1]) for ids, counted in columns)


# -- the share --------------------------------------------------------------------------------------------------------


def test_the_share_follows_scripted_losses(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One loss before training, then one after each step; it rises where one is 0.1 above the last that raised it."""
    losses = iter([2.0, 2.05, 2.11, 2.15, 1.0, 2.22, 9.0, 9.05, 9.2])

    def scripted(trainer: Any) -> dict[str, float]:
        return evaluate(trainer) | {"eval_mean/ce": next(losses)}

    monkeypatch.setattr("llmkd.trainers.onpolicy.evaluate", scripted)
    found = trained(adaptive(inputs, tmp_path / "run", train__replay_capacity=0))
    shares = [0.4, 0.4, 0.5, 0.5, 0.5, 0.6, 0.7, 0.7]
    assert [line["lmbda"] for line in found] == pytest.approx(shares)
    assert [line["on_policy"] for line in found] == [float(d < s) for d, s in zip(draws(8), shares, strict=True)]
    assert next(losses, None) is None and "replay" not in found[0]


def test_the_loss_that_it_follows_is_the_cross_entropy_of_the_held_out_rows(inputs: Path, tmp_path: Path) -> None:
    """Before training, the mean over the domains of the mean over a domain's tokens; not the divergence that is
    trained, nor that to the teacher."""
    job = built(adaptive(inputs, tmp_path / "run", train__max_steps=1, train__learning_rate=1e-9))
    job.trainer.train()
    student, domains = loaded(inputs / "student"), []
    for part in job.held_out:
        tokens = []
        for row in part.rows:
            ids, counted = row["input_ids"], torch.tensor(row["counted"][1:]).bool()
            tokens.append(-log_probs(student, ids).gather(1, torch.tensor(ids[1:])[:, None])[counted])
        domains.append(float(torch.cat(tokens).mean()))
    assert job.trainer.own_share.loss_before == pytest.approx(sum(domains) / 2, rel=EQUAL)


def test_the_teacher_has_written_for_every_step_that_may_be_on_the_data(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkd.trainers.own_share.LOSS_MARGIN", -99.0)
    job = built(adaptive(inputs, tmp_path / "run", train__seq_kd=True, train__lmbda=0.0))
    seen = noted(job.trainer)
    job.trainer.train()
    found = training_lines(job.trainer.state.log_history)
    assert [line["lmbda"] for line in found] == pytest.approx([0.1 * n for n in range(8)])
    assert {line["on_policy"] for line in found} == {0.0, 1.0}
    assert all(batch["counted"].any(1).all() for batch in seen)


# -- the buffer -------------------------------------------------------------------------------------------------------


def test_it_is_filled_first_and_then_serves_more_and_more_of_the_share(inputs: Path, tmp_path: Path) -> None:
    """Five steps fill it, whatever they draw; then a step is fresh with chance 1 - done."""
    found = trained(recipe(inputs, tmp_path / "run", train__replay_capacity=36, train__max_steps=12))
    beyond = [draw >= 1 - step / 12 for step, draw in enumerate(draws(12))]
    assert any(beyond[:5]) and not all(beyond[5:])
    replayed = [float(step >= 5 and late) for step, late in enumerate(beyond)]
    assert [line["replay"] for line in found] == replayed
    assert [line["on_policy"] for line in found] == [1 - x for x in replayed]
    assert all(("completions/mean_length" in line) == (line["on_policy"] == 1) for line in found)


def test_a_replayed_step_is_on_completions_among_the_last_written(inputs: Path, tmp_path: Path) -> None:
    """And its loss is their divergence as student and teacher see them now."""
    job = built(recipe(inputs, tmp_path / "run", train__max_steps=12))
    seen = noted(job.trainer)
    job.trainer.train()
    found = training_lines(job.trainer.state.log_history)
    held: list[tuple[int, ...]] = []
    drawn = []
    for line, batch in zip(found, seen, strict=True):
        assert batch["own"][batch["counted"]].all()
        if line["on_policy"]:
            held = [*held[-ROWS:], *rows_of(batch)]
            continue
        assert len(held) == 16
        rows = rows_of(batch)
        assert len(rows) == ROWS and all(rows.count(row) <= held.count(row) for row in rows)
        drawn.append(tuple(rows))
    assert len(set(drawn)) == len(drawn) > 2
    assert job.trainer.completions_seen == ROWS * sum(line["on_policy"] for line in found)
    assert sorted((*prompt, *said) for prompt, said, _ in job.trainer.own_share.replay.items) == sorted(held)


def test_the_loss_of_a_replayed_step_is_the_divergence_on_its_rows(inputs: Path, tmp_path: Path) -> None:
    job = built(recipe(inputs, tmp_path / "run", train__learning_rate=1e-9))
    seen = noted(job.trainer)
    job.trainer.train()
    found = training_lines(job.trainer.state.log_history)
    at = next(i for i, line in enumerate(found) if line["replay"])
    values = []
    models = loaded(inputs / "student"), loaded(inputs / "teacher")
    for ids, counted in zip(seen[at]["input_ids"], seen[at]["counted"], strict=True):
        length = int(counted.nonzero().max()) + 1
        logq, logp = (log_probs(m, ids[:length].tolist())[counted[1:length]] for m in models)
        values.append((logp.exp() * (logp - (0.1 * logp.exp() + 0.9 * logq.exp()).log())).sum(-1))
    assert found[at]["loss"] == pytest.approx(float(torch.cat(values).mean()), rel=EQUAL)
    assert found[at]["tokens"] - found[at - 1]["tokens"] == len(torch.cat(values))


def test_domains_come_back_with_the_completions(inputs: Path, tmp_path: Path) -> None:
    sources = [{"path": str(inputs / "chats.jsonl"), "domain": d} for d in ("a", "b")]
    job = built(recipe(inputs, tmp_path / "run", data__datasets=sources))
    seen = noted(job.trainer)
    job.trainer.train()
    found = training_lines(job.trainer.state.log_history)
    told = []
    for line, batch in zip(found, seen, strict=True):
        domains = [int(ids[mask][0]) for ids, mask in zip(batch["domain_ids"], batch["counted"], strict=True)]
        pairs = set(zip(rows_in_order(batch), domains, strict=True))
        told.append((line["replay"], pairs))
    written = {pair for replayed, pairs in told if not replayed for pair in pairs}
    again = {pair for replayed, pairs in told if replayed for pair in pairs}
    assert again <= written and {domain for _, domain in again} == {0, 1}


def rows_in_order(batch: dict[str, Tensor]) -> list[tuple[int, ...]]:
    return [tuple(ids[: int(mask.nonzero().max()) + 1].tolist())
            for ids, mask in zip(batch["input_ids"], batch["counted"], strict=True)]  # fmt: skip


def test_micro_batches_change_nothing(inputs: Path, tmp_path: Path) -> None:
    whole = trained(recipe(inputs, tmp_path / "whole"))
    split = trained(recipe(inputs, tmp_path / "split", train__per_device_train_batch_size=2,
                           train__gradient_accumulation_steps=4))  # fmt: skip
    for line, beside in zip(split, whole, strict=True):
        assert line["loss"] == pytest.approx(beside["loss"], rel=EQUAL)
        assert (line["tokens"], line["replay"]) == (beside["tokens"], beside["replay"])


def test_broken_off_it_goes_on_as_if_it_had_not(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitwise, from a checkpoint with a full buffer and a share that has risen, and rises after it."""
    monkeypatch.setattr("llmkd.trainers.own_share.LOSS_MARGIN", -99.0)
    several = {
        "train__max_steps": 10, "train__save_steps": 1, "train__eval_steps": 2, "train__lmbda": 0.6,
        "train__logging_steps": 3, "student__lora": {"r": 4, "lora_dropout": 0.1},
    }  # fmt: skip
    assert main_with(adaptive(inputs, tmp_path / "whole", **several)) == 0
    crashed(monkeypatch, adaptive(inputs, tmp_path / "broken", **several), 7, trainer=OnPolicyTrainer)
    last = tmp_path / "broken" / "checkpoint-7" / "llmkd_state.json"
    mark = json.loads(last.read_text())["own_share"]
    assert len(mark["replay"]) == 16 and mark["share"] == pytest.approx(0.9)
    shutil.rmtree(tmp_path / "broken" / "checkpoint-7")  # and another step is lost
    assert json.loads((tmp_path / "broken" / "checkpoint-6" / "llmkd_state.json").read_text())["step"] == 6
    assert main_with(adaptive(inputs, tmp_path / "broken", **several)) == 0
    replays = [line["replay"] for line in metrics(tmp_path / "whole") if "replay" in line and line["step"] > 6]
    assert max(replays) > 0
    for name in ("whole", "broken"):  # TRL measures the time of a step, which no two runs share
        lines = [{k: v for k, v in line.items() if k != "step_time"} for line in metrics(tmp_path / name)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_share_that_may_rise_from_0_has_own_completions_to_read(inputs: Path, tmp_path: Path) -> None:
    terms = {side: {"term": "reverse_kl", "completions": side} for side in ("data", "own")}
    content = adaptive(inputs, tmp_path / "run", train__lmbda=0.0, objective__terms=terms)
    read = config.from_dict(content, train_fields=train_fields).objective.terms
    assert {name: term.completions for name, term in read.items()} == {"data": "data", "own": "own"}


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__eval_strategy": "no"}, "train.lmbda_schedule: adaptive follows evaluations, and there are none"),
        ({"eval__datasets": []}, "train.lmbda_schedule: adaptive follows the cross-entropy of held-out rows"),
        ({"train__lmbda": 1.0}, "train.lmbda_schedule: adaptive raises the share, and with lmbda: 1 it is at its end"),
        ({"train__lmbda_schedule": "falling"}, "train.lmbda_schedule"),
        ({"train__replay_capacity": -1}, "train.replay_capacity: -1 is outside"),
        ({"train__replay_capacity": 7}, "train.replay_capacity: 7 is less than the 8 completions that a step draws"),
        ({"train__lmbda_schedule": "constant", "train__lmbda": 0.0}, "the student writes nothing to keep"),
        ({"train__method": "offpolicy", "train__lmbda": None, "train__lmbda_schedule": None},
         "are kept is read by method: onpolicy"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(inputs: Path, tmp_path: Path, capsys: Any, changes: dict, words: str) -> None:
    assert main_with(adaptive(inputs, tmp_path / "run", **changes)) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
