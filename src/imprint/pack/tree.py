"""Turns into rows: what they share is laid out, and so computed, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from imprint.pack.cut import Piece, cut
from imprint.pack.row import Row
from imprint.render.turns import Turn

Ids = NDArray[np.int32]
MIN_SHARED = 16  # tokens; a shorter shared piece costs more in bookkeeping than it saves
MULTIPLE = 64  # tokens; on a CPU each new length of a row leaves kernels behind: 17 MB in a model of 19 M
FULL = 1024  # tokens; below such a budget filling up would cost more than it saves


def multiple_for(budget: int) -> int:
    """The multiple that the rows of a run are filled up to under this budget."""
    return MULTIPLE if budget >= FULL else 1


def tree_order(turns: Sequence[Turn]) -> list[Turn]:
    """Turns in the order of their ids: neighbours then share the longest prefixes."""
    return sorted(turns, key=lambda turn: turn.ids.astype(">i4").tobytes())


def common_length(a: Ids, b: Ids) -> int:
    """Length of the longest common prefix."""
    size = min(len(a), len(b))
    differ = (a[:size] != b[:size]).argmax() if size else 0
    return int(differ) if size and a[differ] != b[differ] else size


@dataclass(frozen=True, eq=False)
class Tree:
    """The turns of a step as a prefix tree, in the order of their ids.

    The last token of a turn is only ever a target, so a turn of m + n tokens puts m + n - 1 into a
    row: `inputs`. `shared[i]` says how many of them are those of turn i - 1; of the turns i < k the
    tree shares the least of shared[i + 1 : k + 1].
    """

    turns: list[Turn]
    inputs: list[Ids]
    shared: list[int]

    @classmethod
    def of(cls, turns: Sequence[Turn], share: bool = True, min_shared: int = MIN_SHARED) -> Tree:
        """The tree of these turns; `share` off lays each turn whole, beside the others."""
        ordered = tree_order(turns)
        inputs = [turn.ids[:-1] for turn in ordered]
        return cls(ordered, inputs, _shared(inputs, min_shared) if share else [0] * len(ordered))

    @property
    def sizes(self) -> list[int]:
        """Tokens of each turn in a row of its own."""
        return [len(inputs) for inputs in self.inputs]

    def pieces(self, budget: int, layout: str) -> list[Piece]:
        """Which turns are laid together, the largest piece first; those of `separate` in their order."""
        if layout == "separate":
            return [Piece((turn,), size) for turn, size in enumerate(self.sizes)]
        return cut(self.sizes, self.shared, budget)

    def starts(self, piece: Piece) -> list[int]:
        """Of each turn of a piece: how many of its tokens the turn before it has laid."""
        before = (-1, *piece.turns[:-1])
        return [
            min(self.shared[a + 1 : b + 1]) if a >= 0 else 0 for a, b in zip(before, piece.turns, strict=True)
        ]

    def lay(self, piece: Piece, length: int = 0) -> Row:
        """The row of a piece, filled up with padding to `length` tokens where it is shorter."""
        path = np.empty(0, np.int64)  # row index of each input of the last turn
        end = np.arange(1, max(length, piece.size) + 1)
        tokens = np.zeros(len(end), np.int64)
        sources, size = [], 0
        for number, start in zip(piece.turns, self.starts(piece), strict=True):
            inputs = self.inputs[number]
            end[path[start:]] = size  # what is left behind is seen no more
            after = size + len(inputs) - start
            tokens[size:after] = inputs[start:]
            path = np.concatenate((path[:start], np.arange(size, after)))
            sources.append(path[len(self.turns[number].prompt) - 1 :])
            size = after
        end[path] = size
        assert size == piece.size, "a piece is as long as was counted"
        turns = [self.turns[number] for number in piece.turns]
        return Row(
            torch.from_numpy(tokens),
            torch.from_numpy(end),
            torch.from_numpy(np.concatenate(sources)),
            torch.from_numpy(np.concatenate([turn.completion for turn in turns]).astype(np.int64)),
            torch.from_numpy(np.concatenate([turn.weight for turn in turns])),
        )


def _shared(inputs: Sequence[Ids], min_shared: int) -> list[int]:
    """How many leading tokens each turn shares with the one before it, in the tree.

    A branch less than `min_shared` tokens after another begins there too. Where one turn goes on
    from the other there is no branch, and all is shared.
    """
    shared, cuts = [0] if len(inputs) else [], [0]  # cuts: depths at which the path to the last turn branched
    for before, now in pairwise(inputs):
        length = common_length(before, now)
        while cuts[-1] > length:
            cuts.pop()
        if length - cuts[-1] >= min_shared or length in (len(before), len(now)):
            cuts.append(length)
        shared.append(cuts[-1])
    return shared


def filled_up(size: int, budget: int, multiple: int) -> int:
    """The length of a row of `size` tokens: the next multiple, but no more than the budget where it fits.

    The multiple is halved until 16 of it fit in, so that a short row is not made much longer: each
    doubling of the length has 16 lengths.
    """
    while multiple > 1 and size < 16 * multiple:
        multiple //= 2
    length = -(-size // multiple) * multiple
    return min(length, budget) if size <= budget else length


def build_rows(
    turns: Sequence[Turn],
    budget: int,
    layout: str = "shared",
    min_shared: int = MIN_SHARED,
    *,
    multiple: int = 1,
) -> list[Row]:
    """Rows of at most `budget` tokens, or as long as one turn that alone is longer; the longest first.

    layout: `shared` (a prefix tree), `packed` (whole turns side by side) or `separate`
    (one turn a row, in the order of their ids). Rows are filled up with padding to a `multiple`, but
    those of `separate`: a model that does not follow `end` would take it for text.
    """
    tree = Tree.of(turns, layout == "shared", min_shared)
    multiple = 1 if layout == "separate" else multiple
    return [tree.lay(piece, filled_up(piece.size, budget, multiple)) for piece in tree.pieces(budget, layout)]
