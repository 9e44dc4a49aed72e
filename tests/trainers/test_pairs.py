"""DistiLLM-2's contrastive pair on tiny models: each prompt's completion of the data beside the student's own.

"Equal" is relative 1e-5 in float32 where rows are added up in another order: TRL shuffles the rows of a step.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmkd import cli

from runs import (
    VOCABULARY,
    built,
    first_rows,
    loaded,
    log_probs,
    main_with,
    make_inputs,
    noted,
    one_message,
    put,
    trained,
    training_lines,
    write_recipe,
)

EQUAL = 1e-5
ALPHA = 0.1
ROWS = 8  # prompts of a step


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def pair(share: float = 0.5) -> dict[str, Any]:
    """SKL on the data's completions and SRKL on the student's own, whose share is b."""
    return {
        "skl": {"term": "skew_forward_kl", "alpha": ALPHA, "weight": 1 - share, "completions": "data",
                "normalize": "kept"},
        "srkl": {"term": "skew_reverse_kl", "alpha": ALPHA, "weight": share, "completions": "own", "normalize": "kept"},
    }  # fmt: skip


def recipe(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The pair on chats, eight prompts a step; changes: dotted keys, with __ for the dots."""
    data = {
        "run": {"output_dir": str(output), "seed": 3},
        "student": {"model_name_or_path": str(inputs / "student")},
        "teachers": [{"model_name_or_path": str(inputs / "teacher")}],
        "data": {"datasets": [{"path": str(inputs / "chats.jsonl"), "domain": "chats"}]},
        "objective": {"terms": pair()},
        "train": {
            "method": "onpolicy", "pairs": True, "use_cpu": True, "max_steps": 3, "per_device_train_batch_size": ROWS,
            "max_completion_length": 10, "max_length": 48, "learning_rate": 1e-3, "logging_steps": 1,
            "disable_tqdm": True,
        },
        "eval": {},
    }  # fmt: skip
    for key, value in changes.items():
        put(data, key.replace("__", "."), value)
    return data


def one_step(data: dict[str, Any]) -> tuple[Any, dict[str, Any], list[dict[str, Tensor]]]:
    """The job, the log line of its one step and the micro-batches that it trained on."""
    put(data, "train.max_steps", 1)
    job = built(data)
    seen = noted(job.trainer)
    job.trainer.train()
    return job, training_lines(job.trainer.state.log_history)[0], seen


def completions(batches: list[dict[str, Tensor]]) -> list[tuple[list[int], int]]:
    """Every row up to its last counted token, and how many tokens of it count."""
    found = []
    for batch in batches:
        for ids, counted in zip(batch["input_ids"].tolist(), batch["counted"].tolist(), strict=True):
            last = max(i for i, keep in enumerate(counted) if keep)
            found.append((ids[: last + 1], sum(counted)))
    return found


model = cache(loaded)


def skews(inputs: Path, row: tuple[list[int], int]) -> tuple[Tensor, Tensor]:
    """SKL and SRKL at each counted token of a row, by their formulas in float64."""
    ids, count = row
    logq, logp = (log_probs(model(inputs / name), ids, VOCABULARY)[-count:] for name in ("student", "teacher"))
    p, q = logp.exp(), logq.exp()
    forward = (p * (logp - (ALPHA * p + (1 - ALPHA) * q).log())).sum(-1)
    return forward, (q * (logq - ((1 - ALPHA) * p + ALPHA * q).log())).sum(-1)


def sorted_out(job: Any, rows: list[tuple[list[int], int]]) -> tuple[list, list]:
    """The rows that stand in the data, and the others."""
    data = [row["input_ids"] for row in first_rows(job, ROWS)]
    return [row for row in rows if row[0] in data], [row for row in rows if row[0] not in data]


# -- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_loss_is_each_divergence_averaged_over_the_tokens_of_its_own_kind(
    inputs: Path, tmp_path: Path, share: float
) -> None:
    terms = pair(share)
    job, line, seen = one_step(recipe(inputs, tmp_path / "run", objective__terms=terms))
    given, own = sorted_out(job, completions(seen))
    assert len(given) == len(own) == ROWS
    skl = torch.cat([skews(inputs, row)[0] for row in given])
    srkl = torch.cat([skews(inputs, row)[1] for row in own])
    assert len(skl) != len(srkl)
    assert line["loss"] == pytest.approx(float((1 - share) * skl.mean() + share * srkl.mean()), rel=EQUAL)
    assert line["skl/value"] == pytest.approx(float(skl.mean()), rel=EQUAL)
    assert line["srkl/value"] == pytest.approx(float(srkl.mean()), rel=EQUAL)
    assert line["tokens"] == len(skl) + len(srkl)
    assert line["on_policy"] == 0.5 and job.trainer.completions_seen == ROWS


