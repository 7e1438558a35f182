"""Training states of tiny real models, and what tests of checkpoints ask of them."""

from __future__ import annotations

from pathlib import Path

import torch

from imprint.disk import is_valid
from imprint.distributed.mesh import Mesh
from imprint.model.adapters import add_lora
from imprint.pack.tree import build_rows
from imprint.train import checkpoint
from imprint.train.optim import Schedule, adamw
from imprint.train.step import TrainState, train_step
from tiny import random_turns, row_model, tiny_model


def make_state(lora: bool = False, seed: int = 0, **sizes: int) -> TrainState:
    model = tiny_model("llama", seed=seed, **sizes)
    if lora:
        model = add_lora(model, rank=2, alpha=4, dropout=0.0, targets="all-linear")
    rows = row_model(model).train()
    optimizer = adamw(rows, weight_decay=0.1, betas=(0.9, 0.99), epsilon=1e-8)
    return TrainState(rows, optimizer, Schedule(1e-2, 20), Mesh())


def step(state: TrainState, count: int = 1) -> list[float]:
    rows = build_rows(random_turns(), 64)
    return [train_step(state, rows).loss for _ in range(count)]


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoint.trained_tensors(state.model).items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*") if is_valid(path))
