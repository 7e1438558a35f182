"""Tensors worked on in blocks of rows: read, changed in float32, rounded to the type that is saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from imprint.errors import ModelError
from imprint.export.changes import Change
from imprint.export.tensors import Entry

BLOCK = 1 << 20  # most values of a tensor that are worked on at once: 4 MB in float32


@dataclass
class Rounding:
    """How much of what training changed is left in the type that was written, summed over all changed values.

    With U the update in float32 and S the one that was saved, `kept` is S·U / U·U: 1 where nothing is lost,
    0 where every value was rounded back to the base's. `noise` is |S - U| / |U|.
    """

    update: float = 0.0  # U·U
    along: float = 0.0  # S·U
    off: float = 0.0  # |S - U|²
    changed: int = 0  # tensors

    @property
    def kept(self) -> float:
        return self.along / self.update if self.update else 1.0

    @property
    def noise(self) -> float:
        return math.sqrt(self.off / self.update) if self.update else 0.0

    def add(self, before: Tensor, wanted: Tensor, saved: Tensor) -> None:
        update = (wanted - before).flatten()
        kept = saved.to(before.dtype).sub_(before).flatten() if saved.dtype != before.dtype else update
        self.update += float(update @ update)
        self.along += float(kept @ update)
        self.off += float((kept - update).square().sum())


def blocks(shape: tuple[int, ...], whole: bool = False) -> Iterator[tuple[int, int]]:
    """Rows from … to … of a tensor, in blocks of at most BLOCK values."""
    rows = shape[0] if shape else 1
    step = rows if whole else max(1, BLOCK // max(1, math.prod(shape[1:])))
    for first in range(0, rows, max(1, step)):
        yield first, min(rows, first + step)


def written(
    entry: Entry,
    dtype: torch.dtype,
    rows: int,
    change: Change | None,
    scale: float,
    rounding: Rounding,
    held: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """The `rows` rows of a tensor as they are saved, block by block; what rounding does to a change joins `rounding`.

    Rows that the base does not have begin as the mean of those that it has. `held` gives what the
    values were in training, of the whole tensor.
    """
    mean = mean_row(entry) if rows > entry.num_rows else None
    whole = held is not None or (change is not None and change.whole)
    for first, last in blocks((rows, *entry.shape[1:]), whole):
        before = entry.read(first, min(last, entry.num_rows)) if first < entry.num_rows else None
        if change is None and held is None and mean is None:
            assert before is not None
            yield narrowed(before, dtype, entry)
            continue
        known = before.float() if before is not None else None
        if mean is not None and last > entry.num_rows:
            added = mean.expand(last - max(first, entry.num_rows), *mean.shape)
            known = added if known is None else torch.cat([known, added])
        assert known is not None
        if held is not None:
            known = held(known)
        wanted = between(known, change, first, scale)
        saved = narrowed(wanted, dtype, entry)
        if change is not None:
            rounding.add(known, wanted, saved)
        yield saved


def narrowed(value: Tensor, dtype: torch.dtype, entry: Entry) -> Tensor:
    """`value` in the type that it is saved in; ModelError where that type does not reach so far."""
    saved = value.to(dtype)
    if dtype == torch.float16 and value.dtype != dtype and not torch.isfinite(saved).all():
        raise ModelError(
            "float16 does not reach as far as this model's weights",
            where=f"{entry.file}: {entry.name}",
            found=f"a weight of {float(value.abs().max()):.3g}",
            expected="at most 65,504",
            fix="--dtype bfloat16, or --dtype float32",
        )
    return saved


def between(before: Tensor, change: Change | None, first: int, scale: float) -> Tensor:
    """before + scale · (after - before), float32; nothing is computed where scale is 0 or 1."""
    if change is None or scale == 0:
        return before
    after = change.apply(before, first)
    if scale == 1:
        return after
    wide = before.double()
    return (wide + scale * (after.double() - wide)).float()


def mean_row(entry: Entry) -> Tensor:
    """The mean of a tensor's rows, float32: what a new token begins with."""
    total = torch.zeros(entry.shape[1:], dtype=torch.float64)
    for first, last in blocks(entry.shape):
        total += entry.read(first, last).double().sum(dim=0)
    return (total / entry.num_rows).float()
