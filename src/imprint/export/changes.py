"""What training changed of a parameter, as a function of its rows before; arithmetic in float32.

`apply(rows, first)` takes rows of the base's parameter (float32, beginning with row `first`) and gives
the same rows as they were trained. Where a row's result depends on others, `whole` says so, and all of
them are given at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from imprint.export.tensors import Entry


class Change(Protocol):
    @property
    def whole(self) -> bool: ...

    def apply(self, rows: Tensor, first: int) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """LoRA (arXiv 2106.09685): W + scale · B A; of a Conv1D, whose weight is [in, out], its transpose.

    With a magnitude [out] it is DoRA (arXiv 2402.09353): each output's vector keeps the direction of that sum
    and has the length that was trained.
    """

    a: Tensor  # float32 [rank, in]
    b: Tensor  # float32 [out, rank]
    scale: float
    transposed: bool = False
    magnitude: Tensor | None = None  # float32 [out]

    @property
    def whole(self) -> bool:
        return self.transposed and self.magnitude is not None

    def apply(self, rows: Tensor, first: int) -> Tensor:
        last = first + len(rows)
        if self.transposed:
            changed = rows + self.scale * (self.a[:, first:last].T @ self.b.T)
            if self.magnitude is not None:
                changed *= self.magnitude / torch.linalg.norm(changed, dim=0)
            return changed
        changed = rows + self.scale * (self.b[first:last] @ self.a)
        if self.magnitude is not None:
            changed *= (self.magnitude[first:last] / torch.linalg.norm(changed, dim=1))[:, None]
        return changed


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """LoRA of a parameter that holds all experts, [experts, out, in] or, `inner_first`, [experts, in, out].

    As PEFT lays them out: A [experts · rank, in] by expert, B [out, rank · experts] by rank.
    """

    a: Tensor  # float32
    b: Tensor  # float32
    scale: float
    num_experts: int
    inner_first: bool
    whole = False

    def apply(self, rows: Tensor, first: int) -> Tensor:
        here = slice(first, first + len(rows))
        a = self.a.reshape(self.num_experts, -1, self.a.shape[-1])[here]  # [experts, rank, in]
        b = self.b.reshape(self.b.shape[0], -1, self.num_experts).permute(2, 0, 1)[
            here
        ]  # [experts, out, rank]
        update = torch.bmm(b, a)
        return rows + self.scale * (update.transpose(1, 2) if self.inner_first else update)


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """Vectors of some tokens that were trained as they are."""

    ids: Tensor  # int64 [n], ascending
    vectors: Tensor  # float32 [n, width]
    whole = False

    def apply(self, rows: Tensor, first: int) -> Tensor:
        here = (self.ids >= first) & (self.ids < first + len(rows))
        changed = rows.clone()
        changed[self.ids[here] - first] = self.vectors[here]
        return changed


@dataclass(frozen=True, slots=True, eq=False)
class Added:
    """A trained bias that is added to the base's."""

    vector: Tensor  # float32 [out]
    whole = False

    def apply(self, rows: Tensor, first: int) -> Tensor:
        return rows + self.vector[first : first + len(rows)]


@dataclass(frozen=True, slots=True, eq=False)
class Replaced:
    """A parameter that was trained whole."""

    value: Tensor
    whole = False

    def apply(self, rows: Tensor, first: int) -> Tensor:
        return self.value[first : first + len(rows)].to(rows.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A parameter that was trained whole, and lies on disk."""

    entry: Entry
    whole = False

    def apply(self, rows: Tensor, first: int) -> Tensor:
        return self.entry.read(first, first + len(rows)).to(rows.dtype)
