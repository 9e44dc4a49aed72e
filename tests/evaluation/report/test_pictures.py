"""`llmkd report --pictures`: the charts of the page as files."""

import argparse
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from llmkd.evaluation.report import command
from llmkd.evaluation.report.charts import Chart, Series
from llmkd.evaluation.report.page import build
from llmkd.evaluation.report.pictures import pictures, svg

from run_folders import write_records, write_run, write_study

HOSTILE = "</text><script>window.broken=1</script> {{7*7}} ' \" \\ ]"


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.main(parser.parse_args([str(word) for word in words]))


def texts(picture: str) -> list[str]:
    """Of every line of every label."""
    labels = ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    return [line for label in labels for line in label.itertext()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / "a", "first"), write_run(folder / "b", "second")]
    write_records(runs[0])
    return [write_study(folder / "study"), *runs]


def test_every_chart_of_the_page_is_a_picture(folders):
    found = dict(pictures(folders))
    assert len(found) == build(folders).text.count('<figure class="chart"')
    assert len(found) == len(list(pictures(folders)))
    for name, picture in found.items():
        assert name.endswith(".svg") and "/" not in name
        assert "var(" not in picture
        assert texts(picture)


def test_a_picture_says_what_it_shows_and_who_is_who():
    series = [Series("one", 0, [(1.0, 2.0), (2.0, 1.0)]), Series("two", 1, [(1.0, 3.0), (2.0, 2.5)])]
    said = texts(svg(Chart("math", "step", "bits/byte", series, rules=[("teacher", 0.5)], part="Bits per byte")))
    assert {"Bits per byte: math", "bits/byte", "dashed: teacher 0.5", "step", "one", "two"} <= set(said)


def test_one_line_needs_no_legend():
    assert "one" not in texts(svg(Chart("math", "step", "", [Series("one", 0, [(1.0, 2.0), (2.0, 1.0)])])))


def test_rows_are_named():
    points = [("first", 1.0), ("second", 2.0)]
    bands = [(0.5, 1.5), (None, None)]
    assert {"first", "second"} <= set(
        texts(svg(Chart("a", "arm", "", [Series("mean", 0, points, bands)], "intervals")))
    )


def test_names_stay_text():
    series = [Series(HOSTILE, 0, [(1.0, 2.0), (2.0, 1.0)]), Series("b", 1, [(1.0, 3.0), (2.0, 1.0)])]
    picture = svg(Chart(HOSTILE, HOSTILE, HOSTILE, series, rules=[(HOSTILE, 1.0)]))
    assert "<script" not in picture
    assert HOSTILE in texts(picture)


def test_command_writes_them(folders, tmp_path, capsys):
    assert call(folders[0], "--output", tmp_path / "page.html", "--pictures", tmp_path / "new" / "pictures") == 0
    assert {path.name for path in (tmp_path / "new" / "pictures").iterdir()} == {n for n, _ in pictures(folders[:1])}
    assert "pictures: " in capsys.readouterr().out


def test_a_file_in_the_place_of_the_folder(folders, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert call(folders[0], "--output", tmp_path / "page.html", "--pictures", tmp_path / "taken") == 2
    assert "--pictures" in capsys.readouterr().err
