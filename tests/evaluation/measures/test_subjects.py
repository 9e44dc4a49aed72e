"""From a run folder, or from saved models and a file, to models, tokenizers and held-out rows; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from llmkd.config import DatasetSource
from llmkd.evaluation.measures.fidelity import fidelity_of_run
from llmkd.evaluation.measures.subjects import subjects_of_models, subjects_of_run

from runs import held_out, main_with, make_inputs, recipe
from tiny import sentences, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of `runs`, and `other`: a model whose tokenizer learned from the same lines, read backwards."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    tiny_tokenizer(folder / "other", 384, [line[::-1] for line in sentences()])
    tiny_llama(folder / "other")
    return folder


def trained(inputs: Path, folder: Path, changes: dict[str, Any]) -> Path:
    settings = {"train.max_steps": 2, "eval.datasets": held_out(inputs), **changes}
    assert main_with(recipe(inputs, folder, settings)) == 0
    return folder


@pytest.fixture(scope="module")
def run(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(inputs, tmp_path_factory.mktemp("run") / "run", {"eval.baseline": True})


def results(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())["results"]


def test_run_is_measured_as_it_measured_itself(run: Path) -> None:
    """KL, agreement and cross-entropy of student and baseline, domain by domain."""
    found = fidelity_of_run(run).details["teachers"]["teacher"]["domains"]
    for who, at in (("student", ""), ("baseline", "baseline/")):
        for domain, held in results(run)[who]["held_out"].items():
            values = {name: e["value"] for name, e in found[domain]["metrics"].items()}
            assert values[f"{at}forward_kl"] == pytest.approx(held["kl"], rel=1e-5), (who, domain)
            assert values[f"{at}agreement"] == pytest.approx(held["agreement"], rel=1e-5), (who, domain)
            assert values[f"{at}cross_entropy"] == pytest.approx(held["ce"], rel=1e-5), (who, domain)
            assert values["teacher/cross_entropy"] == pytest.approx(
                results(run)["teacher"]["held_out"][domain]["ce"], rel=1e-5
            )


def test_rows_are_items_also_where_the_run_packs_them(inputs: Path, tmp_path: Path) -> None:
    folder = trained(inputs, tmp_path / "run", {"train.packing": True, "train.eval_packing": True})
    found = subjects_of_run(folder)
    assert [len(part.rows) for part in found.held_out] == [7, 5] and found.baseline is None


def test_lora_run_without_a_merged_model_is_its_base_and_adapter(inputs: Path, tmp_path: Path) -> None:
    lora = {"student.lora": {"r": 4, "target_modules": "all-linear"}, "student.merged_export": False}
    folder = trained(inputs, tmp_path / "run", {**lora, "train.learning_rate": 0.05})
    assert not (folder / "model").exists()
    found = fidelity_of_run(folder)
    values = found.details["teachers"]["teacher"]["domains"]["prose"]["metrics"]
    assert values["forward_kl"]["value"] == pytest.approx(
        results(folder)["student"]["held_out"]["prose"]["kl"], rel=1e-5
    )


def test_teacher_with_a_rendering_of_its_own_is_asked_on_it(inputs: Path, tmp_path: Path) -> None:
    """A template that begins with a turn of its own: on the student's rendering the teacher says something else."""
    teacher = Path(shutil.copytree(inputs / "teacher", tmp_path / "teacher"))
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.chat_template = "{{ '<|system|>two apples<|end|>' }}" + tokenizer.chat_template
    tokenizer.save_pretrained(teacher)
    own = {"teachers": [{"model_name_or_path": str(teacher), "template": "own"}]}
    folder = trained(inputs, tmp_path / "run", own)
    found = fidelity_of_run(folder)
    values = found.details["teachers"]["teacher"]["domains"]["chats"]["metrics"]
    assert values["forward_kl"]["value"] == pytest.approx(
        results(folder)["student"]["held_out"]["chats"]["kl"], rel=1e-5
    )


