"""Arms that fail, diverge or are alike; studies with one seed; what is said of each."""

from typing import Any


def test_failing_arm_is_reported_and_the_rest_goes_on(desk: Any) -> None:
    arms = {"broken": {"overrides": {"student.model_name_or_path": str(desk.folder / "nothing")}}, "kl": {}}
    path = desk.study({"arms": arms, "varies": ["student.model_name_or_path"], "seeds": [3]})
    assert desk.compare(path) == 1
    assert "broken, seed 3: failed (exit code 2)" in desk.out
    assert "failed: broken, seed 3; the same command tries it again" in desk.out
    assert f"{desk.folder / 'nothing'}" in desk.out.replace("\n", ""), "the reason, out of the run's log"
    found = desk.table()
    assert found["arms"]["broken"]["status"] == "failed" and found["arms"]["kl"]["status"] == "complete"
    assert any(note.startswith("broken, seed 3: failed") for note in found["notes"])


def test_diverging_arm_is_kept_and_marked(desk: Any) -> None:
    arms = {"kl": {}, "wild": {"overrides": {"train.learning_rate": 1e38}}}
    code = desk.compare(desk.study({"arms": arms, "varies": ["train.learning_rate"], "seeds": [3]}))
    found = desk.table()
    run = found["arms"]["wild"]["runs"]["3"]
    assert (run["state"], run["steps"]) == ("diverged", 3), desk.out
    assert code == 0 and found["arms"]["wild"]["status"] == "diverged"
    assert run["diverged_at"] in (2, 3)
    assert all(cell["mean"] is None for cell in found["arms"]["wild"]["measures"].values())
    assert all(cell["mean"] is not None for cell in found["arms"]["kl"]["measures"].values())
    assert f"wild (diverged at step {run['diverged_at']})" in (desk.folder / "out" / "table.md").read_text()


def test_equal_arms_show_no_difference_of_width_zero(desk: Any) -> None:
    assert desk.compare(desk.study({"arms": {"one": {}, "same": {}}})) == 0
    cells = desk.table()["arms"]["same"]["measures"].values()
    assert len(cells) == 6
    for cell in cells:
        assert cell["difference"]["mean"] == 0 and cell["difference"]["interval"] == [0, 0]
        assert cell["difference"]["verdict"] == "no difference"


def test_unequal_budgets_are_said_loudly_and_one_seed_withholds_intervals(desk: Any) -> None:
    """Half the rows a step: half the tokens, whatever the number of steps.  With one seed, so nothing is judged."""
    arms = {"kl": {}, "small": {"overrides": {"train.per_device_train_batch_size": 4}}}
    path = desk.study({"arms": arms, "varies": ["train.per_device_train_batch_size"], "seeds": [3]})
    assert desk.compare(path) == 1
    assert "UNEQUAL BUDGETS, seed 3" in desk.out
    assert (
        "UNEQUAL BUDGETS, seed 3: the arms saw different numbers of tokens: kl 233, small" in desk.table()["notes"][-1]
    )
    found, text = desk.table(), (desk.folder / "out" / "table.md").read_text()
    cells = [cell for arm in found["arms"].values() for cell in arm["measures"].values()]
    assert all(cell["interval"] is None for cell in cells)
    differences = [cell["difference"] for cell in found["arms"]["small"]["measures"].values()]
    assert all(d["interval"] is None and d["verdict"] is None and d["mean"] is not None for d in differences)
    for said in (text, desk.out):
        assert "One seed: intervals and verdicts are withheld" in said
    assert "| withheld | one seed |" in text
