"""The cut of a prefix tree: nothing lost, nothing above the budget, and little repeated."""

from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint.pack.cut import ROW, Piece, cut, join, without_last

# a tree by what `cut` is told of it: (tokens, tokens in common with the turn before)
steps = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=14)


def tree(given_steps: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    sizes = [size for size, _ in given_steps]
    shared = [0] + [
        min(common, sizes[i], sizes[i + 1]) for i, (_, common) in enumerate(given_steps[1:], start=0)
    ]
    return sizes, shared


def laid(turns: tuple[int, ...], sizes: list[int], shared: list[int]) -> int:
    """Tokens of the union of some turns' paths, summed turn by turn."""
    found = sizes[turns[0]]
    for a, b in pairwise(turns):
        found += sizes[b] - min(shared[a + 1 : b + 1])
    return found


@settings(max_examples=300, deadline=None, database=None)
@given(steps, st.integers(1, 120))
def test_every_turn_once_and_no_piece_above_the_budget(
    given_steps: list[tuple[int, int]], budget: int
) -> None:
    sizes, shared = tree(given_steps)
    pieces = cut(sizes, shared, budget)
    assert sorted(turn for piece in pieces for turn in piece.turns) == list(range(len(sizes)))
    for piece in pieces:
        assert list(piece.turns) == sorted(piece.turns)
        assert piece.size == laid(piece.turns, sizes, shared)
        assert piece.size <= budget or piece.size == max(sizes[turn] for turn in piece.turns)
    assert [piece.size for piece in pieces] == sorted((piece.size for piece in pieces), reverse=True)
    for a, b in combinations(pieces, 2):  # two that fit into one row are in one
        joined = laid(tuple(sorted(a.turns + b.turns)), sizes, shared)
        assert joined > max(budget, a.size, b.size)


def best(sizes: list[int], shared: list[int], budget: int) -> tuple[int, int]:
    """(rows, tokens) of the cut that lays the fewest tokens and, of these, has the fewest rows: all are tried."""
    found = []
    for places in product(range(len(sizes)), repeat=len(sizes)):
        groups = [tuple(i for i, place in enumerate(places) if place == row) for row in range(len(sizes))]
        groups = [group for group in groups if group]
        costs = [laid(group, sizes, shared) for group in groups]
        most = [max(budget, *(sizes[turn] for turn in group)) for group in groups]
        if all(cost <= limit for cost, limit in zip(costs, most, strict=True)):
            found.append((sum(costs), len(groups)))
    tokens, rows = min(found)
    return rows, tokens


@settings(max_examples=40, deadline=None, database=None)
@given(
    st.lists(st.tuples(st.integers(20, 40), st.integers(0, 30)), min_size=1, max_size=5), st.integers(40, 120)
)
def test_small_trees_against_all_cuts_there_are(given_steps: list[tuple[int, int]], budget: int) -> None:
    sizes, shared = tree(given_steps)
    rows, tokens = best(sizes, shared, budget)
    pieces = cut(sizes, shared, budget)
    assert sum(piece.size for piece in pieces) <= 1.5 * tokens
    assert len(pieces) <= rows + 1


def test_groups_stay_whole_where_they_fit() -> None:
    """Four prompts of 60 tokens with three answers of 20: greedily, at 200 tokens, the second would be torn."""
    sizes, shared = [80] * 12, [0, 60, 60] * 4
    pieces = cut(sizes, shared, 250)
    assert [piece.size for piece in pieces] == [240, 240]
    assert [piece.turns for piece in pieces] == [(0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11)]


def test_a_subtree_beyond_the_budget_repeats_only_its_own_prefix() -> None:
    """A prompt of 50 tokens with six answers of 40, beside two short turns, in rows of 150."""
    sizes, shared = [30, *[90] * 6, 20], [0, 0, *[50] * 5, 0]
    pieces = cut(sizes, shared, 150)
    assert sum(piece.size for piece in pieces) == 6 * 40 + 3 * 50 + 30 + 20
    assert len(pieces) == 4
    assert max(piece.size for piece in pieces) <= 150


def test_what_is_left_of_a_split_subtree_is_filled_with_others() -> None:
    sizes, shared = [90, 90, 90, 90, 90, 60], [0, 50, 50, 50, 50, 0]
    pieces = cut(sizes, shared, 150)  # 130 + 130 + 90, and 60 beside the last
    assert sorted(piece.size for piece in pieces) == [130, 130, 150]


def test_a_long_dialogue_needs_one_row_for_all_its_turns() -> None:
    """Three turns of one dialogue, each the beginning of the next, of which the last is beyond the budget."""
    assert [piece.turns for piece in cut([60, 120, 180], [0, 60, 120], 100)] == [(0, 1, 2)]
    pieces = cut([60, 120, 180, 150], [0, 60, 120, 120], 100)  # and another end
    assert sorted(piece.size for piece in pieces) == [150, 180]


def test_a_row_is_spared_where_little_is_repeated_for_it() -> None:
    group = [Piece((0, 1), 90), Piece((2, 3), 90), Piece((4, 5), 90)]
    sizes, shared = [50] * 6, [0, 10] * 3
    fewer = without_last(group, sizes, shared, 140)  # the third is taken apart: 10 tokens more
    assert fewer is not None
    assert [piece.size for piece in fewer] == [140, 140]
    assert without_last(group, sizes, shared, 139) is None
    for common, spared in ((ROW, True), (ROW + 1, False)):  # more would be repeated than a row is worth
        group = [Piece((i, i + 1), 700 - common) for i in (0, 2, 4)]
        sizes, shared = [350] * 6, [0, common] * 3
        assert (without_last(group, sizes, shared, 1050 - common) is not None) == spared


def test_best_fit_decreasing_by_hand() -> None:
    pieces = [Piece((i,), size) for i, size in enumerate([30, 70, 20, 60, 40])]
    assert [(p.turns, p.size) for p in join(pieces, 0, 110)] == [((1, 4), 110), ((3, 0, 2), 110)]
    assert [(p.turns, p.size) for p in join(pieces, 20, 1000)] == [((0, 1, 2, 3, 4), 140)]


@pytest.mark.parametrize("budget", [1, 100])
def test_no_turns(budget: int) -> None:
    assert cut([], [], budget) == []
