"""Fidelity over held-out rows: it is what the formulas say of each row alone, however they lie in batches."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmkd.config import EvalTask
from llmkd.evaluation.measures import tallies
from llmkd.evaluation.measures.fidelity import MEASURES, fidelity, fidelity_of_models, measure_fidelity
from llmkd.evaluation.measures.found import Found
from llmkd.evaluation.measures.subjects import Subjects, subjects_of_models
from llmkd.trainers.held_out import HeldOut
from llmkd.types import Logits, States

from runs import held_out, make_inputs, row_formulas

ROWS = {"prose": 7, "chats": 5}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def loaded(inputs: Path, student: str = "student", teacher: str = "near", **settings: Any) -> Subjects:
    sources = [source["path"] for source in held_out(inputs)]
    return subjects_of_models(str(inputs / student), str(inputs / teacher), sources, **settings)


@pytest.fixture(scope="module")
def near(inputs: Path) -> Subjects:
    return loaded(inputs)


def measured(subjects: Subjects, parts: list[HeldOut] | None = None, **models: Any) -> Found:
    models = {"student": subjects.student, **models}
    parts = subjects.held_out if parts is None else parts
    return measure_fidelity(models, subjects.teachers["teacher"], parts, subjects.vocabulary, subjects.device)


def half_right(subjects: Subjects) -> list[HeldOut]:
    """Rows whose every second token is the one that the teacher finds likeliest."""
    model, rows = subjects.teachers["teacher"].model, []
    for first in (20, 40, 60, 80):
        ids = [first]
        for i in range(15):
            with torch.no_grad():
                best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append((best + i % 2) % subjects.vocabulary)
        rows.append({"input_ids": ids, "counted": [0] + [1] * 15, "seq_lengths": [16], "domains": [0], "n_bytes": 15})
    return [replace(subjects.held_out[0], rows=rows)]


def values(found: Found) -> dict[str, float]:
    return {name: metric.estimate.value for name, metric in found.metrics.items()}


# -- against the formulas ----------------------------------------------------------------------------------------------


def test_means_over_tokens_are_the_float64_formulas_of_each_row_alone(inputs: Path, near: Subjects) -> None:
    student, teacher = (AutoModelForCausalLM.from_pretrained(inputs / n).eval() for n in ("student", "near"))
    found = measured(near)
    expected = [row_formulas(student, teacher, row) for part in near.held_out for row in part.rows]
    assert 0.1 < found.metrics["agreement"].estimate.value < 0.9
    for name in ("forward_kl", "cross_entropy", "agreement"):
        by_hand = torch.cat([row[name] for row in expected])
        assert found.metrics[name].estimate.value == pytest.approx(float(by_hand.mean()), rel=1e-5), name
    assert found.metrics["agreement"].estimate.n == sum(ROWS.values())


def test_items_are_rows_in_their_order_and_sum_to_the_metric(near: Subjects) -> None:
    found = measured(near)
    assert [(i["domain"], i["row"]) for i in found.items] == [
        (part.domain, row) for part in near.held_out for row in range(len(part.rows))
    ]
    counted = sum(item["tokens"] for item in found.items)
    kl = sum(item["student"]["forward_kl"] for item in found.items)
    assert found.metrics["forward_kl"].estimate.value == pytest.approx(kl / counted)


def test_agreement_is_that_where_the_teacher_is_right_and_where_it_is_wrong(near: Subjects) -> None:
    found = values(measured(near, half_right(near)))
    right = found["teacher/accuracy"]
    assert right == pytest.approx(8 / 15) and found["agreement_teacher_right"] != found["agreement_teacher_wrong"]
    whole = right * found["agreement_teacher_right"] + (1 - right) * found["agreement_teacher_wrong"]
    assert found["agreement"] == pytest.approx(whole)
    assert found["acceptance"] == pytest.approx(1 - found["total_variation"])


# -- oracles -----------------------------------------------------------------------------------------------------------


def test_student_that_is_its_teacher(inputs: Path) -> None:
    """Agreement, overlap and acceptance 1, divergences 0, BLEU 100; the cross-entropy is the teacher's."""
    found = fidelity(loaded(inputs, "student", "student", tasks=[EvalTask(task="arithmetic", n=2, max_new_tokens=8)]))
    got = values(found)
    for name in ("agreement", "agreement_teacher_right", "agreement_teacher_wrong", "top_k_overlap", "top_1_in_top_k"):
        assert got.get(name, 1.0) == 1.0, name
    for name in ("forward_kl", "reverse_kl", "jsd", "total_variation"):
        assert abs(got[name]) < 1e-7, name
    assert got["acceptance"] == pytest.approx(1, abs=1e-7) and got["tokens_per_block"] == pytest.approx(5, abs=1e-5)
    assert got["rationale_bleu"] == 100
    assert got["cross_entropy"] == pytest.approx(got["teacher/cross_entropy"], rel=1e-6)
    assert got["accuracy"] == got["teacher/accuracy"]
    assert got["resampled_teacher/rationale_bleu"] < 100


