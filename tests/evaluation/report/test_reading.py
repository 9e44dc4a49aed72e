import json

import pytest

from llmkd.evaluation.report.reading import read_run, read_runs

from run_folders import write_run


def test_what_was_written_is_read(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert (run.name, run.asked, run.reached, run.ended) == ("first", 60, 60, True)
    assert run.points("eval/code/kl")[0][0] == 20
    assert len(run.points("loss")) == 30
    assert len(run.samples) == 4
    assert run.baseline is not None and run.baseline.points("loss") != run.points("loss")
    assert list(run.troubles) == []


def test_half_written_last_line_is_ignored(tmp_path):
    folder = write_run(tmp_path / "run", ended=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 62, "loss": 1.')
    run = read_run(folder)
    assert run.reached == 60
    assert list(run.troubles) == []


def test_broken_line_in_the_middle_is_said(tmp_path):
    folder = write_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join([*lines[:3], "{oops\n", *lines[3:]]))
    run = read_run(folder)
    assert len(run.lines) == len(lines)
    assert any("metrics.jsonl: 1 line(s)" in said and said.endswith(": 4") for said in run.troubles)


@pytest.mark.parametrize("content", ['{"name": "first", "resu', "[]", '{"results": 3}'])
def test_broken_summary_leaves_a_run_that_has_not_ended(tmp_path, content):
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").write_text(content)
    run = read_run(folder)
    assert not run.ended
    assert run.reached == 60


def test_nan_is_a_gap_and_is_said(tmp_path):
    folder = write_run(tmp_path / "run", ended=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 62, "loss": float("nan")}) + "\n")
        file.write(json.dumps({"step": 64, "loss": float("inf")}) + "\n")
    run = read_run(folder)
    assert run.points("loss")[-2:] == [(62.0, None), (64.0, None)]
    assert any(
        said.startswith("loss was not finite") and "at 2 of" in said and "step 62" in said for said in run.troubles
    )


def test_record_that_is_none_is_said(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "eval").mkdir()
    (folder / "eval" / "sst2@0123456789.json").write_text('{"task": "ss')
    assert any("sst2@0123456789.json" in said for said in read_run(folder).troubles)


def test_no_run_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run.*give run\.output_dir"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        read_run(tmp_path / "nowhere")


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / name, "same") for name in ("a", "b")]
    names = [run.name for run in read_runs(folders)]
    assert len(set(names)) == 2
    assert all(str(folder) in name for folder, name in zip(folders, names, strict=True))
