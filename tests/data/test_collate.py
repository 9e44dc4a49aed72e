import torch

from llmkd.data.collate import Collator

PAD = 9
SHORT = {"input_ids": [1, 2, 9], "counted": [0, 1, 1], "seq_lengths": [3], "domains": [0], "n_bytes": 4}
LONG = {
    "input_ids": [3, 4, 5, 6, 9], "counted": [0, 1, 0, 1, 1], "seq_lengths": [2, 3], "domains": [1, 2], "n_bytes": 7
}  # fmt: skip
VIEW = {"input_ids@t": [7, 8], "counted@t": [0, 1], "seq_lengths@t": [2], "shared@t": [0, 1, 0]}
WIDE = {
    "input_ids@t": [7, 7, 7, 8, 8, 8], "counted@t": [0, 0, 1, 0, 1, 0], "seq_lengths@t": [3, 3],
    "shared@t": [0, 1, 0, 1, 0],
}  # fmt: skip


def test_rows_are_right_padded_and_pads_never_count():
    batch = Collator(PAD, packed=False)([SHORT, LONG])
    assert batch["input_ids"].tolist() == [[1, 2, 9, 9, 9], [3, 4, 5, 6, 9]]
    assert batch["counted"].tolist() == [[False, True, True, False, False], [False, True, False, True, True]]
    assert batch["domain_ids"].tolist() == [[0, 0, 0, 0, 0], [1, 1, 2, 2, 2]]
    assert batch["n_bytes"].tolist() == [4, 7]
    assert set(batch) == {"input_ids", "counted", "domain_ids", "n_bytes"}


def test_types():
    batch = Collator(PAD, packed=True)([SHORT, LONG])
    assert batch["counted"].dtype == torch.bool
    assert all(value.dtype == torch.int64 for key, value in batch.items() if key != "counted")


def test_positions_restart_in_each_segment_and_in_the_padding():
    batch = Collator(PAD, packed=True)([SHORT, LONG])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]


def test_width_is_a_multiple():
    batch = Collator(PAD, packed=True, pad_to_multiple_of=4)([SHORT, LONG])
    assert batch["input_ids"].shape == (2, 8) and batch["position_ids"][1].tolist() == [0, 1, 0, 1, 2, 0, 1, 2]


def test_teacher_views_have_a_width_and_a_pad_of_their_own():
    batch = Collator(PAD, True, ("t",), (0,))([SHORT | VIEW, LONG | WIDE])
    assert batch["input_ids@t"].tolist() == [[7, 8, 0, 0, 0, 0], [7, 7, 7, 8, 8, 8]]
    assert batch["position_ids@t"].tolist() == [[0, 1, 0, 1, 2, 3], [0, 1, 2, 0, 1, 2]]
    assert batch["shared@t"].shape == batch["counted"].shape and batch["shared@t"].dtype == torch.bool
    assert batch["shared@t"].sum() == batch["counted@t"].sum()


def test_flattened_rows_are_one_row_without_padding():
    batch = Collator(PAD, False, ("t",), (0,), flatten=True)([SHORT | VIEW, LONG | WIDE])
    assert batch["input_ids"].tolist() == [[1, 2, 9, 3, 4, 5, 6, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch["domain_ids"].tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    assert batch["counted"].sum() == 5 and batch["n_bytes"].tolist() == [11]
    assert batch["input_ids@t"].shape == (1, 8) and batch["shared@t"].shape == (1, 8)
    assert batch["position_ids@t"].tolist() == [[0, 1, 0, 1, 2, 0, 1, 2]]
