"""The page as a browser shows it."""

import base64
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from llmkd.evaluation.report.page import MOST_BYTES, build

from browser import browser, needs_chromium, opened
from run_folders import write_records, write_run, write_study

HOSTILE = """</script><script>window.broken=1</script><img src=x onerror="window.broken=1">{{7*7}}<!-- &amp; '"""
CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((v, i) => i === 3 ? v / 255 : v);
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const behind = (element) => element === null ? [255, 255, 255, 1]
    : over(rgba(getComputedStyle(element).backgroundColor), behind(element.parentElement));
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  document.querySelectorAll("details").forEach((d) => { d.open = true; });
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || element.closest("script, noscript, .hidden, [hidden]")) continue;
    const drawn = element.namespaceURI.endsWith("svg");
    const style = getComputedStyle(element);
    const under = behind(element);
    const [a, b] = [light(over(rgba(drawn ? style.fill : style.color), under)), light(under)];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.className || element.tagName]);
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Two runs, the second one with names and texts that would break a page that trusts them."""
    folder = tmp_path_factory.mktemp("runs")
    found = [write_run(folder / "a", "first"), write_run(folder / "b", HOSTILE, faster=2.0, completion=HOSTILE)]
    write_records(found[0])
    write_records(found[1], agreement=0.25, token=HOSTILE)
    return found


@pytest.fixture(scope="module")
def path(folders, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(build(folders).text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(path):
    with opened(path) as page:
        yield page


def values_of(page, title: str) -> list[list[str]]:
    """The table under a chart, as text."""
    return page.value(
        f"""[...document.querySelectorAll("figure.chart")].filter((f) => f.querySelector("strong").textContent ===
        {json.dumps(title)}).map((f) => [...f.querySelectorAll("table.data tr")].map((r) =>
        [...r.cells].map((c) => c.textContent)))[0]"""
    )


@needs_chromium
def test_values_are_those_of_the_log(page, folders):
    for title, key in (("Loss", "loss"), ("kd: forward_kl", "kd/value"), ("kd: weight", "kd/weight")):
        _, *rows = values_of(page, title)
        for column, folder in enumerate(folders, 1):
            lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            logged = {line["step"]: line[key] for line in lines if key in line}
            shown = {int(row[0]): float(row[column]) for row in rows if row[column]}
            assert shown.keys() == logged.keys()
            assert all(shown[step] == pytest.approx(logged[step], rel=1e-5) for step in logged)


@needs_chromium
def test_results_are_those_of_the_summary(page):
    rows = page.value(
        """[...document.querySelectorAll("#results tr")].map((r) => [...r.cells].map((c) => c.textContent))"""
    )
    assert rows[0] == ["", "teacher", "baseline", "first", HOSTILE]
    table = {row[0]: row[1:] for row in rows[1:]}
    assert table["forward KL to the teacher: code"] == ["-", "0.900", "0.610", "0.610"]
    assert table["parameters"] == ["9,000", "1,000", "1,000", "1,000"]
    assert table["arithmetic level 1: exact match"] == ["75%"] * 4


@needs_chromium
def test_every_chart_is_drawn_from_its_table(page):
    drawn = page.value("""[...document.querySelectorAll("figure.chart")].map((f) => [
        f.querySelector("strong").textContent, Number(f.querySelector(".plot").dataset.drawn),
        [...f.querySelectorAll("table.data td")].filter((c) => c.textContent).length,
        f.querySelectorAll(".plot svg path, .plot svg line").length, f.querySelector("[role=img]").ariaLabel])""")
    assert len(drawn) > 15
    for title, rows, cells, marks, label in drawn:
        assert rows == cells > 0, title
        assert marks > 4, title
        assert label.startswith(title) and re.search(r"\d", label)


@needs_chromium
def test_runs_lie_over_each_other_in_colours_and_dashes_of_their_own(page):
    lines = page.value("""[...document.querySelector("#loss figure .plot").querySelectorAll(".mark-line path")].map(
        (p) => [getComputedStyle(p).stroke, p.getAttribute("stroke-dasharray")])""")
    assert len(lines) == 2
    assert lines[0][0] != lines[1][0] and lines[0][1] != lines[1][1]


@needs_chromium
def test_nothing_leaves_the_page_and_nothing_is_complained_of(page, path):
    assert page.errors == []
    assert [address for address in page.requests if not address.startswith("data:")] == [path.as_uri()]


@needs_chromium
def test_policy_forbids_the_network(page):
    said = page.value("""new Promise((done) => {
        setTimeout(() => done("not refused"), 3000);
        addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective), { once: true });
        const image = new Image(); image.src = "https://example.com/x.png"; document.body.append(image); image.remove();
    })""")
    assert said == "img-src"
    page.errors.clear()  # the violation that was asked for


@needs_chromium
def test_texts_of_a_run_stay_texts(page):
    assert page.value("window.broken === undefined")
    assert page.value("document.querySelectorAll('main script:not([type]), img').length") == 0
    assert page.value("document.title").endswith(HOSTILE)
    completion = page.value("""[...document.querySelectorAll("#samples .said")].map((e) => e.textContent)""")
    assert f"{HOSTILE} 60" in completion
    tokens = page.value("""[...document.querySelectorAll("#tokens .tokens")].map((e) => e.textContent)""")
    assert any(HOSTILE in text for text in tokens)


@needs_chromium
def test_tokens_say_their_divergence_in_words_too(page):
    token = page.value("""(() => { const t = document.querySelector("#tokens .tokens .t");
        return [t.textContent, t.title, t.className]; })()""")
    assert token == [" the (KL 0.73) ", "KL 0.734; teacher: ' the' 0.80; model: ' b' 0.50", "t h2"]


@needs_chromium
def test_records_are_there_with_their_intervals(page):
    text = page.value("document.querySelector('#benchmarks').textContent")
    assert "0.4251 [0.3851, 0.4651] n = 200" in text
    fidelity = page.value("""[...document.querySelector("#fidelity table").rows].map((r) => [...r.cells].map(
        (c) => c.textContent))""")
    assert fidelity[0][1:] == ["student", "baseline", "n"]
    assert fidelity[1] == ["forward KL to the teacher ↓ nats/token", "0.6125 [0.5, 0.7]", "0.9375 [0.8, 1.1]", "20"]
    assert values_of(page, "code")  # a held-out panel
    reliability = page.value(
        """[...document.querySelectorAll("#calibration table.data td")].map((c) => c.textContent)"""
    )
    assert reliability == ["0.125", "0.125", "0.625", "0.625"]
    assert page.value("document.querySelector('#answers').textContent").count("It is 5.") == 2


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_both_schemes(page, dark):
    page.emulate(dark=dark)
    found = page.value(CONTRAST)
    assert len(found) > 300
    assert [pair for pair in found if pair[0] < 4.5] == []
    page.emulate()


@needs_chromium
def test_lines_stand_out_in_both_schemes(page):
    for dark in (False, True):
        page.emulate(dark=dark)
        colours = page.value("""(() => { const e = document.createElement("i"); document.body.append(e);
            const out = ["paper", "soft", "c1", "c2", "c3", "c4", "c5", "c6"].map((n) => {
                e.style.color = `var(--${n})`;
                return getComputedStyle(e).color.match(/[0-9]+/g).map(Number);
            });
            e.remove(); return out; })()""")
        paper, *others = map(luminance, colours)
        assert all((max(c, paper) + 0.05) / (min(c, paper) + 0.05) >= 3 for c in others)
    page.emulate()


def luminance(colour: list[int]) -> float:
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@needs_chromium
def test_the_button_turns_the_scheme_by_keyboard(page):
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.value(paper)
    page.value("document.getElementById('scheme').focus()")
    page.press("Enter", 13, "\r")
    after = page.value(paper)
    assert before != after
    assert page.value("document.getElementById('scheme').textContent") == "Light"
    page.press("Enter", 13, "\r")
    assert page.value(paper) == before


@needs_chromium
def test_keyboard_reaches_everything_with_a_visible_focus(page, path):
    page.go(path.as_uri())
    reached = []
    for _ in range(40):
        page.press("Tab", 9)
        reached.append(
            page.value("""(() => { const e = document.activeElement; return [e.tagName, e.className || e.id,
            parseFloat(getComputedStyle(e).outlineWidth)]; })()""")
        )
    assert reached[0][:2] == ["A", "skip"]
    assert {"BUTTON", "A", "SUMMARY", "DIV"} <= {tag for tag, _, _ in reached}
    assert all(outline >= 2 for _, _, outline in reached)
    page.value("document.querySelector('figure summary').focus()")
    page.press("Enter", 13, "\r")
    assert page.value("document.querySelector('figure details').open")


@needs_chromium
def test_structure_for_those_who_hear_the_page(page):
    assert page.value("document.documentElement.lang") == "en"
    levels = page.value("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.value("document.querySelector('.skip').hash") == "#content"
    assert page.value("""[...document.querySelectorAll('nav a')].every((a) => document.querySelector(a.hash))""")
    assert page.value("""[...document.querySelectorAll('figure')].every((f) => {
        const p = f.querySelector('[role=img]'); return p.ariaLabel && p.contains(f.querySelector('.plot svg')); })""")


@needs_chromium
def test_phone_shows_all_without_scrolling_sideways(page, path):
    page.emulate(width=390, height=800)
    page.go(path.as_uri())
    page.value("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.value("document.documentElement.scrollWidth") <= 390
    assert page.value(
        "[...document.querySelectorAll('.plot svg')].every((s) => s.getBoundingClientRect().right <= 390)"
    )
    page.emulate()
    page.go(path.as_uri())


@needs_chromium
def test_print_is_light_and_without_controls(page):
    page.emulate(dark=True, media="print")
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 251)"
    hidden = page.value("""["nav", "#scheme", "figure details"].map((s) => getComputedStyle(
        document.querySelector(s)).display)""")
    assert hidden[0] == hidden[2] == "none"
    pdf = base64.b64decode(page.call("Page.printToPDF")["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
    page.emulate()


@needs_chromium
def test_study_shows_arms_verdicts_and_bands(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(build([write_study(tmp_path / "study")]).text, encoding="utf-8")
    with opened(path, width=390) as page:
        assert page.errors == []
        rows = page.value("""[...document.querySelector("section table").rows].map((r) => [...r.cells].map(
            (c) => c.textContent))""")
        assert rows[1] == ["forward_kl reference", "0.505 [0.405, 0.605]"]
        assert rows[2] == ["jsd", "0.755 [0.655, 0.855]worse"]
        loss = values_of(page, "Loss")
        assert loss[1:] == [["20", "3.05 [3, 3.1]", "4.05 [4, 4.1]"], ["40", "2.05 [2, 2.1]", "3.05 [3, 3.1]"]]
        assert values_of(page, "Reward")[-1] == ["40", "0.25 [0.25, 0.25]", "0.5 [0.5, 0.5]"]
        assert page.value("document.querySelectorAll('.mark-area path').length") >= 4
        assert page.value("document.documentElement.scrollWidth") <= 390
        samples = page.value("[...document.querySelectorAll('.sample .said')].map((e) => e.textContent)")
        assert "said by forward_kl 60" in samples and "said by jsd 60" in samples


@needs_chromium
def test_page_of_a_run_that_goes_on_reads_itself_again_where_the_reader_was(tmp_path):
    folder = write_run(tmp_path / "run", steps=40, ended=False)
    path = tmp_path / "report.html"
    path.write_text(build([folder], every=5).text, encoding="utf-8")  # not in the middle of what is asked of it
    with browser() as page:
        page.emulate()
        page.go(path.as_uri())
        assert "40 of 60 steps" in page.value("document.querySelector('#glance').textContent")
        assert "first" in page.value("document.querySelector('.live').textContent")
        page.value("document.querySelector('figure details').open = true")
        page.value("new Promise(requestAnimationFrame)")
        page.value("scrollTo(0, 900)")
        page.value("new Promise((done) => setTimeout(done, 200))")
        where = "document.getElementById('loss').getBoundingClientRect().top"
        top = page.value(where)
        write_run(tmp_path / "run", steps=60)
        path.write_text(build([folder], every=5).text, encoding="utf-8")
        before = page.loaded
        while page.loaded == before:
            page._next()
        page.value("window.drawn")
        assert "60 of 60 steps" in page.value("document.querySelector('#glance').textContent")
        assert page.value("document.documentElement.dataset.every") is None  # it has ended: no more
        assert page.value(where) == pytest.approx(top, abs=2)
        assert page.value("document.querySelector('figure details').open")


def test_source_names_no_address(tmp_path):
    text = build([write_run(tmp_path / "run")]).text
    ours = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)  # without Vega, which names its namespaces
    addresses = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']?([^"'\s>]+)""", ours)
    assert len(addresses) > 5 and all(address.startswith("#") for address in addresses)
    assert not re.search(r"https?:|//\w+\.|@import|url\(", ours)


def test_long_runs_are_thinned_and_it_is_said(tmp_path):
    folders = [write_run(tmp_path / str(i), f"run {i}", steps=40_000, every=2) for i in range(3)]
    text = build(folders).text
    assert len(text.encode()) < MOST_BYTES
    assert "of 60,000 points, the extremes among them" in text


def test_run_without_evaluation_has_no_empty_sections(tmp_path):
    folder = write_run(tmp_path / "run", ended=False, baseline=False)
    lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if "eval/" not in line]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "samples.jsonl").unlink()
    found = re.findall(r'<section id="(\w+)">', build([folder]).text)
    assert found == ["glance", "loss", "held", "schedules", "speed", "recipe"]


@needs_chromium
def test_run_that_has_only_begun_makes_a_page(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("run: {name: begun}\n")
    built = build([folder], every=60)
    assert not built.ended
    (tmp_path / "report.html").write_text(built.text)
    with opened(tmp_path / "report.html") as page:
        assert "nothing logged yet" in page.value("document.body.textContent")
        assert page.value("document.getElementById('pause').hidden") is False
        assert page.errors == []


def test_what_could_not_be_read_is_on_the_page(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").write_text("{")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 62, "loss": NaN}\n')
    text = build([folder]).text
    assert "summary.json cannot be read" in text
    assert "loss was not finite (NaN or infinite) at 1 of its log lines, first at step 62" in text
    assert "<td>NaN</td>" in text
