"""The table over seeds: means, ranges, and a dash for what a model does not have."""

from llmkd.evaluation.demo_study import markdown


def result(bits: float, kl: float | None, right: float, tokens: int | None = 100) -> dict:
    held_out = {"code": {"bits_per_byte": bits} | ({} if kl is None else {"kl": kl})}
    return {"parameters": 1000, "held_out": held_out, "tasks": {"arithmetic": {"1": right}}, "tokens": tokens}


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [c.strip() for c in cells[1:]] for cells in lines}


def test_cells_are_the_mean_and_the_range_of_the_seeds():
    runs = [{"student": result(bits, kl, 0.5)} for bits, kl in ((1.0, 0.2), (1.5, 0.4), (2.0, 0.6))]
    table = rows(markdown(runs))
    assert table["bits per byte: code"] == ["1.500 [1.000, 2.000]"]
    assert table["forward KL to the teacher: code"] == ["0.400 [0.200, 0.600]"]


def test_a_value_that_no_seed_changes_has_no_range():
    runs = [{"student": result(1.0, 0.2, 0.5)}] * 3
    table = rows(markdown(runs))
    assert table["parameters"] == ["1,000"] and table["arithmetic level 1: exact match"] == ["50%"]


def test_a_teacher_has_no_kl_to_itself_and_saw_no_tokens_here():
    runs = [{"teacher": result(0.9, None, 1.0, tokens=None), "student": result(1.0, 0.2, 0.5)}]
    table = rows(markdown(runs))
    assert table["forward KL to the teacher: code"] == ["-", "0.200"]
    assert table["tokens seen"] == ["-", "100"]


def test_a_measure_that_no_model_has_is_no_row():
    assert "top-1 agreement: code" not in rows(markdown([{"student": result(1.0, 0.2, 0.5)}]))
