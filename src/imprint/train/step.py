"""One step: the whole of it, for one process and for many, for full fine-tuning and for adapters."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imprint.distributed.mesh import Mesh
from imprint.distributed.shard import whole
from imprint.errors import RunFailed
from imprint.pack.row import Row
from imprint.train.optim import LearningRate


@dataclass
class TrainState:
    """What a step changes, and what it needs; `step` counts the updates made."""

    model: nn.Module  # Row → nll [P]
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    mesh: Mesh
    compute_type: torch.dtype = torch.float32
    clip: float | None = 1.0
    step: int = 0

    @property
    def device(self) -> torch.device:
        return self.mesh.device

    @property
    def wide(self) -> torch.dtype:
        """The type that sums are kept in: float64, but on mps, which has none."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Matrix products in the compute type; weights, gradients and optimizer stay as they are."""
        if self.compute_type == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_type)


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one step did; losses in nats per unit of weight."""

    loss: float
    learning_rate: float
    grad_norm: float
    computed_tokens: int
    trained_tokens: int
    seconds: float


def train_step(state: TrainState, rows: Sequence[Row]) -> StepStats:
    """Update the weights once; `rows` is this rank's share of the step.

    Each loss term is divided by the weight of the whole step over all ranks,
    so the update depends on the examples alone, not on how they were merged,
    cut into rows or spread. The plan gives every rank equally many rows.
    """
    started = time.perf_counter()
    state.optimizer.zero_grad(set_to_none=True)  # a step that was broken off leaves nothing behind
    loss = accumulate(state, rows)
    norm = clip_gradients(state.model.parameters(), state.clip, state.mesh)
    if not (torch.isfinite(loss) and torch.isfinite(norm)):
        raise RunFailed(
            f"the loss or its gradient is not finite at step {state.step + 1}",
            found=f"loss {loss.item()}, gradient norm {norm.item()}",
            expected="finite numbers; no weight was changed by this step",
            fix="begin a new run with a lower learning_rate, or with precision=float32; "
            "resuming this one would come to the same point again",
        )
    rate = state.learning_rate(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    sizes = torch.tensor(
        [sum(r.num_tokens for r in rows if r.num_predictions), sum(r.num_predictions for r in rows)]
    )
    computed, trained = state.mesh.sum(sizes).tolist()
    return StepStats(loss.item(), rate, norm.item(), computed, trained, time.perf_counter() - started)


def accumulate(state: TrainState, rows: Sequence[Row]) -> Tensor:
    """Add the gradient of the step's loss to the parameters; the loss, float64 []."""
    weight = sum((row.weight.double().sum() for row in rows), torch.zeros((), dtype=torch.float64))
    total = state.mesh.sum(weight.to(state.device, state.wide))
    loss = torch.zeros_like(total)
    for row in rows:
        row = row.to(state.device)
        with state.autocast():
            nll = state.model(row)  # [P], backbone and head in one forward
        part = (row.weight * nll).sum() / total
        (part * state.mesh.size).backward()  # the mesh averages gradients
        loss += part.detach()
    return state.mesh.sum(loss)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None, mesh: Mesh) -> Tensor:
    """Scale the gradients down to norm `limit` where theirs is larger; their norm before that, float32 []."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients)) if gradients else torch.zeros(())
    if limit is not None and bool(norm > limit):
        factor = limit / (norm + 1e-6)
        for gradient in gradients:
            gradient.mul_(factor)
    return norm


@torch.no_grad()
def evaluate(state: TrainState, rows: Iterable[Row]) -> tuple[float, int]:
    """(loss, trained tokens) over rows: Σ weight·nll / Σ weight over all ranks, whatever the rows' sizes."""
    training = state.model.training
    state.model.eval()
    sums = torch.zeros(3, dtype=state.wide, device=state.device)
    for row in rows:
        row = row.to(state.device)
        with state.autocast():
            nll = state.model(row)
        weight = row.weight.to(state.wide)
        sums += torch.stack([(weight * nll).sum(), weight.sum(), torch.ones_like(weight).sum()])
    state.model.train(training)
    lost, weight_sum, count = state.mesh.sum(sums).tolist()
    return (lost / weight_sum if weight_sum else float("nan")), int(count)
