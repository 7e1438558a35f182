"""One step: the whole of it, for one process and for many, for full fine-tuning and for adapters."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from imprint.distributed.mesh import Mesh
from imprint.distributed.shard import whole
from imprint.errors import RunFailed
from imprint.model.balance import Balance, balance_loss
from imprint.pack.row import Row
from imprint.train.optim import LearningRate, Optimizer
from imprint.train.scaler import LossScale
from imprint.train.shortage import room_for


@dataclass
class TrainState:
    """What a step changes, and what it needs; `step` counts the updates made."""

    model: nn.Module  # Row → nll [P]
    optimizer: Optimizer
    learning_rate: LearningRate
    mesh: Mesh
    compute_type: torch.dtype = torch.float32
    clip: float | None = 1.0
    step: int = 0
    balance: Balance | None = None  # reads the routers, where their load is balanced
    balance_weight: float = 0.0
    loss_scale: LossScale | None = None  # with float16

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
    """What one step did; losses in nats per unit of weight.

    `loss` is that of the predictions alone; `balance` the routers' before the update, without its
    coefficient: as many as the experts of a token where their load is even.
    """

    loss: float
    learning_rate: float
    grad_norm: float
    computed_tokens: int
    trained_tokens: int
    seconds: float
    balance: float | None = None
    loss_scale: float | None = None
    overflows: int = 0  # passes of this step that were made again with half the scale


class NotFinite(RunFailed):
    """The loss or the gradient of a step is not finite. No weight was changed."""

    def __init__(self, step: int, loss: float, norm: float, where: str = ""):
        self.step, self.loss, self.norm = step, loss, norm
        super().__init__(
            f"the loss or its gradient is not finite at step {step:,}",
            where=where,
            found=f"loss {loss}, gradient norm {norm}",
            expected="finite numbers; no weight was changed by this step",
            fix="look at its rows, or begin a new run with a lower learning_rate, or with precision=float32",
        )


def train_step(state: TrainState, rows: Sequence[Row]) -> StepStats:
    """Update the weights once; `rows` is this rank's share of the step.

    Each loss term is divided by the weight of the whole step over all ranks,
    so the update depends on the examples alone, not on how they were merged,
    cut into rows or spread. The plan gives every rank equally many rows.
    """
    started = time.perf_counter()
    state.optimizer.zero_grad(set_to_none=True)  # a step that was broken off leaves nothing behind
    with room_for(rows) as hand:
        load = measure_load(state, hand)
        loss, overflows = accumulate_scaled(state, hand, load)
    norm = clip_gradients(state.model.parameters(), state.clip, state.mesh)
    if not (torch.isfinite(loss) and torch.isfinite(norm)):
        raise NotFinite(state.step + 1, loss.item(), norm.item())
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
    balance = None if load is None else balance_loss(*load).item()
    scale = state.loss_scale.scale if state.loss_scale else None
    if state.loss_scale:
        state.loss_scale.passed()
    seconds = time.perf_counter() - started
    return StepStats(loss.item(), rate, norm.item(), computed, trained, seconds, balance, scale, overflows)


def total_weight(state: TrainState, rows: Sequence[Row]) -> Tensor:
    """The weight of the whole step over all ranks, float64 []."""
    weight = sum((row.weight.double().sum() for row in rows), torch.zeros((), dtype=torch.float64))
    return state.mesh.sum(weight.to(state.device, state.wide))


def measure_load(state: TrainState, rows: Sequence[Row]) -> Tensor | None:
    """The load fraction and the mean probability of each expert over the whole step [2, E].

    None where routers are not balanced: it takes a forward pass of its own.
    """
    if state.balance is None:
        return None
    with state.autocast():
        sums = state.balance.measure(state.model, rows, state.device)
    return state.mesh.sum(sums) / total_weight(state, rows)


def accumulate_scaled(state: TrainState, rows: Sequence[Row], load: Tensor | None) -> tuple[Tensor, int]:
    """`accumulate`, again with half the loss scale until no gradient overflows: (loss, times it was made again).

    Each time draws the same noise. Whether one overflows is agreed by all ranks: the norm is of whole tensors.
    """
    scaler = state.loss_scale
    if scaler is None:
        return accumulate(state, rows, load), 0
    before = scaler.overflows
    while True:
        with torch.random.fork_rng(enabled=state.device.type != "mps"):
            loss = accumulate(state, rows, load)
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        for gradient in gradients:
            gradient.mul_(1 / scaler.scale)
        norm = whole(torch.nn.utils.get_total_norm(gradients)) if gradients else torch.zeros(())
        if torch.isfinite(norm) or not torch.isfinite(loss) or not scaler.lower():
            return loss, scaler.overflows - before
        state.optimizer.zero_grad(set_to_none=True)


def accumulate(state: TrainState, rows: Sequence[Row], load: Tensor | None = None) -> Tensor:
    """Add the gradient of the step's loss to the parameters; the loss of the predictions, float64 [].

    With `load` (see `measure_load`) also that of the balancing loss, which is linear in the
    predictions once the load of the step is known.
    """
    total = total_weight(state, rows)
    loss = torch.zeros_like(total)
    scale = state.mesh.size * (state.loss_scale.scale if state.loss_scale else 1.0)
    for row in rows:
        row = row.to(state.device)
        # the mesh averages gradients; the model makes the gradient of just this sum (see pair_loss)
        share = row.weight.to(state.wide) * (scale / total)
        read = state.balance.reading() if state.balance and load is not None else contextlib.nullcontext()
        with state.autocast(), read as routed:
            nll = state.model(replace(row, weight=share))  # [P], backbone and head in one forward
        part = (share * nll).sum()
        loss += part.detach() / scale
        if routed is not None and load is not None:  # this row's part, linear in its predictions
            uneven = balance_loss(load[0], routed.probabilities(share, row.source))
            part = part + state.balance_weight * uneven
        part.backward()
    return state.mesh.sum(loss) * (total / total)  # NaN, and so refused, where nothing has a weight


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
