"""The rows of a step shared out among ranks: equally many each, and as much work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imprint.pack.cost import Cost
from imprint.pack.cut import Piece
from imprint.pack.row import Row, empty_row
from imprint.pack.tree import MIN_SHARED, Tree, filled_up
from imprint.render.turns import Turn

ROUNDS = 3  # more rounds than are needed that are tried: shorter rows can be shared out more evenly
ROOM = (1.0, 1.03, 1.08, 1.16, 1.28)  # over an even share: rows are never all equally long
NEAR = 1.01  # of times this close to the shortest, the one with the longest rows is taken


class Share(NamedTuple):
    """One way to cut a step: the pieces and their costs by round, and each piece's rank in its round."""

    time: float  # the costliest row of each round, summed: every rank waits for it
    budget: int
    pieces: list[list[Piece]]  # of each rank


def share_out(
    turns: Sequence[Turn],
    budget: int,
    num_ranks: int,
    layout: str = "shared",
    min_shared: int = MIN_SHARED,
    *,
    multiple: int = 1,
    cost: Cost | None = None,
) -> list[list[Row]]:
    """The rows of one step for each rank: equally many each, balanced by their cost; empty rows fill up.

    Ranks go through their rows in step, so rows of like cost stand at the same place. With several
    ranks the budget is lowered, but only as far as the work is then done sooner.
    """
    tree = Tree.of(turns, layout == "shared", min_shared)
    multiple = 1 if layout == "separate" else multiple
    if num_ranks == 1:
        ranks = [tree.pieces(budget, layout)]
    else:
        ranks = _shared_out(tree, budget, num_ranks, layout, multiple, cost or Cost())
    most = max(1, *map(len, ranks))
    return [
        [tree.lay(piece, filled_up(piece.size, budget, multiple)) for piece in pieces]
        + [empty_row()] * (most - len(pieces))
        for pieces in ranks
    ]


def _shared_out(
    tree: Tree, budget: int, num_ranks: int, layout: str, multiple: int, cost: Cost
) -> list[list[Piece]]:
    """The pieces of each rank, by the budget that lets the slowest rank be done first."""
    shares = []
    for lower in _budgets(tree, budget, num_ranks, layout):
        pieces = tree.pieces(lower, layout)
        costs = [piece_cost(tree, piece, filled_up(piece.size, budget, multiple), cost) for piece in pieces]
        shares.append(deal(pieces, costs, num_ranks, lower))
    best = min(share.time for share in shares)
    return next(share.pieces for share in shares if share.time <= NEAR * best)


def _budgets(tree: Tree, budget: int, num_ranks: int, layout: str) -> Iterator[int]:
    """The budgets to try, the highest first: the given one, and those that give each rank as many rows."""
    found = {budget}
    if layout != "separate" and tree.turns:
        total = sum(tree.sizes) - sum(tree.shared)
        fewest = math.ceil(total / (num_ranks * budget))
        for rounds in range(fewest, fewest + ROUNDS):
            even = total / (num_ranks * rounds)
            found |= {min(budget, math.ceil(even * room)) for room in ROOM}
    return iter(sorted(found, reverse=True))


def piece_cost(tree: Tree, piece: Piece, length: int, cost: Cost) -> float:
    """The cost of the row that the piece is laid into, `length` tokens with its padding; nothing is laid."""
    pairs, predictions = length - piece.size, 0
    for number, start in zip(piece.turns, tree.starts(piece), strict=True):
        size = len(tree.inputs[number])
        pairs += (size * (size + 1) - start * (start + 1)) // 2  # a token at depth d sees d + 1
        predictions += len(tree.turns[number].completion)
    return cost.of(length, pairs, predictions)


def deal(pieces: Sequence[Piece], costs: Sequence[float], num_ranks: int, budget: int) -> Share:
    """Pieces in rounds of like cost, in each round the costliest to the rank with the least so far."""
    order = sorted(range(len(pieces)), key=lambda i: (-costs[i], i))
    ranks: list[list[Piece]] = [[] for _ in range(num_ranks)]
    loads = [0.0] * num_ranks
    time = 0.0
    for first in range(0, len(order), num_ranks):
        dealt = order[first : first + num_ranks]
        time += costs[dealt[0]]
        for i, rank in zip(dealt, sorted(range(num_ranks), key=loads.__getitem__), strict=False):
            ranks[rank].append(pieces[i])
            loads[rank] += costs[i]
    return Share(time, budget, ranks)
