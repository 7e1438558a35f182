"""Rows shared out among ranks: everything once, equally many each, and as much work."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint.pack.cost import Cost
from imprint.pack.cut import Piece
from imprint.pack.ranks import deal, share_out
from imprint.pack.row import Row, check_row
from imprint.pack.tree import build_rows
from imprint.render.turns import Turn
from tiny import make_turn

LAYOUTS = ("shared", "packed", "separate")
SMALL = Cost.of_sizes(64, 4, 128, 5000)  # a narrow model, where attention counts for much

few = st.lists(st.integers(0, 2), min_size=1, max_size=9)
turn_sets = st.lists(st.tuples(few, few).map(lambda parts: make_turn(*parts)), min_size=1, max_size=14)

Pairs = Counter[tuple[tuple[int, ...], int, float]]


def told(turns: Sequence[Turn]) -> Pairs:
    """(context, target, weight) of all that turns teach."""
    return Counter(
        (tuple(turn.ids[: len(turn.prompt) + k].tolist()), int(turn.completion[k]), float(turn.weight[k]))
        for turn in turns
        for k in range(len(turn.completion))
    )


def learned(ranks: Sequence[Sequence[Row]]) -> Pairs:
    """The same, read off the rows of all ranks by who sees whom."""
    found: Pairs = Counter()
    for row in (row for rank in ranks for row in rank):
        index = torch.arange(row.num_tokens)
        for i, target, weight in zip(
            row.source.tolist(), row.target.tolist(), row.weight.tolist(), strict=True
        ):
            found[tuple(row.tokens[(index <= i) & (i < row.end)].tolist()), target, weight] += 1
    return found


@settings(max_examples=120, deadline=None, database=None)
@given(
    turns=turn_sets,
    budget=st.integers(1, 60),
    num_ranks=st.integers(1, 5),
    layout=st.sampled_from(LAYOUTS),
    min_shared=st.integers(1, 5),
    multiple=st.sampled_from([1, 8]),
)
def test_every_pair_once_over_rows_and_ranks(
    turns: list[Turn], budget: int, num_ranks: int, layout: str, min_shared: int, multiple: int
) -> None:
    ranks = share_out(turns, budget, num_ranks, layout, min_shared, multiple=multiple, cost=SMALL)
    assert learned(ranks) == told(turns)
    assert len(ranks) == num_ranks
    assert len({len(rank) for rank in ranks}) == 1
    for row in (row for rank in ranks for row in rank):
        check_row(row)
        alone = row.num_tokens - row.num_padding in {len(turn) - 1 for turn in turns}
        assert row.num_tokens <= budget or (alone and row.num_padding < multiple)


def skewed(seed: int, count: int = 96) -> list[Turn]:
    """Turns of very different lengths and shares of trained tokens."""
    rng = np.random.default_rng(seed)
    found = []
    for size in np.clip(rng.lognormal(4.6, 1.0, count), 8, 1500).astype(int).tolist():
        ids = rng.integers(3, 5000, size).tolist()
        cut = max(1, int(size * rng.uniform(0.1, 0.95)))
        found.append(make_turn(ids[:cut], ids[cut:]))
    return found


def loads(ranks: Sequence[Sequence[Row]]) -> list[float]:
    return [sum(SMALL.of_row(row) for row in rank) for rank in ranks]


def excess(costs: Sequence[float]) -> float:
    """How much more the busiest rank has to do than all on average."""
    return max(costs) / statistics.mean(costs) - 1


def by_tokens(turns: Sequence[Turn], budget: int, num_ranks: int) -> list[list[Row]]:
    """The obvious way: rows of an even share of the tokens, each to the rank that has the fewest so far."""
    total = sum(row.num_tokens for row in build_rows(turns, budget))
    rows = build_rows(turns, min(budget, -(-total // num_ranks)))
    ranks: list[list[Row]] = [[] for _ in range(num_ranks)]
    for row in rows:
        min(ranks, key=lambda rank: sum(other.num_tokens for other in rank)).append(row)
    return ranks


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_differ_little_in_cost(num_ranks: int) -> None:
    ours, obvious = [], []
    for seed in range(10):
        turns = skewed(seed)
        ours.append(excess(loads(share_out(turns, 2048, num_ranks, cost=SMALL))))
        obvious.append(excess(loads(by_tokens(turns, 2048, num_ranks))))
    assert statistics.mean(ours) < 0.5 * statistics.mean(obvious)
    assert statistics.median(ours) < 0.08


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_rows_at_one_place_are_alike(num_ranks: int) -> None:
    """Ranks go through their rows in step: the time of a place is that of its costliest row."""
    for seed in range(5):
        costs = [
            sorted((SMALL.of_row(row) for row in place), reverse=True)
            for place in zip(*share_out(skewed(seed), 700, num_ranks, cost=SMALL), strict=True)
        ]
        for place, after in pairwise(costs):
            assert place[-1] >= after[0]


def test_the_cost_decides_and_not_the_tokens() -> None:
    """A long turn has fewer tokens than a row of seven short ones, and five times the pairs."""
    rng = np.random.default_rng(0)
    turns = [make_turn(rng.integers(0, 99, size).tolist(), [1]) for size in (650, *[100] * 10)]
    for cost, beside in ((Cost(1.0, 0.0, 0.0), [650, 300]), (Cost(0.0, 1.0, 0.0), [650])):
        ranks = share_out(turns, 700, 2, cost=cost)
        (with_long,) = (rank for rank in ranks if any(row.num_tokens == 650 for row in rank))
        assert [row.num_tokens for row in with_long if row.num_predictions] == beside


def test_the_budget_is_lowered_only_as_far_as_it_helps() -> None:
    turns = [make_turn(np.random.default_rng(i).integers(0, 99, 100).tolist(), [1]) for i in range(32)]
    for num_ranks, longest in ((1, 1600), (2, 1600), (4, 800), (8, 400)):
        ranks = share_out(turns, 1600, num_ranks, cost=SMALL)
        assert {row.num_tokens for rank in ranks for row in rank} == {longest}


def test_dealing_by_hand() -> None:
    pieces = [Piece((i,), size) for i, size in enumerate([9, 8, 5, 4, 2])]
    share = deal(pieces, [9.0, 8.0, 5.0, 4.0, 2.0], 2, 100)
    assert [[piece.size for piece in rank] for rank in share.pieces] == [[9, 4], [8, 5, 2]] or [
        [piece.size for piece in rank] for rank in share.pieces
    ] == [[9, 4, 2], [8, 5]]
    assert share.time == 9 + 5 + 2
