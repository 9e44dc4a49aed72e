"""`llmkd verify`: everything holds here, in every precision; what it prints and writes; and its exit codes."""

import json
import math

import pytest
import torch
import yaml

from llmkd import cli
from llmkd.checks import law, report, verify
from llmkd.checks.law import Finding, Law, Setting, judge, near, same
from llmkd.checks.verify import collect, run
from llmkd.objectives import policy
from llmkd.objectives.divergences import VALUES
from llmkd.terms import READINGS, TERMS

# -- everything holds -------------------------------------------------------------------------------------------------


def assert_all_hold(setting: Setting, groups: list[str] | None = None) -> None:
    results = run(collect(setting, groups))
    assert {r.entry for r in results} >= set(TERMS)
    assert list(report.failures(results)) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_everything_holds_in_the_users_precision(dtype):
    """Formulas are tried in float64 and in what the logits have, which is the same for both."""
    groups = ["engine", "sparse", "batches", *(["formulas"] if dtype == "float32" else [])]
    assert_all_hold(Setting(dtype=verify.DTYPES[dtype]), groups)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", verify.DTYPES)
def test_everything_holds_on_a_gpu(dtype):
    assert_all_hold(Setting("cuda", verify.DTYPES[dtype]))


@pytest.mark.full
@pytest.mark.parametrize("dtype", verify.DTYPES)
@pytest.mark.parametrize("seed", range(1, 6))
def test_everything_holds_whatever_the_seed(dtype, seed):
    assert_all_hold(Setting(dtype=verify.DTYPES[dtype], seed=seed))


def test_every_entry_has_its_laws_in_every_group():
    laws = collect(Setting())
    for name, row in TERMS.items():
        groups = {law.group for law in laws if law.entry == name}
        assert groups == {"formulas", "engine", "batches", *(["sparse"] if row.needs_teacher else [])}
        law_names = [law.name for law in laws if law.entry == name]
        assert len(law_names) == len(set(law_names))
        assert ("zero at equality" in law_names) == row.divergence


def test_cases_go_from_small_to_large():
    for one in collect(Setting()):
        sizes = [
            (case.get("tokens", 0) * case.get("vocabulary", 0), case.get("rows", 0), case.get("length", 0))
            for case in one.cases
        ]
        assert sizes == sorted(sizes), f"{one.entry}: {one.name}"


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fewer(monkeypatch) -> None:
    """The laws of the estimators alone: a tenth of a second."""
    monkeypatch.setattr(verify, "GROUPS", {"estimators": verify.GROUPS["estimators"]})


def test_whole_command_in_float64(tmp_path, capsys):
    assert cli.main(["verify", "--json", str(tmp_path / "found.json")]) == 0
    out = capsys.readouterr().out
    for name in TERMS:
        assert name in out
    assert "laws hold" in out and "FAILED" not in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["passed"] is True and found["recipe"] is None
    assert (found["device"], found["dtype"], found["seed"]) == ("cpu", "float64", 0)
    assert found["environment"]["packages"]["torch"] == torch.__version__
    assert list(found["entries"]) == [*TERMS, "k1", "k2", "k3", "all terms"]
    for name, row in TERMS.items():
        entry = found["entries"][name]
        assert entry["class"] == ("divergence" if row.divergence else "loss") and entry["range"] == row.range
        assert list(entry["readings"]) == list(READINGS) and entry["readings"]["dense"] == "exact"
        assert entry["laws"] == entry["passed"] == sum(r["entry"] == name for r in found["results"]) > 20
    for result in found["results"]:
        assert set(result) == {"law", "group", "entry", "passed", "cases", "error", "tolerance", "failure"}
        assert result["passed"] and result["cases"] > 0 and result["failure"] is None
        assert result["error"] <= result["tolerance"]


