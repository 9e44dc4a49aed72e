"""What the student wrote, as a batch: where the padding goes, and which samples a term looks at."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from llmkd.data.collate import Collator
from llmkd.trainers.rollouts import (
    as_batch,
    completions_in,
    kept_samples,
    own_ends,
    pass_rates,
    token_row,
    weighed,
    without_contrast,
)

ROLLOUTS = {
    "prompt_ids": torch.tensor([[9, 9, 1], [2, 3, 4]]), "prompt_mask": torch.tensor([[0, 0, 1], [1, 1, 1]]),
    "completion_ids": torch.tensor([[5, 6], [7, 9]]), "domain_ids": torch.tensor([0, 1]),
}  # fmt: skip


def test_padding_of_the_prompt_goes_behind_the_completion() -> None:
    batch = as_batch(ROLLOUTS, torch.tensor([[1, 1], [1, 0]]))
    assert batch["input_ids"].tolist() == [[1, 5, 6, 9, 9], [2, 3, 4, 7, 9]]
    assert batch["counted"].tolist() == [[False, True, True, False, False], [False, False, False, True, False]]
    assert batch["domain_ids"][:, 0].tolist() == [0, 1]


def test_completions_are_taken_out_of_a_batch_and_come_back_in_another() -> None:
    """Beside a row of the data, which is longer and was not written by the student."""
    found = completions_in(as_batch(ROLLOUTS, torch.tensor([[1, 1], [1, 0]])))
    assert found == [([1], [5, 6], 0), ([2, 3, 4], [7], 1)]
    given = {"input_ids": [8] * 6, "counted": [0] * 5 + [1], "seq_lengths": [6], "domains": [0], "n_bytes": 0}
    batch = Collator(9, False)([given | {"own": [0]}, *(token_row(*said) for said in found)])
    assert batch["input_ids"].tolist() == [[8] * 6, [1, 5, 6, 9, 9, 9], [2, 3, 4, 7, 9, 9]]
    assert batch["counted"].nonzero().tolist() == [[0, 5], [1, 1], [1, 2], [2, 3]]
    assert batch["own"][batch["counted"]].tolist() == [False, True, True, True]
    assert batch["domain_ids"][batch["counted"]].tolist() == [0, 0, 0, 1]


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=24).filter(lambda x: len(x) % 4 == 0))
def test_the_groups_mask_is_a_part_of_the_responses(correct: list[float]) -> None:
    graded = torch.tensor(correct)
    group, response = (kept_samples(mask, graded, 4) for mask in ("group_all_wrong", "incorrect"))
    assert not (group & ~response).any()
    assert response.tolist() == [c == 0 for c in correct]
    assert [bool(g) for g in group[::4]] == [not any(correct[i : i + 4]) for i in range(0, len(correct), 4)]


def test_a_sample_that_was_not_graded_is_kept_by_no_mask() -> None:
    graded = torch.tensor([0.0, torch.nan, 0.0, 0.0])
    assert kept_samples("incorrect", graded, 4).tolist() == [True, False, True, True]
    assert kept_samples("correct", torch.tensor([1.0, torch.nan, 0.0]), 3).tolist() == [True, False, False]
    assert not kept_samples("group_all_wrong", graded, 4).any()
    assert pass_rates(torch.tensor([1.0, torch.nan, 0.0, 0.0]), 4)[0] == 1 / 3


def test_a_group_whose_values_are_all_the_same_has_no_contrast() -> None:
    nan = torch.nan
    values = torch.tensor([[1.0, 0.0, 1.0], [0.1, 0.1, 0.1], [nan, 1.0, 1.0], [nan, 1.0, 0.0], [nan, nan, nan]])
    assert without_contrast(values.flatten(), 3).tolist() == [False, True, True, False, True]


def test_rewards_are_weighed_as_far_as_a_sample_has_them() -> None:
    rewards = torch.tensor([[1.0, 2.0], [torch.nan, 2.0], [torch.nan, torch.nan]])
    found = weighed(rewards, torch.tensor([1.0, -0.5]))
    assert found[:2].tolist() == [0.0, -1.0] and bool(found[2].isnan())


def test_ends_that_both_have_are_heard() -> None:
    ids = torch.tensor([[5, 1], [6, 2]])
    assert own_ends(ids, [1, 2], [2, 3]).tolist() == [[False, True], [False, False]]
    assert not own_ends(ids, [1, 2], [1, 2]).any()
