"""The loss scale of float16: small gradients are lifted above what float16 can hold, and divided again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FIRST = 2.0**16
LEAST = 2.0**-8  # where even this overflows, the numbers themselves are beyond float16
PATIENCE = (
    2000  # updates without an overflow after which the scale is tried doubled, as torch's GradScaler does
)


@dataclass
class LossScale:
    """What the loss is multiplied by: a power of two, so that dividing again changes no digit.

    Where a gradient overflows, nothing is left out: the same update is made again with half the scale.
    """

    scale: float = FIRST
    good: int = 0  # updates since the scale last changed
    overflows: int = 0  # passes that were made again, in the whole run
    patience: int = PATIENCE

    def lower(self) -> bool:
        """After an overflow; False where there is no smaller scale."""
        if self.scale <= LEAST:
            return False
        self.scale, self.good = self.scale / 2, 0
        self.overflows += 1
        return True

    def passed(self) -> None:
        """After an update."""
        self.good += 1
        if self.good >= self.patience:
            self.scale, self.good = self.scale * 2, 0

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        values = {"scale": self.scale, "good": self.good, "overflows": self.overflows}
        return {
            f"loss scale/{name}": torch.tensor(value, dtype=torch.float64) for name, value in values.items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave; without it, the run had another precision, and the scale begins."""
        if "loss scale/scale" not in tensors:
            return
        self.scale = float(tensors["loss scale/scale"])
        self.good, self.overflows = (int(tensors[f"loss scale/{name}"]) for name in ("good", "overflows"))
