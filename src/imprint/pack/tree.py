"""Turns into rows: what they share is laid out, and so computed, once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from imprint.pack.row import Row
from imprint.render.turns import Turn

Ids = NDArray[np.int32]
MIN_SHARED = 16  # tokens; a shorter shared piece costs more in bookkeeping than it saves


def tree_order(turns: Sequence[Turn]) -> list[Turn]:
    """Turns in the order of their ids: neighbours then share the longest prefixes."""
    return sorted(turns, key=lambda turn: turn.ids.astype(">i4").tobytes())


def common_length(a: Ids, b: Ids) -> int:
    """Length of the longest common prefix."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


class RowBuilder:
    """Lays turns, given in `tree_order`, into one row after the other.

    The last token of a turn is only ever a target, so a turn of m + n tokens
    puts m + n - 1 into the row. `share` off lays each turn whole, beside the others.
    """

    def __init__(self, share: bool = True, min_shared: int = MIN_SHARED):
        self.share, self.min_shared = share, min_shared
        self.reset()

    def reset(self) -> None:
        self.size = 0  # tokens laid so far
        self.before: Ids = np.empty(0, np.int32)  # inputs of the last turn
        self.path = np.empty(0, np.int64)  # row index of each of them
        self.cuts = [0]  # depths at which that path branched
        self.tokens: list[Ids] = []
        self.spans: list[tuple[int, NDArray[np.int64]]] = []  # (end, row indices that get it)
        self.source: list[NDArray[np.int64]] = []
        self.target: list[Ids] = []
        self.weight: list[NDArray[np.float32]] = []

    def shared(self, inputs: Ids) -> int:
        """How many leading tokens of `inputs` need not be laid again."""
        if not self.share or not self.size:
            return 0
        length = common_length(self.before, inputs)
        cut = max(depth for depth in self.cuts if depth <= length)
        return length if length - cut >= self.min_shared or length == len(inputs) else cut

    def cost(self, turn: Turn) -> int:
        """Tokens that `turn` would add to the row."""
        inputs = turn.ids[:-1]
        return len(inputs) - self.shared(inputs)

    def add(self, turn: Turn) -> None:
        inputs = turn.ids[:-1]
        start = self.shared(inputs)
        self.spans.append((self.size, self.path[start:]))  # what is left behind is seen no more
        new = np.arange(self.size, self.size + len(inputs) - start)
        self.path = np.concatenate((self.path[:start], new))
        self.cuts = [depth for depth in self.cuts if depth < start] + [start]
        self.tokens.append(inputs[start:])
        self.before, self.size = inputs, self.size + len(new)
        first = len(turn.prompt) - 1
        self.source.append(self.path[first:])
        self.target.append(turn.completion)
        self.weight.append(turn.weight)

    def finish(self) -> Row:
        """The row; the builder starts anew."""
        end = np.empty(self.size, np.int64)
        for limit, indices in [*self.spans, (self.size, self.path)]:
            end[indices] = limit
        row = Row(
            torch.from_numpy(np.concatenate(self.tokens).astype(np.int64)),
            torch.from_numpy(end),
            torch.from_numpy(np.concatenate(self.source)),
            torch.from_numpy(np.concatenate(self.target).astype(np.int64)),
            torch.from_numpy(np.concatenate(self.weight)),
        )
        self.reset()
        return row


def build_rows(
    turns: Sequence[Turn], budget: int, layout: str = "shared", min_shared: int = MIN_SHARED
) -> list[Row]:
    """Rows of at most `budget` tokens, or of one turn where that alone is longer.

    layout: `shared` (a prefix tree), `packed` (whole turns side by side) or `separate`
    (one turn a row).
    """
    builder = RowBuilder(share=layout == "shared", min_shared=min_shared)
    rows = []
    for turn in tree_order(turns):
        if builder.size and (layout == "separate" or builder.size + builder.cost(turn) > budget):
            rows.append(builder.finish())
        builder.add(turn)
    if builder.size:
        rows.append(builder.finish())
    return rows
