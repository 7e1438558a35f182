"""Turns on different sides of a limit get rows of their own, equally many on each rank."""

import pytest
import torch

from imprint.pack.row import Row, check_row, positions
from imprint.pack.sides import Sides, share_out_by_side
from imprint.pack.tree import build_rows
from tiny import make_turn, random_turns

LIMIT = 36
TURNS = random_turns(0, conversations=10, most=40)


def turns_in(row: Row) -> int:
    """The longest turn laid in a row, in tokens."""
    return int(positions(row.end).max()) + 1


def trained(rows: list[Row]) -> list[tuple[int, int, float]]:
    """What is predicted: the token before it, the token, and its weight."""
    return sorted(
        (int(row.tokens[source]), int(target), float(weight))
        for row in rows
        for source, target, weight in zip(row.source, row.target, row.weight, strict=True)
    )


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("layout", ["shared", "packed", "separate"])
def test_no_row_holds_turns_of_both_sides(layout: str, alone: bool, num_ranks: int) -> None:
    ranks = share_out_by_side(TURNS, 90, num_ranks, layout, Sides(LIMIT, alone), multiple=16)
    assert len({len(rows) for rows in ranks}) == 1
    rows = [row for rank in ranks for row in rank]
    for row in rows:
        check_row(row)
        depth = positions(row.end)
        longest = turns_in(row)
        if longest > LIMIT:  # every turn of it ends beyond the limit
            leaves = [i for i in range(row.num_tokens) if _is_leaf(row, i)]
            real = [i for i in leaves if not bool(row.is_padding[i])]
            assert min(int(depth[i]) for i in real) + 1 > LIMIT
            if alone:
                assert torch.equal(depth, torch.arange(row.num_tokens))
    assert trained(rows) == trained(build_rows(TURNS, 10**6))
    assert any(turns_in(row) > LIMIT for row in rows)
    assert any(row.num_predictions and turns_in(row) <= LIMIT for row in rows)


def _is_leaf(row: Row, i: int) -> bool:
    """Whether no later token sees token i."""
    return int(row.end[i]) == i + 1


def test_a_row_of_both_sides_would_be_seen() -> None:
    rows = build_rows(TURNS, 10**6, "packed")
    depth = positions(rows[0].end)
    ends = [int(depth[i]) + 1 for i in range(rows[0].num_tokens) if _is_leaf(rows[0], i)]
    assert min(ends) <= LIMIT < max(ends)


def test_the_limit_counts_what_goes_through_the_model() -> None:
    at, beyond = make_turn(range(3, 3 + LIMIT), [5]), make_turn(range(3, 4 + LIMIT), [5])
    (rows,) = share_out_by_side([at, beyond], 10**6, 1, "shared", Sides(LIMIT, alone=False))
    assert [row.num_tokens for row in rows] == [LIMIT, LIMIT + 1]


def test_without_a_limit_nothing_changes() -> None:
    (rows,) = share_out_by_side(TURNS, 90, 1, "shared", None)
    plain = build_rows(TURNS, 90)
    assert len(rows) == len(plain)
    for row, other in zip(rows, plain, strict=True):
        assert torch.equal(row.tokens, other.tokens)
        assert torch.equal(row.end, other.end)


@pytest.mark.parametrize("limit", [1, 10**6])
def test_one_side_alone(limit: int) -> None:
    for num_ranks in (1, 3):
        ranks = share_out_by_side(TURNS, 10**6, num_ranks, "packed", Sides(limit, alone=False))
        assert len({len(rows) for rows in ranks}) == 1
        assert trained([row for rows in ranks for row in rows]) == trained(build_rows(TURNS, 10**6))
    assert [len(rows) for rows in share_out_by_side([], 10, 3, "shared", Sides(limit, True))] == [1, 1, 1]
