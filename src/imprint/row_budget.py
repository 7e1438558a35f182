"""How long rows may be: as the recipe says, or as memory allows; decided once, when a run is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from imprint.auto import ROW_TOKENS, Decision
from imprint.distributed.mesh import Mesh
from imprint.model.rowmodel import RowModel
from imprint.recipe import Recipe
from imprint.train.free import free_bytes
from imprint.train.memory import Forecast, Sizes, measure
from imprint.train.shortage import ran_out, release

# The optimizer's state, in sizes of what is trained. Muon keeps one number for a weight of a matrix, and two elsewhere.
MOMENTS_OF = {"adamw": 2.0, "adamw_8bit": 0.6, "muon": 2.0}
MULTIPLE = 64  # tokens that a measured budget is rounded down to


@dataclass(frozen=True)
class RowBudget:
    """The most tokens of a row, why, what that will need, and what the user should know of it."""

    tokens: int
    decision: Decision | None = None
    forecast: Forecast | None = None
    notes: tuple[str, ...] = ()


def row_budget(
    model: RowModel, mesh: Mesh, compute_type: torch.dtype, recipe: Recipe, longest: int
) -> RowBudget:
    """Measure the model on short rows, and choose; `longest` are the tokens of the longest turn.

    Every rank calls this, and gets the same: what the one with the least memory has room for.
    """
    asked = None if recipe.row_tokens == "auto" else recipe.row_tokens
    free = free_bytes(mesh.device)
    try:
        sizes = measure(model, compute_type, mesh.size, MOMENTS_OF[recipe.optimizer])
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        sizes = None
    if sizes is None:
        model.zero_grad(set_to_none=True)
        release(mesh.device)
    most = ROW_TOKENS[mesh.device.type]
    tokens = asked or fitting(sizes, most, free, longest)
    tokens = least(mesh, tokens)
    if sizes is None:
        note = "memory ran out in the short rows that are computed to measure it: expect it to run out in training"
        return RowBudget(tokens, decided(asked, tokens, most, "no more was free"), None, (note,))
    if free is None:
        return RowBudget(tokens, decided(asked, tokens, most, "the system does not say what is free"))
    forecast = sizes.forecast(max(tokens, longest), free)
    notes = () if forecast.fits else (f"memory may run out: the run is forecast to need {forecast}",)
    return RowBudget(tokens, decided(asked, tokens, most, str(forecast)), forecast, notes)


def fitting(sizes: Sizes | None, most: int, free: int | None, longest: int) -> int:
    """The budget that has room, up to `most`. Below the longest turn it would only make other rows shorter."""
    if sizes is None:
        return min(most, longest)
    if free is None or (room := sizes.longest(most, free)) >= most:
        return most
    return max(room // MULTIPLE * MULTIPLE, min(most, longest))


def decided(asked: int | None, tokens: int, most: int, why: str) -> Decision | None:
    """The decision for the log; None where the recipe said it."""
    if asked is not None:
        return None
    begins = "longer rows are not faster here" if tokens >= most else "longer rows have no room"
    return Decision("row_tokens", tokens, f"{begins}; forecast: {why}")


def least(mesh: Mesh, value: int) -> int:
    """The smallest of all ranks' values, on each."""
    values = torch.zeros(mesh.size, dtype=torch.float32 if mesh.device.type == "mps" else torch.float64)
    values[mesh.rank] = value
    return int(mesh.sum(values).min())
