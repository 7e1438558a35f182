"""The plan: steps as a pure function of the data, the seed and the epoch; rows shared out evenly."""

from collections import Counter

import pytest
import torch

from imprint.pack.plan import Plan, share_out
from imprint.pack.row import Row, check_row
from imprint.pack.tree import build_rows
from tiny import make_turn, random_turns


def a_plan(**changed: object) -> Plan:
    facts: dict[str, object] = dict(num_conversations=23, batch_size=5, epochs=3, seed=1, fingerprint="f")
    return Plan(**{**facts, **changed})  # type: ignore[arg-type]


def test_each_conversation_once_an_epoch() -> None:
    plan = a_plan()
    assert (plan.steps_per_epoch, plan.total_steps) == (5, 15)
    for epoch in range(3):
        steps = [plan.conversations(epoch * 5 + i) for i in range(5)]
        assert [len(step) for step in steps] == [5, 5, 5, 5, 3]
        assert sorted(i for step in steps for i in step) == list(range(23))


def test_an_order_is_a_pure_function_of_fingerprint_seed_and_epoch() -> None:
    orders = {
        (f, s, e): tuple(a_plan(fingerprint=f, seed=s).order(e))
        for f in "fg"
        for s in (1, 2)
        for e in (0, 1, 2)
    }
    assert len(set(orders.values())) == len(orders) == 12
    for (f, s, e), order in orders.items():
        plan = a_plan(fingerprint=f, seed=s, batch_size=7, epochs=9, max_steps=2)
        assert tuple(plan.order(e)) == order


def test_orders_do_not_change_from_one_release_to_the_next() -> None:
    assert a_plan(num_conversations=8).order(0).tolist() == [6, 1, 4, 5, 0, 7, 3, 2]


def test_fields_cannot_be_confused() -> None:
    assert (
        a_plan(fingerprint="f/1", seed=2).order(3).tolist()
        != a_plan(fingerprint="f", seed=12).order(3).tolist()
    )


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"),
    [
        (1, None, 5),
        (0.5, None, 3),
        (0.2, None, 1),
        (0.01, None, 1),
        (2.1, None, 11),
        (3, 4, 4),
        (3, 99, 15),
        (0.4, 1, 1),
    ],
)
def test_total_steps(epochs: float, max_steps: int | None, steps: int) -> None:
    assert a_plan(epochs=epochs, max_steps=max_steps).total_steps == steps


def test_a_batch_larger_than_the_data() -> None:
    plan = a_plan(batch_size=100, epochs=2)
    assert plan.total_steps == 2
    assert sorted(plan.conversations(1)) == list(range(23))


def learned(rows: list[Row]) -> Counter[tuple[tuple[int, ...], int, float]]:
    return Counter(
        (tuple(row.tokens[(row.end > i) & (torch.arange(row.num_tokens) <= i)].tolist()), target, weight)
        for row in rows
        for i, target, weight in zip(
            row.source.tolist(), row.target.tolist(), row.weight.tolist(), strict=True
        )
    )


@pytest.mark.parametrize("layout", ["shared", "packed", "separate"])
@pytest.mark.parametrize("budget", [1, 50, 10**6])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_ranks_get_equally_many_rows_and_every_pair_once(num_ranks: int, budget: int, layout: str) -> None:
    for turns in (random_turns(2), random_turns(2)[:1], random_turns(2)[:3]):
        ranks = share_out(turns, budget, num_ranks, layout)
        assert len(ranks) == num_ranks
        assert len({len(rows) for rows in ranks}) == 1
        rows = [row for rank in ranks for row in rank]
        for row in rows:
            check_row(row)
        assert learned(rows) == learned(build_rows(turns, 10**6, "separate"))
        longest = max(len(turn) - 1 for turn in turns)
        assert all(row.num_tokens <= max(budget, longest) for row in rows)


def test_empty_rows_fill_up() -> None:
    ranks = share_out([make_turn([1, 2], [3])], 100, 4)
    assert sorted(row.num_predictions for rank in ranks for row in rank) == [0, 0, 0, 1]


def test_a_step_without_turns_is_an_empty_row_for_each_rank() -> None:
    for num_ranks in (1, 3):
        ranks = share_out([], 100, num_ranks)
        assert [[row.num_predictions for row in rank] for rank in ranks] == [[0]] * num_ranks


def test_shares_are_balanced() -> None:
    ranks = share_out(random_turns(5, conversations=40), 10**6, 4, "packed")
    tokens = [sum(row.num_tokens for row in rank) for rank in ranks]
    assert max(tokens) < 1.35 * sum(tokens) / 4


def test_every_rank_computes_the_same_shares() -> None:
    turns = random_turns(4)
    a, b = share_out(turns, 60, 3), share_out(turns, 60, 3)
    assert all(
        torch.equal(x.tokens, y.tokens) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )
