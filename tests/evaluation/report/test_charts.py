import json
import re

import pytest

from llmkd.evaluation.report.charts import COLOURS, DASHES, Chart, Series, dash, figure, kept, swatch


def test_thinning_keeps_ends_extremes_and_gaps():
    values = [float(i % 7) for i in range(5000)]
    values[1234], values[2345], values[3456] = 99.0, -99.0, None
    chosen = kept(values, 300)
    assert len(chosen) <= 300
    assert chosen == sorted(set(chosen))
    assert {0, 4999, 1234, 2345, 3456} <= set(chosen)


def test_few_points_are_not_thinned():
    assert kept([1.0, None, 2.0], 3) == [0, 1, 2]


def test_thinning_is_said():
    points = [(float(i), float(i)) for i in range(1000)]
    assert "of 1,000 points" in figure(Chart("a", "step", "", [Series("r", 0, points)]), 100)
    assert "Thinned" not in figure(Chart("a", "step", "", [Series("r", 0, points)]), 1000)


def test_nothing_finite_draws_nothing():
    assert figure(Chart("a", "step", "", [Series("r", 0, [(1.0, None)])]), 100) == ""


def test_table_tells_a_gap_from_what_was_not_logged():
    series = [Series("a", 0, [(1.0, 2.0), (2.0, None)]), Series("b", 1, [(1.0, 3.0)])]
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", figure(Chart("t", "step", "", series), 10))
    assert rows == [("1", "<td>2</td><td>3</td>"), ("2", "<td>NaN</td><td></td>")]


def test_looks_differ_beyond_the_colours():
    looks = [swatch(slot) for slot in range(COLOURS * len(DASHES))]
    assert len(set(looks)) == len(looks)
    assert len({tuple(dash(slot)) for slot in range(COLOURS)}) == COLOURS


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "{{7*7}}", '"><img src=x>', "datum['x']"])
def test_names_stay_text(name):
    html = figure(Chart(name, name, name, [Series(name, 0, [(1.0, 2.0)])], rules=[(name, 1.0)]), 10)
    assert "<script>alert" not in html and "<img" not in html
    spec = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html).group(1))
    assert spec["encoding"]["x"]["title"] == name
