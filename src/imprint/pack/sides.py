"""Turns that must not lie in one row because their lengths are on different sides of a limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from imprint.pack.ranks import share_out
from imprint.pack.row import Row
from imprint.render.turns import Turn


class Sides(NamedTuple):
    """Turns of up to `limit` tokens in a row lie among themselves; so do longer ones, or each of them alone."""

    limit: int
    alone: bool


def share_out_by_side(
    turns: Sequence[Turn],
    budget: int,
    num_ranks: int,
    layout: str,
    sides: Sides | None,
    **options: Any,
) -> list[list[Row]]:
    """`share_out` for each side: the rows of each rank, equally many each, short turns first."""
    if sides is None:
        return share_out(turns, budget, num_ranks, layout, **options)
    near = [turn for turn in turns if len(turn) - 1 <= sides.limit]  # the last token is only a target
    far = [turn for turn in turns if len(turn) - 1 > sides.limit]
    parts = [share_out(near, budget, num_ranks, layout, **options)] if near or not far else []
    if far:
        beyond = "separate" if sides.alone else layout
        parts.append(share_out(far, budget, num_ranks, beyond, **options))
    return [[row for part in parts for row in part[rank]] for rank in range(num_ranks)]
