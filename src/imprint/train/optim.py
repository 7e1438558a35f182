"""AdamW and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step: up during warm-up, then down to 0 (or not at all)."""

    peak: float
    total_steps: int
    shape: Literal["linear", "cosine", "constant"] = "cosine"
    warmup: float = 0.03  # a share of all steps below 1, a number of steps from 1

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.warmup * self.total_steps) if self.warmup < 1 else int(self.warmup)

    def __call__(self, step: int) -> float:
        """The rate of step `step` (from 0). The first is above 0, and so is the last."""
        warmup = min(self.warmup_steps, self.total_steps)
        if step < warmup:
            return self.peak * (step + 1) / (warmup + 1)
        if self.shape == "constant":
            return self.peak
        done = (step - warmup) / max(1, self.total_steps - warmup)
        left = 1 - done if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.peak * left


def adamw(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; decay on matrices only (norms and biases keep their scale)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=0.0, betas=betas, eps=epsilon, fused=True
    )


LearningRate = Callable[[int], float]