def test_student_that_has_nothing_to_do_with_its_teacher_agrees_less(inputs: Path, near: Subjects) -> None:
    found = measured(near), measured(loaded(inputs, teacher="teacher"))
    near_to, far = (f.metrics["agreement"].estimate for f in found)
    assert far.high < near_to.low


def test_baseline_stands_beside_with_a_paired_difference(inputs: Path) -> None:
    """A baseline that is the teacher itself: it wins by what the student lacks."""
    subjects = loaded(inputs, baseline=str(inputs / "near"))
    found = measured(subjects, half_right(subjects), baseline=subjects.baseline)
    got = values(found)
    assert got["baseline/agreement"] == 1.0
    for name in MEASURES:
        assert got[f"difference/{name}"] == pytest.approx(got[name] - got[f"baseline/{name}"], abs=1e-9), name
    estimate = found.metrics["difference/agreement"].estimate
    assert estimate.high < 0 and estimate.n == 4
    assert found.metrics["difference/forward_kl"].better == "lower"


def test_student_that_is_its_baseline_differs_by_nothing(inputs: Path, near: Subjects) -> None:
    found = measured(near, baseline=near.student)
    assert all(
        (m.estimate.value, m.estimate.low, m.estimate.high) == (0, 0, 0)
        for name, m in found.metrics.items() if name.startswith("difference/")
    )  # fmt: skip


# -- invariances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7])
def test_batch_size_changes_nothing(near: Subjects, size: int) -> None:
    same(measured(near, [replace(part, batch_size=size) for part in near.held_out]), measured(near))