def test_a_failure_is_shown_with_its_smallest_case_and_exits_with_1(fewer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(policy, "k2", policy.k3)
    assert cli.main(["verify", "--json", str(tmp_path / "found.json"), "--dtype", "float32", "--seed", "5"]) == 1
    out = capsys.readouterr().out
    assert "FAILED k2: as a loss has the gradient of reverse KL" in out
    assert "smallest failing case (estimators): vocabulary=2, length=1, seed=5" in out
    assert "laws failed (float32 on cpu, seed 5" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["passed"] is False
    failed = [r for r in found["results"] if not r["passed"]]
    assert {r["entry"] for r in failed} == {"k2"}
    for result in failed:
        assert set(result["failure"]) == {"case", "what", "error", "tolerance", "found", "expected"}


def test_what_is_no_number_is_a_word_in_the_json(fewer, tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "k1", lambda logp, logq: logq * math.nan)
    assert cli.main(["verify", "--json", str(tmp_path / "found.json")]) == 1
    text = (tmp_path / "found.json").read_text()
    failed = [r for r in json.loads(text)["results"] if not r["passed"]]
    assert failed[0]["error"] == "inf" and failed[0]["failure"]["found"] == "nan"
    assert "NaN" not in text and "Infinity" not in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--device", "tpu"], "--device: tpu is none of cpu, cuda"),
        (["--dtype", "float16"], "--dtype: float16 is none of float64, float32, bfloat16"),
        (["--seed", "-1"], "--seed: -1 is outside [0, 2^32)"),
        (["--json", "no/such/folder/found.json"], "the folder no/such/folder does not exist"),
        (["--json", "."], "--json: . is a folder: name a file"),
        (["no_such_recipe.yaml"], "no_such_recipe.yaml"),
        (["no_such_recipe.yaml", "--json", "found.json", "train.bf16=false"], "no_such_recipe.yaml"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["verify", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("llmkd verify: ") and message in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_a_mistake(capsys):
    assert cli.main(["verify", "--device", "cuda"]) == 2
    assert "torch finds no CUDA device here" in capsys.readouterr().err


def test_a_recipe_with_a_mistake_says_what_it_is(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"run": {"output_dir": str(tmp_path / "run")}}))
    assert cli.main(["verify", str(recipe), "train.method=offpolicy"]) == 2
    said = capsys.readouterr().err
    assert "student" in said and "Traceback" not in said


def test_words_that_belong_nowhere_are_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", "--colour"])
    assert stopped.value.code == 2 and "usage" in capsys.readouterr().err


def test_help_shows_what_it_takes(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ["RECIPE", "--json", "--device", "--dtype", "--seed"])


# -- how a law is judged ----------------------------------------------------------------------------------------------


def law_of(*errors: float, tolerance: float = 1.0) -> Law:
    return Law("holds", "none", "entry", [{"size": e} for e in errors], lambda size: Finding(size, tolerance))


def test_a_law_stops_at_the_first_case_that_breaks_it():
    result = judge(law_of(0.5, 2.0, 3.0, 0.1))
    assert not result.passed and result.cases == 2 and result.error == 2.0
    assert result.failure is not None and result.failure["case"] == {"size": 2.0}


def test_a_law_that_holds_reports_its_worst_case():
    result = judge(law_of(0.1, 0.9, 0.5))
    assert result.passed and result.cases == 3 and result.error == 0.9 and result.failure is None


def test_nan_breaks_a_law():
    assert not judge(law_of(math.nan)).passed
    assert not same(torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.nan]), 1.0, "value").passed
    assert not near(torch.tensor([math.nan]), torch.tensor([1.0]), 1.0, "gradient").passed


def test_a_law_without_cases_is_refused():
    with pytest.raises(AssertionError, match="proves nothing"):
        judge(law_of())


def test_infinities_are_the_same_only_with_their_sign():
    infinite = torch.tensor([math.inf, 0.0])
    assert same(infinite, infinite.clone(), 0.0, "value").passed
    assert not same(-infinite, infinite, 1.0, "value").passed
    assert not same(torch.zeros(2), infinite, 1.0, "value").passed


def test_the_worst_entry_is_named_by_its_place():
    expected = torch.zeros(2, 3)
    found = expected.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(0.25))
    finding = same(found, expected, 0.1, "value")
    assert finding.what == "value[1, 2]" and finding.found == 0.25 and finding.expected == 0.0


def test_shapes_must_agree():
    finding = same(torch.zeros(3), torch.zeros(2), 1.0, "value")
    assert not finding.passed and finding.what == "the shape of value" and finding.found == "(3,)"


def test_random_numbers_are_those_of_the_seed():
    assert torch.equal(law.normals(3, 2, seed=4), law.normals(3, 2, seed=4))
    assert not torch.equal(law.normals(3, 2, seed=4), law.normals(3, 2, seed=5))


def test_the_code_under_test_is_the_one_in_use():
    """The laws look formulas up where the engine does: a patched table would show."""
    from llmkd.checks import formula_laws
    from llmkd.objectives import rows

    assert formula_laws.VALUES is VALUES is rows.VALUES