def test_several_teachers_have_a_column_each(inputs: Path, tmp_path: Path) -> None:
    two = [{"name": name, "model_name_or_path": str(inputs / name)} for name in ("teacher", "near")]
    changes = {"teachers": two, "objective.terms.kd.teacher": "near"}
    found = fidelity_of_run(trained(inputs, tmp_path / "run", changes))
    assert found.metrics["agreement@near"].estimate.low > found.metrics["agreement@teacher"].estimate.high
    assert {item["teacher"] for item in found.items} == {"teacher", "near"}


def test_other_teacher_and_other_data_take_the_place_of_the_recipes(inputs: Path, run: Path) -> None:
    source = DatasetSource(path=str(inputs / "held_chats.jsonl"), domain="talk", max_rows=2)
    found = subjects_of_run(run, teacher=str(inputs / "near"), sources=[source])
    assert found.names["teacher"] == str(inputs / "near")
    assert [(part.domain, len(part.rows)) for part in found.held_out] == [("talk", 2)]
    assert [len(part.rows) for part in subjects_of_run(run, max_rows=3).held_out] == [3, 3]


def test_saved_models_are_loaded_in_the_dtype_they_have(inputs: Path, tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path / "half")
    tiny_llama(tmp_path / "half", dtype=torch.bfloat16)
    found = subjects_of_models(str(tmp_path / "half"), str(inputs / "teacher"), [str(inputs / "held_prose.jsonl")])
    assert found.student.model.dtype == torch.bfloat16
    assert found.teachers["teacher"].model.dtype == torch.float32


# -- refused -----------------------------------------------------------------------------------------------------------


def copied(run: Path, tmp_path: Path, changes: dict[str, Any]) -> Path:
    folder = Path(shutil.copytree(run, tmp_path / "copy"))
    text = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(text | changes))
    return folder


def test_run_without_a_teacher_is_refused_or_given_one(inputs: Path, run: Path, tmp_path: Path) -> None:
    ce = {"temperature": {}, "terms": {"ce": {"term": "cross_entropy"}}}
    folder = copied(run, tmp_path, {"teachers": [], "objective": ce})
    with pytest.raises(ValueError, match=r"copy: the run has no teacher .*: give one with --teacher"):
        subjects_of_run(folder)
    assert subjects_of_run(folder, needs_teacher=False).teachers == {}
    assert list(subjects_of_run(folder, teacher=str(inputs / "near")).teachers) == ["teacher"]


def test_run_without_held_out_data_is_refused(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path, {"eval": {}})
    with pytest.raises(ValueError, match=r"copy: the run has no held-out data .*: give some with --data"):
        subjects_of_run(folder)


def test_run_that_is_still_being_written_is_refused(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path, {})
    (folder / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"copy: the run has not ended \(no summary.json\): wait for it"):
        subjects_of_run(folder)


def test_baseline_that_is_still_being_written_is_not_looked_at(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path, {})
    (folder / "baseline" / "summary.json").unlink()
    assert subjects_of_run(folder).baseline is None


def test_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run folder \(no recipe.yaml\): give run.output_dir"):
        subjects_of_run(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("student", "near", []), "there is no held-out data: give a file of rows with --data"),
        (("student", "near", ["missing.jsonl"]), "there is no 'missing.jsonl'"),
        (("student", "missing", ["held_prose.jsonl"]), "missing is not a folder"),
        (("missing", "near", ["held_prose.jsonl"]), "missing is not a folder"),
        (("student", "other", ["held_prose.jsonl"]), "have different tokenizers"),
    ],
)
def test_what_cannot_be_loaded_is_said(inputs: Path, arguments: Any, message: str) -> None:
    student, teacher, files = arguments
    with pytest.raises(ValueError) as found:
        subjects_of_models(str(inputs / student), str(inputs / teacher), [str(inputs / file) for file in files])
    assert message in str(found.value).replace(str(inputs) + "/", "")


def test_baseline_of_another_tokenizer_is_refused(inputs: Path) -> None:
    names = [str(inputs / name) for name in ("student", "near")]
    with pytest.raises(ValueError, match="different tokenizers"):
        subjects_of_models(*names, [str(inputs / "held_prose.jsonl")], baseline=str(inputs / "other"))