def test_each_prompt_has_both_completions(inputs: Path, tmp_path: Path) -> None:
    job, _, seen = one_step(recipe(inputs, tmp_path / "run"))
    kinds = sorted_out(job, completions(seen))
    prompts = [sorted(ids[:-count] for ids, count in rows) for rows in kinds]
    assert prompts[0] == prompts[1] == sorted(job.trainer.prompt_ids(first_rows(job, ROWS)))


def test_who_wrote_a_row_is_said_of_it_wherever_it_was_shuffled_to(inputs: Path, tmp_path: Path) -> None:
    job, _, seen = one_step(recipe(inputs, tmp_path / "run", train__per_device_train_batch_size=4,
                                   train__gradient_accumulation_steps=2))  # fmt: skip
    assert [len(batch["own"]) for batch in seen] == [8, 8]
    own = [bool(row[mask].all()) for batch in seen for row, mask in zip(batch["own"], batch["counted"], strict=True)]
    data = [row["input_ids"] for row in first_rows(job, ROWS)]
    assert own == [ids not in data for ids, _ in completions(seen)]


# -- what it is equal to ----------------------------------------------------------------------------------------------


def test_without_a_share_of_the_own_it_is_off_policy_distillation_by_skl(inputs: Path, tmp_path: Path) -> None:
    ours = trained(recipe(inputs, tmp_path / "pairs", objective__terms=pair(0.0)))
    data = recipe(inputs, tmp_path / "off", objective__terms={"skl": {"term": "skew_forward_kl", "alpha": ALPHA}})
    data["train"] |= {"method": "offpolicy"}
    for key in ("pairs", "max_completion_length"):
        del data["train"][key]
    theirs = trained(data)
    for line, beside in zip(ours, theirs, strict=True):
        assert line["loss"] == pytest.approx(beside["loss"], rel=EQUAL)
        assert line["grad_norm"] == pytest.approx(beside["grad_norm"], rel=EQUAL)


