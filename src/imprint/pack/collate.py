"""The padded form, for any other trainer, and the reference that the rows are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from imprint.render.turns import Turn

IGNORED = -100  # the label that torch's cross entropy, and every trainer, leaves out


def collate(turns: Sequence[Turn], pad_id: int = 0, multiple_of: int = 1) -> dict[str, Tensor]:
    """Turns as a padded batch of B sequences, each L tokens long.

    input_ids       int64   [B, L]  prompt + completion, padded on the right
    attention_mask  int64   [B, L]  1 up to each length: by position, so pad may equal eos
    labels          int64   [B, L]  the completion's ids; IGNORED on prompts and padding
    loss_weights    float32 [B, L]  the weight of each label; 0 where there is none
    """
    longest = max(len(turn) for turn in turns)
    length = -(-longest // multiple_of) * multiple_of
    shape = (len(turns), length)
    batch = {
        "input_ids": torch.full(shape, pad_id, dtype=torch.int64),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, IGNORED, dtype=torch.int64),
        "loss_weights": torch.zeros(shape),
    }
    for i, turn in enumerate(turns):
        start, stop = len(turn.prompt), len(turn)
        batch["input_ids"][i, :stop] = torch.from_numpy(turn.ids.astype("int64"))
        batch["attention_mask"][i, :stop] = 1
        batch["labels"][i, start:stop] = torch.from_numpy(turn.completion.astype("int64"))
        batch["loss_weights"][i, start:stop] = torch.from_numpy(turn.weight)
    return batch
