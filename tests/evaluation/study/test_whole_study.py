"""A study from its YAML to its table: real runs, nothing in the way."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

T_95_OF_TWO = 12.706204736  # Student's t, one degree of freedom, 97.5 %


def summary(desk: Any, arm: str, seed: int, to: str = "out") -> dict[str, Any]:
    return json.loads((desk.folder / to / "arms" / arm / f"seed-{seed}" / "summary.json").read_text())


def student(desk: Any, arm: str, seed: int, to: str = "out") -> dict[str, Any]:
    return summary(desk, arm, seed, to)["results"]["student"]


def test_arms_saw_exactly_the_same_tokens(whole: Any) -> None:
    assert whole.code == 0, whole.out + whole.err
    for seed in (3, 4):
        counts = {student(whole, arm, seed)["tokens"] for arm in ("ce", "kl")}
        assert len(counts) == 1 and counts.pop() > 100
        assert whole.table()["arms"]["ce"]["runs"][str(seed)]["tokens"] == student(whole, "ce", seed)["tokens"]
    assert student(whole, "ce", 3)["tokens"] != student(whole, "ce", 4)["tokens"], "other rows with another seed"


def test_table_holds_the_numbers_of_the_runs_and_what_follows_from_them(whole: Any) -> None:
    found = whole.table()
    assert next(iter(found["measures"])) == "held_out.prose.bits_per_byte"
    for path in found["measures"]:
        _, domain, measure = path.split(".")
        ours, theirs = ([student(whole, arm, seed)["held_out"][domain][measure] for seed in (3, 4)]
                        for arm in ("kl", "ce"))  # fmt: skip
        cell = found["arms"]["kl"]["measures"][path]
        assert list(cell["values"].values()) == ours
        assert cell["mean"] == pytest.approx(sum(ours) / 2) and (cell["low"], cell["high"]) == (min(ours), max(ours))
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        half = T_95_OF_TWO * abs(differences[0] - differences[1]) / 2
        mean = sum(differences) / 2
        assert cell["difference"]["mean"] == pytest.approx(mean, abs=1e-12)
        if half > 0:
            assert cell["difference"]["interval"] == pytest.approx([mean - half, mean + half], rel=1e-6)
            assert (cell["difference"]["verdict"] == "no difference") == (abs(mean) <= half)
    assert found["arms"]["ce"]["measures"][path]["difference"] is None


def test_markdown_and_terminal_show_the_same_cells(whole: Any) -> None:
    text = (whole.folder / "out" / "table.md").read_text()
    cell = whole.table()["arms"]["kl"]["measures"]["held_out.prose.kl"]
    row = next(line for line in text.split("## forward KL to the teacher: prose")[1].splitlines() if "| kl |" in line)
    for shown in (f"{cell['mean']:.4f}", f"[{cell['low']:.4f}, {cell['high']:.4f}]",
                  f"{cell['difference']['mean']:+.4f}", cell["difference"]["verdict"]):  # fmt: skip
        assert shown in row and shown in whole.out.replace("\n", " ")


def test_curves_are_the_lines_of_the_runs(whole: Any) -> None:
    curves = json.loads((whole.folder / "out" / "curves.json").read_text())["arms"]
    lines = (whole.folder / "out/arms/kl/seed-4/metrics.jsonl").read_text().splitlines()
    losses = [[line["step"], line["loss"]] for line in map(json.loads, lines) if "loss" in line]
    assert curves["kl"]["4"]["loss"] == losses and len(losses) == 3
    end = student(whole, "kl", 4)["held_out"]["prose"]["kl"]
    assert curves["kl"]["4"]["held_out.prose.kl"][-1] == [3, end]


def test_finished_runs_are_not_run_again_and_the_table_stays(whole: Any) -> None:
    folder = whole.folder / "out"
    names = ["table.md", "table.json", "curves.json", "commands.sh", "study.yaml"]
    before = {name: (folder / name).read_bytes() for name in names}
    runs = {path: path.stat().st_mtime_ns for path in folder.glob("arms/*/*/summary.json")}
    assert whole.compare(whole.folder / "study.yaml") == 0
    assert "started" not in whole.out and len(runs) == 4
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_resolved_study_is_the_same_study(whole: Any) -> None:
    before = whole.without_seconds()
    assert whole.compare(whole.folder / "out" / "study.yaml") == 0, whole.err
    assert "started" not in whole.out and whole.without_seconds() == before


def test_two_at_once_give_the_same_numbers(whole: Any) -> None:
    assert whole.compare(whole.folder / "study.yaml", "--jobs", "2", to="at_once") == 0
    assert whole.without_seconds("at_once") == whole.without_seconds("out")


def test_commands_repeat_a_run(whole: Any, tmp_path: Path) -> None:
    lines = (whole.folder / "out" / "commands.sh").read_text().splitlines()
    assert len([line for line in lines if "run.seed=" in line]) == 4
    script = [line for line in lines if "run.seed=" not in line or ("arms/kl/" in line and "run.seed=4" in line)]
    (tmp_path / "one.sh").write_text("\n".join(script))
    subprocess.run(
        ["sh", "one.sh"], cwd=tmp_path, env={"OUT": "other", "PATH": "/usr/bin:/bin"}, check=True, timeout=200
    )
    again = json.loads((tmp_path / "other/arms/kl/seed-4/summary.json").read_text())["results"]["student"]
    assert again["held_out"] == student(whole, "kl", 4)["held_out"]
