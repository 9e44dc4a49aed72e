"""The table of a run: a row a measure, a column a model, a dash where there is nothing."""

from typing import Any

from rich.console import Console

from llmkd.evaluation.table import markdown, rows, table

TEACHER = {
    "parameters": 1_820_000,
    "held_out": {"code": {"ce": 1.5, "bits_per_byte": 1.106, "entropy": 1.4}, "prose": {"ce": 2.0}},
    "tasks": {"arithmetic": {"1": 0.95, "2": 0.88}},
}
STUDENT = {
    "parameters": 440_064,
    "held_out": {
        "code": {"ce": 2.1, "bits_per_byte": 1.55, "kl": 0.7912, "agreement": 0.5},
        "prose": {"ce": 2.6, "kl": 0.81, "agreement": 0.4},
    },
    "tasks": {"arithmetic": {"1": 0.0}},
    "tokens": 2_764_800,
    "seconds": 70.4,
}
RESULTS: dict[str, Any] = {"teacher": TEACHER, "student": STUDENT}


def cells(label: str, results: dict[str, Any] = RESULTS) -> list[str]:
    return dict(rows(results))[label]


def test_number_is_under_its_models_column() -> None:
    assert cells("parameters") == ["1,820,000", "440,064"]
    assert cells("bits per byte: code") == ["1.106", "1.550"]
    assert cells("nats per token: prose") == ["2.000", "2.600"]


def test_measure_that_a_model_lacks_is_a_dash() -> None:
    assert cells("forward KL to the teacher: code") == ["-", "0.791"]
    assert cells("top-1 agreement: prose") == ["-", "0.400"]
    assert cells("tokens seen") == ["-", "2,764,800"]
    assert cells("seconds") == ["-", "70"]


def test_measure_that_nobody_has_is_no_row() -> None:
    assert "bits per byte: prose" not in dict(rows(RESULTS))


def test_exact_match_of_zero_is_no_dash() -> None:
    assert cells("arithmetic level 1: exact match") == ["95%", "0%"]
    assert cells("arithmetic level 2: exact match") == ["88%", "-"]


def test_pass_at_k_is_named_after_the_task_and_keeps_a_digit() -> None:
    solves = {"parameters": 1, "held_out": {}, "tasks": {"hard": {"pass@1": 0.0125, "pass@8": 0.1}}}
    assert cells("hard: pass@1", {"teacher": TEACHER, "student": solves}) == ["-", "1.2%"]
    assert cells("hard: pass@8", {"teacher": TEACHER, "student": solves}) == ["-", "10.0%"]


def test_domain_that_one_model_lacks_is_a_dash() -> None:
    other = {"parameters": 1, "held_out": {"math": {"ce": 0.5}}, "tasks": {}}
    assert cells("nats per token: math", {"student": STUDENT, "other": other}) == ["-", "0.500"]
    assert cells("nats per token: code", {"student": STUDENT, "other": other}) == ["2.100", "-"]


def test_model_without_held_out_rows_or_tasks_has_a_table() -> None:
    assert [label for label, _ in rows({"student": {"parameters": 7, "held_out": {}, "tasks": {}}})] == [
        "parameters", "tokens seen", "seconds",
    ]  # fmt: skip


def test_markdown_holds_every_row() -> None:
    lines = markdown(RESULTS).splitlines()
    assert lines[:2] == ["| | teacher | student |", "|---|---:|---:|"]
    assert [line.strip("| ").split(" | ") for line in lines[2:]] == [[label, *row] for label, row in rows(RESULTS)]


def test_terminal_holds_every_cell() -> None:
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(RESULTS))
    text = console.export_text()
    assert all(cell in text for label, row in rows(RESULTS) for cell in [label, *row])


def test_each_of_several_teachers_has_its_rows() -> None:
    held_out = {"code": {"kl@big": 0.5, "kl@near": 0.25, "agreement@big": 0.75}}
    found = dict(rows({"student": STUDENT | {"held_out": held_out}}))
    assert found["forward KL to big: code"] == ["0.500"] and found["forward KL to near: code"] == ["0.250"]
    assert found["top-1 agreement with big: code"] == ["0.750"]
