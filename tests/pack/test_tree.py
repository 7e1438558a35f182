"""Rows from turns: nothing lost, nothing doubled, each token predicted from exactly its own context."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint.pack.row import Row, check_row
from imprint.pack.tree import MIN_SHARED, build_rows, common_length, tree_order
from imprint.render.turns import Turn
from tiny import make_turn, random_turns

LAYOUTS = ("shared", "packed", "separate")

few_ids = st.lists(st.integers(0, 2), min_size=1, max_size=9)  # so few that prefixes coincide all the time
weights = st.sampled_from([0.0, 0.5, 1.0, 2.0])
turn_sets = st.lists(
    st.tuples(few_ids, few_ids, st.lists(weights, min_size=9, max_size=9)).map(
        lambda parts: make_turn(parts[0], parts[1], parts[2][: len(parts[1])])
    ),
    min_size=1,
    max_size=12,
)

Pair = tuple[tuple[int, ...], int, float]  # context, target, weight


def pairs_of(turns: Sequence[Turn]) -> Counter[Pair]:
    """What is to be learned, read off the turns."""
    found: Counter[Pair] = Counter()
    for turn in turns:
        ids = turn.ids.tolist()
        for k, weight in enumerate(turn.weight.tolist()):
            at = len(turn.prompt) + k
            found[tuple(ids[:at]), ids[at], weight] += 1
    return found


def context(row: Row, i: int) -> tuple[int, ...]:
    """The tokens that i sees, found by asking each."""
    return tuple(int(row.tokens[j]) for j in range(i + 1) if i < int(row.end[j]))


def pairs_in(rows: Sequence[Row]) -> Counter[Pair]:
    """What is learned, read off the rows by walking who sees whom."""
    return Counter(
        (context(row, i), target, weight)
        for row in rows
        for i, target, weight in zip(
            row.source.tolist(), row.target.tolist(), row.weight.tolist(), strict=True
        )
    )


def inputs(turn: Turn) -> int:
    return len(turn) - 1


def num_tokens(rows: Sequence[Row]) -> int:
    return sum(row.num_tokens for row in rows)


@settings(max_examples=150, deadline=None, database=None)
@given(
    turns=turn_sets, budget=st.integers(1, 60), layout=st.sampled_from(LAYOUTS), min_shared=st.integers(1, 6)
)
def test_rows_hold_exactly_the_turns(turns: list[Turn], budget: int, layout: str, min_shared: int) -> None:
    rows = build_rows(turns, budget, layout, min_shared)
    for row in rows:
        check_row(row)
    assert pairs_in(rows) == pairs_of(turns)
    assert num_tokens(rows) <= num_tokens(build_rows(turns, budget, "packed"))
    longest = max(map(inputs, turns))
    assert all(row.num_tokens <= max(budget, longest) for row in rows)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [1, 30, 64, 200, 10**6])
@pytest.mark.parametrize("seed", range(3))
def test_realistic_turns(seed: int, budget: int, layout: str) -> None:
    turns = random_turns(seed, conversations=8)
    rows = build_rows(turns, budget, layout)
    assert pairs_in(rows) == pairs_of(turns)
    for row in rows:
        check_row(row)
        assert (row.tokens.dtype, row.end.dtype, row.weight.dtype) == (
            torch.int64,
            torch.int64,
            torch.float32,
        )
    if layout != "shared":
        assert num_tokens(rows) == sum(map(inputs, turns))
    if layout == "separate":
        assert len(rows) == len(turns)


def test_over_the_budget_only_where_one_turn_alone_is() -> None:
    turns = [make_turn(range(3, 60), range(60, 97)), *random_turns(1)]
    over = [row for row in build_rows(turns, 70) if row.num_tokens > 70]
    assert len(over) == 1
    assert over[0].num_tokens == inputs(turns[0])


def test_what_is_shared_is_laid_once() -> None:
    system = list(range(3, 3 + 40))
    turns = [make_turn([*system, 50 + i], [60 + i, 70, 80]) for i in range(5)]
    (row,) = build_rows(turns, 10**6)
    assert row.num_tokens == 40 + 5 * 3
    assert (row.end[:40] == row.num_tokens).all()


def test_a_turn_that_is_given_twice_is_computed_once_and_learned_twice() -> None:
    turn = make_turn(range(10), range(10, 14))
    (row,) = build_rows([turn, turn], 100)
    assert row.num_tokens == inputs(turn)
    assert pairs_in([row]) == pairs_of([turn, turn])
    assert set(Counter(row.source.tolist()).values()) == {2}


def test_a_turn_that_is_a_prefix_of_another() -> None:
    short, long = make_turn([1, 2], [3, 4]), make_turn([1, 2, 3, 4, 5], [6, 7])
    for turns in ([short, long], [long, short]):
        (row,) = build_rows(turns, 100, min_shared=1)
        assert row.num_tokens == inputs(long)
        assert (row.end == row.num_tokens).all()
        assert pairs_in([row]) == pairs_of(turns)


def test_several_answers_part_at_their_first_token() -> None:
    prompt = list(range(3, 23))
    turns = [make_turn(prompt, [30, 31]), make_turn(prompt, [40, 41])]
    (row,) = build_rows(turns, 100)
    assert row.tokens.tolist() == [*prompt, 30, 40]
    assert row.source.tolist().count(19) == 2  # the prompt's last token has two targets


@pytest.mark.parametrize(("common", "laid_again"), [(MIN_SHARED - 1, True), (MIN_SHARED, False)])
def test_short_shared_pieces_are_not_worth_it(common: int, laid_again: bool) -> None:
    begin = list(range(3, 3 + common))
    turns = [make_turn([*begin, 50, 51], [60, 61]), make_turn([*begin, 70, 71], [80, 81])]
    (row,) = build_rows(turns, 10**6)
    assert row.num_tokens == sum(map(inputs, turns)) - (0 if laid_again else common)


def test_a_branch_shortly_after_another_snaps_back_to_it() -> None:
    begin = list(range(3, 3 + 18))
    turns = [make_turn([*begin, *ids], [90, 91]) for ids in ([50, 51, 52], [60, 61, 62], [60, 61, 63])]
    (row,) = build_rows(turns, 10**6)
    assert pairs_in([row]) == pairs_of(turns)
    assert row.num_tokens == 22 + 4 + 4  # the last parts 2 tokens after a branch, and begins there too


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_the_turns_does_not_matter(layout: str) -> None:
    turns = random_turns(3)[:-1]  # all different
    rng = np.random.default_rng(0)
    first = build_rows(turns, 64, layout)
    for _ in range(5):
        again = build_rows([turns[i] for i in rng.permutation(len(turns))], 64, layout)
        assert len(first) == len(again)
        for a, b in zip(first, again, strict=True):
            assert all(
                torch.equal(getattr(a, n), getattr(b, n))
                for n in ("tokens", "end", "source", "target", "weight")
            )


def test_tree_order_is_that_of_the_ids_as_numbers() -> None:
    turns = [make_turn([i], [0]) for i in (70_000, 300, 255, 256, 2, 1)]
    assert [int(turn.ids[0]) for turn in tree_order(turns)] == [1, 2, 255, 256, 300, 70_000]


@given(few_ids, few_ids)
def test_common_length(a: list[int], b: list[int]) -> None:
    slow = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_length(np.array(a), np.array(b)) == slow


def test_no_turns_make_no_rows() -> None:
    assert build_rows([], 100) == []


def test_the_walk_finds_one_wrong_end() -> None:
    turns = random_turns(0)
    rows = build_rows(turns, 10**6)
    rows[0].end[3] -= 10
    assert pairs_in(rows) != pairs_of(turns)
