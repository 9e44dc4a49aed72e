"""Means over tokens, by hand."""

from types import SimpleNamespace

import torch

from llmkd.trainers.tallies import Tallies

ALONE = SimpleNamespace(reduce=lambda x, reduction: x)


def tally(**rows):
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in rows.items()}


def test_a_mean_is_over_tokens_and_not_over_micro_batches():
    tallies = Tallies(["a"])
    tallies.add(tally(ce=[[10.0, 1]]))
    tallies.add(tally(ce=[[2.0, 3]]))
    # (10 + 2) / (1 + 3), where the mean of the means would be (10 + 2/3) / 2.
    assert tallies.take(ALONE) == {"ce": 3.0}


def test_each_of_several_domains_has_its_line_beside_the_whole():
    tallies = Tallies(["a", "b"])
    tallies.add(tally(ce=[[10.0, 1], [2.0, 3]]))
    assert tallies.take(ALONE) == {"ce": 3.0, "ce/a": 10.0, "ce/b": 2 / 3}


def test_a_domain_without_tokens_has_no_line():
    tallies = Tallies(["a", "b"])
    tallies.add(tally(ce=[[10.0, 4], [0.0, 0]]))
    assert tallies.take(ALONE) == {"ce": 2.5, "ce/a": 2.5}


def test_a_name_without_tokens_has_no_line():
    tallies = Tallies(["a"])
    tallies.add(tally(ce=[[10.0, 4]], kd=[[0.0, 0]]))
    assert tallies.take(ALONE) == {"ce": 2.5}


def test_ranks_are_summed_before_the_division():
    # The other rank holds 9 over 1 token of domain a and nothing of b; names arrive sorted, as one tensor.
    def reduce(x, reduction):
        assert reduction == "sum" and x.shape == (1, 2, 2)
        return x + torch.tensor([[[9.0, 1], [0.0, 0]]])

    tallies = Tallies(["a", "b"])
    tallies.add(tally(ce=[[1.0, 4], [6.0, 5]]))
    assert tallies.take(SimpleNamespace(reduce=reduce)) == {"ce": 1.6, "ce/a": 2.0, "ce/b": 1.2}


def test_taking_empties_the_sums():
    tallies = Tallies(["a"])
    tallies.add(tally(ce=[[10.0, 4]]))
    tallies.take(ALONE)
    assert tallies.take(ALONE) == {}
    tallies.add(tally(ce=[[1.0, 1]]))
    assert tallies.take(ALONE) == {"ce": 1.0}


def test_adding_leaves_what_was_given_as_it_was():
    given = tally(ce=[[10.0, 4]])
    tallies = Tallies(["a"])
    tallies.add(given)
    tallies.add(given)
    assert given["ce"].tolist() == [[10.0, 4.0]]


def test_a_total_keeps_the_sums():
    tallies = Tallies(["a", "b"])
    tallies.add(tally(ce=[[10.0, 1], [2.0, 3]], kd=[[1.0, 4], [0.0, 0]]))
    assert tallies.total(ALONE) == {"ce": [[10.0, 1.0], [2.0, 3.0]], "kd": [[1.0, 4.0], [0.0, 0.0]]}
    assert tallies.take(ALONE)["ce"] == 3.0


def test_going_on_from_a_total_gives_the_means_of_the_run_that_never_stopped():
    first, second = tally(ce=[[10.0, 1], [2.0, 3]]), tally(ce=[[1.0, 2], [0.5, 7]])
    whole, stopped, resumed = (Tallies(["a", "b"]) for _ in range(3))
    whole.add(first)
    whole.add(second)
    stopped.add(first)
    resumed.restore(stopped.total(ALONE), torch.device("cpu"))
    resumed.add(second)
    assert resumed.take(ALONE) == whole.take(ALONE)


def test_nothing_added_is_nothing_to_keep():
    assert Tallies(["a"]).total(ALONE) == {}
