"""A prefix tree cut into pieces under a token budget, so that little is repeated.

The tree is known by two numbers of each turn, in the order of the ids: how many tokens the turn has,
and how many of them it shares with the turn before it. No token is looked at here.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROW = 128  # tokens that may be repeated to spare a row: it has a cost beside that of its tokens


class Piece(NamedTuple):
    """Turns that are laid into one row: their numbers, and their tokens, what they share counted once."""

    turns: tuple[int, ...]
    size: int


def cut(sizes: Sequence[int], shared: Sequence[int], budget: int) -> list[Piece]:
    """Every turn in one piece, each of at most `budget` tokens, or as long as a turn that alone is longer.

    sizes[i] are the tokens of turn i, shared[i] those that it begins with as turn i - 1 does; shared[0]
    is 0. From the leaves up, what parts at one place is joined where it fits whole, so a subtree is
    taken apart only where it is larger than the budget, and only what lies before that place is repeated.
    """
    open_nodes: list[tuple[int, list[Piece]]] = [(0, [])]  # (depth, pieces), from the root down
    for turn, size in enumerate(sizes):
        down = shared[turn + 1] if turn + 1 < len(sizes) else 0
        if down > open_nodes[-1][0]:
            open_nodes.append((down, []))
        open_nodes[-1][1].append(Piece((turn,), size))
        while open_nodes[-1][0] > down:
            depth, pieces = open_nodes.pop()
            joined = join(pieces, depth, budget)
            if open_nodes[-1][0] < down:
                open_nodes.append((down, joined))
            else:
                open_nodes[-1][1].extend(joined)
    ((_, pieces),) = open_nodes
    joined = [Piece(tuple(sorted(piece.turns)), piece.size) for piece in join(pieces, 0, budget)]
    joined.sort(key=_largest_first)
    while len(joined) > 1 and (fewer := without_last(joined, sizes, shared, budget)) is not None:
        joined = fewer
    return joined


def join(pieces: Sequence[Piece], depth: int, budget: int) -> list[Piece]:
    """Pieces that have their first `depth` tokens in common, joined while they fit: the largest first,
    each to the fullest that has room (best fit decreasing). One that adds nothing always has it: it is
    the beginning of others."""
    if sum(piece.size - depth for piece in pieces) + depth <= budget:
        return [_merged(pieces, depth)] if pieces else []
    bins: list[list[Piece]] = []
    filled: list[tuple[int, int]] = []  # (tokens, bin), sorted
    for piece in sorted(pieces, key=lambda piece: (-piece.size, piece.turns)):
        room = budget - piece.size + depth
        at = bisect_right(filled, (room, len(bins))) - 1 if piece.size > depth else len(filled) - 1
        if at < 0:
            insort(filled, (piece.size, len(bins)))
            bins.append([piece])
        else:
            size, number = filled.pop(at)
            insort(filled, (size + piece.size - depth, number))
            bins[number].append(piece)
    return [_merged(inside, depth) for inside in bins]


def without_last(
    pieces: Sequence[Piece], sizes: Sequence[int], shared: Sequence[int], budget: int
) -> list[Piece] | None:
    """The pieces without the last, its turns one by one in the others; None where they have no room, or
    where so much would be repeated that a row of its own costs less."""
    *others, last = pieces
    if sum(budget - piece.size for piece in others if piece.size < budget) < last.size - ROW:
        return None
    allowed = last.size + ROW
    made = [(list(piece.turns), piece.size) for piece in others]
    for turn in sorted(last.turns, key=lambda turn: (-sizes[turn], turn)):
        grown = [
            (size + sizes[turn] - _in_common(turn, turns, shared), number)
            for number, (turns, size) in enumerate(made)
        ]
        fits = [(size - made[number][1], -size, number) for size, number in grown if size <= budget]
        if not fits:
            return None
        added, size, number = min(fits)
        allowed -= added
        if allowed < 0:
            return None
        insort(made[number][0], turn)
        made[number] = (made[number][0], -size)
    return sorted((Piece(tuple(turns), size) for turns, size in made), key=_largest_first)


def _in_common(turn: int, turns: Sequence[int], shared: Sequence[int]) -> int:
    """The tokens of a turn that are laid already where `turns` are."""
    at = bisect_right(turns, turn)
    before = min(shared[turns[at - 1] + 1 : turn + 1]) if at else 0
    return max(before, min(shared[turn + 1 : turns[at] + 1]) if at < len(turns) else 0)


def _largest_first(piece: Piece) -> tuple[int, tuple[int, ...]]:
    return -piece.size, piece.turns


def _merged(pieces: Iterable[Piece], depth: int) -> Piece:
    turns: list[int] = []
    size = depth
    for piece in pieces:
        turns += piece.turns
        size += piece.size - depth
    return Piece(tuple(turns), size)