@pytest.mark.parametrize("size", [4, 1])
def test_micro_batches_change_nothing(inputs: Path, tmp_path: Path, size: int) -> None:
    whole = trained(recipe(inputs, tmp_path / "whole"))
    split = trained(recipe(inputs, tmp_path / "split", train__per_device_train_batch_size=size,
                           train__gradient_accumulation_steps=ROWS // size))  # fmt: skip
    for line, beside in zip(split, whole, strict=True):
        keys = ("loss", "grad_norm", "skl/value", "srkl/value", "student_entropy")
        assert {k: line[k] for k in keys} == pytest.approx({k: beside[k] for k in keys}, rel=EQUAL)
        assert line["tokens"] == beside["tokens"]


def test_swapping_the_kinds_changes_the_loss(inputs: Path, tmp_path: Path) -> None:
    terms = pair()
    swapped = copy.deepcopy(terms)
    swapped["skl"]["completions"], swapped["srkl"]["completions"] = "own", "data"
    _, line, _ = one_step(recipe(inputs, tmp_path / "pair", objective__terms=terms))
    job, other, seen = one_step(recipe(inputs, tmp_path / "swapped", objective__terms=swapped))
    given, own = sorted_out(job, completions(seen))
    skl, srkl = torch.cat([skews(inputs, row)[0] for row in own]), torch.cat([skews(inputs, row)[1] for row in given])
    assert other["loss"] == pytest.approx(float(0.5 * skl.mean() + 0.5 * srkl.mean()), rel=EQUAL)
    assert other["loss"] != pytest.approx(line["loss"], rel=10 * EQUAL) and other["tokens"] == line["tokens"]


def test_the_share_may_follow_a_schedule(inputs: Path, tmp_path: Path) -> None:
    """The curriculum: b from 0.5 to 1 over the first two steps."""
    terms = pair()
    terms["skl"]["weight"] = {"schedule": "linear", "from": 0.5, "to": 0.0, "steps": 2}
    terms["srkl"]["weight"] = {"schedule": "linear", "from": 0.5, "to": 1.0, "steps": 2}
    found = trained(recipe(inputs, tmp_path / "run", objective__terms=terms))
    for line, share in zip(found, (0.5, 0.75, 1.0), strict=True):
        expected = (1 - share) * line["skl/value"] + share * line["srkl/value"]
        assert line["loss"] == pytest.approx(expected, rel=EQUAL)


# -- who else writes, and what else is read ---------------------------------------------------------------------------


def test_the_teacher_may_write_the_other_half(inputs: Path, tmp_path: Path) -> None:
    job, line, seen = one_step(recipe(inputs, tmp_path / "run", train__seq_kd=True))
    given, own = sorted_out(job, completions(seen))
    assert len(given) == len(own) == ROWS and line["loss"] > 0
    written = (tmp_path / "run" / "teacher_completions.jsonl").read_text().splitlines()
    assert len(written) == 1 + ROWS
    assert all(f'"ids": {ids[-count:]}' in "\n".join(written) for ids, count in given)


def test_cross_entropy_reads_the_datas_tokens_beside_it(inputs: Path, tmp_path: Path) -> None:
    terms = {**pair(), "ce": {"term": "cross_entropy", "completions": "data", "normalize": "kept"}}
    job, line, seen = one_step(recipe(inputs, tmp_path / "run", objective__terms=terms))
    given, _ = sorted_out(job, completions(seen))
    student = model(inputs / "student")
    tokens = [-log_probs(student, ids)[-n:].gather(1, torch.tensor(ids[-n:])[:, None]) for ids, n in given]
    assert line["ce/value"] == pytest.approx(float(torch.cat(tokens).mean()), rel=EQUAL)


def test_without_pairs_a_term_looks_at_the_steps_of_its_kind_alone(inputs: Path, tmp_path: Path) -> None:
    found = trained(recipe(inputs, tmp_path / "run", train__pairs=False, train__lmbda=0.5, train__max_steps=6))
    assert {line["on_policy"] for line in found} == {0.0, 1.0}
    for line in found:
        mine, other = ("srkl", "skl") if line["on_policy"] else ("skl", "srkl")
        assert line["loss"] == pytest.approx(0.5 * line[f"{mine}/value"], rel=EQUAL)
        assert f"{other}/value" not in line


@pytest.mark.parametrize("changes", [{}, {"train__pairs": False, "train__lmbda": 0.5}])
def test_verify_holds_its_laws_on_both_kinds(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict
) -> None:
    path = write_recipe(recipe(inputs, tmp_path / "run", **changes), tmp_path / "recipe.yaml")
    assert cli.main(["verify", str(path)]) == 0
    said = capsys.readouterr().out
    assert "skew_forward_kl" in said and "skew_reverse_kl" in said


def test_what_verify_looks_at_has_both_kinds(inputs: Path, tmp_path: Path) -> None:
    job = built(recipe(inputs, tmp_path / "run"))
    asked = first_rows(job, 4)
    rows = job.trainer.written_to(asked)
    assert [row["own"] for row in rows] == [[1], [0], [1], [0]]
    assert [row["input_ids"] == of_data["input_ids"] for row, of_data in zip(rows, asked, strict=True)] == [
        False, True, False, True,
    ]  # fmt: skip


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__lmbda": 0.5}, "train.lmbda: is not read with pairs: true"),
        ({"train__lmbda_schedule": "adaptive"}, "train.lmbda_schedule: is not read with pairs: true"),
        ({"train__replay_capacity": 99}, "train.replay_capacity: is not read with pairs: true"),
        ({"train__pairs": False}, "objective.terms.skl.completions: data, and with train.lmbda: 1 no step is on them"),
        ({"train__pairs": False, "train__lmbda": 0.0},
         "objective.terms.srkl.completions: own, and with train.lmbda: 0 no step is on them"),
        ({"objective__terms__skl__completions": "both"}, "objective.terms.skl.completions"),
        ({"objective__terms__ce": {"term": "cross_entropy", "completions": "own"}}, "give completions: data"),
        ({"train__method": "offpolicy", "train__max_completion_length": None}, "are read by method: onpolicy"),
        ({"train__method": "offpolicy", "train__max_completion_length": None, "train__pairs": None},
         "objective.terms.skl.completions: is read by method: onpolicy, not by offpolicy"),
        ({"train__method": "rl", "train__pairs": None},
         "objective.terms.skl.completions: is read by method: onpolicy, not by rl"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(inputs: Path, tmp_path: Path, capsys: Any, changes: dict, words: str) -> None:
    assert main_with(recipe(inputs, tmp_path / "run", **changes)) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_pairs_need_completions_in_the_data(inputs: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "{a} + 1 ="}}\n' for a in range(9)))
    assert main_with(recipe(inputs, tmp_path / "run", data__datasets=[{"path": str(path)}])) == 2
    assert "accepted are `messages` | `prompt` and `completion`" in one_message(capsys)