def test_padding_changes_nothing(near: Subjects) -> None:
    def wider(collate: Any) -> Any:
        def collated(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            batch = collate(rows)
            pads = {"input_ids": 0, "counted": False, "domain_ids": 0}
            return {n: torch.nn.functional.pad(v, (0, 9), value=pads[n]) if n in pads else v for n, v in batch.items()}

        return collated

    same(measured(near, [replace(part, collate=wider(part.collate)) for part in near.held_out]), measured(near))


def test_order_of_the_rows_changes_nothing(near: Subjects) -> None:
    order = {part.domain: random.Random(0).sample(range(len(part.rows)), len(part.rows)) for part in near.held_out}
    turned = [replace(part, rows=[part.rows[i] for i in order[part.domain]]) for part in near.held_out]
    same(measured(near, turned), measured(near))


def same(one: Found, other: Found) -> None:
    """The same but for the last digits: sums of float32 in another order."""
    mine, theirs = values(one), values(other)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert mine[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


# -- details -----------------------------------------------------------------------------------------------------------


def test_details_hold_what_a_report_draws(near: Subjects) -> None:
    subjects = replace(near, held_out=near.held_out[:2])
    found = fidelity(subjects)
    about = json.loads(json.dumps(found.details))["teachers"]["teacher"]
    assert about["domains"].keys() == about["by_confidence"].keys() == about["by_position"].keys()
    for domain, one in about["domains"].items():
        assert one["tokens"] == sum(about["by_confidence"][domain]["tokens"])
        assert one["tokens"] == sum(about["by_position"][domain]["tokens"])
        bins = about["by_position"][domain]
        assert bins["tokens"][0] == one["rows"], "each row has one first token"
        shares = zip(bins["forward_kl"]["student"], bins["tokens"], strict=True)
        kl = sum(mean * n for mean, n in shares if n) / one["tokens"]
        assert kl == pytest.approx(one["metrics"]["forward_kl"]["value"])
    why = about["left_out"]["answer_agreement"]
    assert why == "there is no task with a final answer to compare (eval.tasks: arithmetic)"
    assert all(measure in about["labels"] for measure in MEASURES)


def test_answers_are_compared_on_arithmetic_alone(inputs: Path) -> None:
    """With samples its n problems are of all levels, as the run's own evaluation asks them."""
    tasks = [{"task": "countdown", "n": 3}, {"task": "arithmetic", "name": "drawn", "samples": 2, "n": 3}]
    found = fidelity(loaded(inputs, tasks=[EvalTask(max_new_tokens=4, **task) for task in tasks]))
    shown = found.details["teachers"]["teacher"]["answers"]["samples"]
    assert [(sample["task"], sample["level"]) for sample in shown] == [("drawn", 1), ("drawn", 2), ("drawn", 3)]


def test_excerpts_show_the_tokens_of_the_first_rows(near: Subjects) -> None:
    found = fidelity(near)
    shown = found.details["teachers"]["teacher"]["excerpts"]
    assert len(shown) == 3 * len(near.held_out)
    for one in shown:
        item = next(i for i in found.items if (i["domain"], i["row"]) == (one["domain"], one["row"]))
        assert sum(one["student"]["forward_kl"]) == pytest.approx(item["student"]["forward_kl"], abs=1e-3)
        assert sum(one["student"]["agreement"]) == item["student"]["agreement"]
        assert len(one["tokens"]) == len(one["teacher"]["top"]) == len(one["student"]["top"]) == item["tokens"]
        for mine, theirs, agrees in zip(
            one["student"]["top"], one["teacher"]["top"], one["student"]["agreement"], strict=True
        ):
            # Parts of a character have no text of their own.
            assert (mine[0][0] == theirs[0][0]) == bool(agrees) or "\ufffd" in mine[0][0]
            assert mine[0][1] >= mine[1][1] >= mine[2][1]


def test_text_of_the_excerpts_is_that_of_the_rows(inputs: Path, near: Subjects) -> None:
    shown = fidelity(near).details["teachers"]["teacher"]["excerpts"][0]
    first = json.loads(Path(held_out(inputs)[0]["path"]).read_text().splitlines()[0])["text"]
    assert (shown["prompt"] + "".join(shown["tokens"])).replace("<|end|>", "") == first


# -- edges -------------------------------------------------------------------------------------------------------------


class Answers:
    """A teacher that says what it is given for each batch."""

    name = "teacher"

    def __init__(self, teacher: Any, change: Any) -> None:
        self.teacher, self.change = teacher, change

    def score(self, batch: Any) -> Any:
        return self.change(self.teacher.score(batch))


def against(subjects: Subjects, change: Any) -> Found:
    teacher = Answers(subjects.teachers["teacher"], change)
    return measure_fidelity(
        {"student": subjects.student}, teacher, subjects.held_out, subjects.vocabulary, subjects.device
    )


def test_tokens_that_the_teacher_does_not_speak_of_are_not_counted(near: Subjects) -> None:
    """A teacher that is silent about every second token, and says nonsense there."""

    def silent(signals: States) -> States:
        kept = torch.arange(len(signals.hidden)) % 2 == 0
        return replace(signals, hidden=torch.where(kept[:, None], signals.hidden, torch.nan), kept=kept)

    one = [replace(part, batch_size=1) for part in near.held_out]
    found, whole = against(replace(near, held_out=one), silent), measured(near, one)
    halves = [(i["tokens"] + 1) // 2 for i in whole.items]
    assert [i["tokens"] for i in found.items] == halves
    assert all(m.estimate.low is not None for m in found.metrics.values())


def test_row_without_a_counted_token_is_no_item_of_the_interval(near: Subjects) -> None:
    first = near.held_out[0]
    blank = {**first.rows[0], "counted": [0] * len(first.rows[0]["counted"])}
    found = measured(near, [replace(first, rows=[blank, *first.rows], batch_size=1)])
    assert found.items[0]["tokens"] == 0
    alone = measured(near, [replace(first, batch_size=1)])
    assert found.metrics["forward_kl"].estimate == alone.metrics["forward_kl"].estimate


def test_teacher_that_is_never_right_has_no_agreement_where_it_is(near: Subjects) -> None:
    """Its likeliest token is one that no row holds."""

    def wrong(signals: States) -> Logits:
        logits = signals.head.logits(signals.hidden)
        logits[:, 2] = 100.0  # <|system|>
        return Logits(logits)

    found = against(near, wrong)
    assert "agreement_teacher_right" not in found.metrics
    assert "no token to count" in found.details["left_out"]["agreement_teacher_right"]
    assert found.metrics["teacher/accuracy"].estimate.value == 0


def test_teacher_of_broken_logits_is_named_with_the_row(near: Subjects) -> None:
    """In the third batch of one row, at its second counted token."""
    seen = []

    def broken(signals: States) -> Logits:
        logits = signals.head.logits(signals.hidden)
        seen.append(len(logits))
        if len(seen) == 3:
            logits[1] = torch.nan
        return Logits(logits)

    one = replace(near, held_out=[replace(part, batch_size=1) for part in near.held_out])
    counted = one.held_out[0].rows[2]["counted"]
    position = [i for i, c in enumerate(counted) if c][1]
    with pytest.raises(ValueError, match=rf"held-out set held_prose, row 2, token {position}: .*no distribution"):
        against(one, broken)


def test_what_is_infinite_is_left_out_and_said(near: Subjects) -> None:
    """A teacher that rules out a token: the student's reverse KL, and that alone, is infinite."""

    def ruled_out(signals: States) -> Logits:
        logits = signals.head.logits(signals.hidden)
        logits[:, 2] = -torch.inf  # <|system|>, which no row holds
        return Logits(logits)

    found = against(near, ruled_out)
    assert MEASURES.keys() - found.metrics.keys() == {"reverse_kl", "agreement_teacher_right"}
    assert "not finite in 12 of 12 rows" in found.details["left_out"]["reverse_kl"]
    assert all(item["student"]["reverse_kl"] is None for item in found.items)
    json.dumps([found.details, list(found.items)], allow_nan=False)
    assert all(math.isfinite(value) for value in values(found).values())


def test_bins_of_confidence_hold_their_edges() -> None:
    value = torch.tensor([0.0, 0.05, 0.1, 0.95, 1.0], dtype=torch.float64)
    assert tallies._bins(value, tallies.CONFIDENCE[1:-1]).tolist() == [0, 0, 1, 9, 9]


def test_a_model_and_a_file_are_enough(inputs: Path) -> None:
    found = fidelity_of_models(
        str(inputs / "student"), str(inputs / "teacher"), [str(inputs / "held_prose.jsonl")], max_rows=3
    )
    assert len(found.items) == 3 and found.details["names"]["teacher"] == str(inputs / "teacher")
