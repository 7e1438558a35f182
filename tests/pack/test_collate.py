"""The padded form: what any other trainer expects of a batch."""

import numpy as np
import pytest
import torch

from imprint.pack.collate import IGNORED, collate
from tiny import make_turn, random_turns

EOS = 2


def test_a_batch_by_hand() -> None:
    batch = collate([make_turn([5, 6], [7, EOS], [0.5, 1]), make_turn([8], [EOS])], pad_id=EOS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2], [8, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]  # the eos counts, the pads do not
    assert batch["labels"].tolist() == [[-100, -100, 7, 2], [-100, 2, -100, -100]]
    assert batch["loss_weights"].tolist() == [[0, 0, 0.5, 1], [0, 1, 0, 0]]


def test_types() -> None:
    batch = collate(random_turns(0))
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "labels": torch.int64,
        "loss_weights": torch.float32,
    }
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED


@pytest.mark.parametrize("pad_id", [0, EOS, 50])
@pytest.mark.parametrize("multiple_of", [1, 8, 64])
def test_every_turn_is_found_again(multiple_of: int, pad_id: int) -> None:
    turns = random_turns(1)
    batch = collate(turns, pad_id, multiple_of)
    longest = max(map(len, turns))
    width = batch["input_ids"].shape[1]
    assert {tensor.shape for tensor in batch.values()} == {(len(turns), width)}
    assert width % multiple_of == 0
    assert longest <= width < longest + multiple_of
    for i, turn in enumerate(turns):
        size, start = len(turn), len(turn.prompt)
        assert batch["attention_mask"][i].tolist() == [1] * size + [0] * (width - size)
        assert batch["input_ids"][i, :size].tolist() == turn.ids.tolist()
        assert (batch["input_ids"][i, size:] == pad_id).all()
        labels = batch["labels"][i]
        assert labels[start:size].tolist() == turn.completion.tolist()
        assert (labels[:start] == IGNORED).all()
        assert (labels[size:] == IGNORED).all()
        assert np.array_equal(batch["loss_weights"][i, start:size].numpy(), turn.weight)
        assert float(batch["loss_weights"][i].sum()) == float(turn.weight.sum())


def test_a_width_that_fits_already_is_kept() -> None:
    assert collate([make_turn([1] * 12, [1] * 4)], multiple_of=8)["input_ids"].shape == (1, 16)
