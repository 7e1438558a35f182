"""Row: many turns laid out for one forward pass, and the one rule of who sees whom."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Turns laid end to end as a prefix tree: T tokens, P predictions.

    Behind the turns there may be padding: tokens that nothing is predicted from, with end[j] = j + 1.

    tokens  int64   [T]
    end     int64   [T]  first index that no longer sees this token
    source  int64   [P]  where a prediction is made; may repeat
    target  int64   [P]  the token to predict there
    weight  float32 [P]  its share of the loss
    """

    tokens: Tensor
    end: Tensor
    source: Tensor
    target: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        size, pairs = len(self.tokens), len(self.source)
        if len(self.end) != size or len(self.target) != pairs or len(self.weight) != pairs:
            raise ValueError("a Row holds T tokens and ends, and P sources, targets and weights")

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed, padding among them."""
        return len(self.tokens)

    @property
    def num_predictions(self) -> int:
        return len(self.source)

    @property
    def is_padding(self) -> Tensor:
        """bool [T]: which tokens only fill the row up: nobody else sees them, and they predict nothing.

        Of a turn that cannot be: its last token laid is a source.
        """
        padding = self.end == torch.arange(1, len(self.end) + 1, device=self.end.device)
        padding[self.source] = False
        return padding

    @property
    def num_padding(self) -> int:
        return int(self.is_padding.sum())

    def to(self, device: torch.device) -> Row:
        return Row(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def check_row(row: Row) -> None:
    """Raise ValueError unless `row` is well formed: `end` nested, sources inside, weights finite."""
    size = row.num_tokens
    index = torch.arange(size)
    if size == 0:
        raise ValueError("a row has at least one token")
    if not bool(((row.end > index) & (row.end <= size)).all()):
        raise ValueError("end[j] lies after j and within the row")
    open_until: list[int] = []
    for j, end in enumerate(row.end.tolist()):
        while open_until and open_until[-1] <= j:
            open_until.pop()
        if open_until and end > open_until[-1]:
            raise ValueError(f"end is not nested: token {j} is seen longer than a token that it sees")
        open_until.append(end)
    if row.num_predictions and not bool(((row.source >= 0) & (row.source < size)).all()):
        raise ValueError("a source lies outside the row")
    if not bool(torch.isfinite(row.weight).all()) or bool((row.weight < 0).any()):
        raise ValueError("weights are finite and not negative")


def positions(end: Tensor) -> Tensor:
    """Rotary position of each token [T]: how many earlier tokens it sees.

    Token j leaves the view of i once end[j] <= i, so the position is the index
    minus the tokens that have left. `end` is nested: j < i < end[j] implies
    end[i] <= end[j].

        end       = [5, 5, 4, 4, 5, 7, 7]  # prompt, answers [2:4] [4:5]; next tree [5:7]
        positions = [0, 1, 2, 3, 2, 0, 1]
    """
    index = torch.arange(len(end), device=end.device)
    return index - torch.searchsorted(end.sort().values, index, right=True)


def empty_row() -> Row:
    """A row that trains nothing: it keeps ranks that have no row left in step with the others."""
    nothing = torch.empty(0, dtype=torch.int64)
    return Row(
        torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), nothing, nothing, torch.empty(0)
    )
