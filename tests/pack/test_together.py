"""Conversations kept together: an order of groups that is a pure function, exact from any step on."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from imprint.pack import together as module
from imprint.pack.plan import Plan
from imprint.pack.replay import Replay
from imprint.pack.together import Groups, grouped, groups_of


def a_plan(groups: Groups | None, **changed: object) -> Plan:
    count = len(groups.numbers) if groups else 40
    facts: dict[str, object] = dict(num_conversations=count, batch_size=8, epochs=3, seed=1, fingerprint="f")
    return Plan(**{**facts, "groups": groups, **changed})  # type: ignore[arg-type]


FOURS = groups_of(np.arange(40) % 10)  # ten prompts, whose four answers lie far apart


def steps_of(plan: Plan) -> list[list[int]]:
    return [plan.conversations(step) for step in range(plan.total_steps)]


def test_groups_by_hand() -> None:
    groups = groups_of([7, -3, 7, 9, -3, 7])
    assert groups.numbers.tolist() == [0, 1, 0, 2, 1, 0]
    assert (groups.count, groups.largest) == (3, 3)
    assert groups == groups_of([1, 5, 1, 6, 5, 1])  # the marks do not matter, only which are equal
    assert groups != groups_of([1, 5, 1, 6, 5, 5])
    assert groups_of([]).count == 0


def test_answers_of_a_prompt_are_in_one_step() -> None:
    steps = steps_of(a_plan(FOURS))
    assert [len(step) for step in steps] == [8] * 15
    for step in steps:
        assert set(Counter(i % 10 for i in step).values()) == {4}
    apart = steps_of(a_plan(None))
    assert any(set(Counter(i % 10 for i in step).values()) != {4} for step in apart)


def test_each_conversation_once_an_epoch_in_another_order() -> None:
    steps = steps_of(a_plan(FOURS))
    epochs = [[i for step in steps[e * 5 : e * 5 + 5] for i in step] for e in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(i % 10 for i in epoch) for epoch in epochs}) == 3  # of the groups
    assert len({tuple(i for i in epoch if i % 10 == 0) for epoch in epochs}) > 1  # and within one


def test_what_a_step_has_no_place_for_goes_on_in_the_next() -> None:
    groups = groups_of([0] * 5 + [1] * 11 + [2] * 2 + [3] * 3)
    for seed in range(6):
        plan = a_plan(groups, batch_size=4, seed=seed, epochs=1)
        steps = steps_of(plan)
        assert [len(step) for step in steps] == [4, 4, 4, 4, 4, 1]
        laid = [int(groups.numbers[i]) for step in steps for i in step]
        assert len([1 for a, b in pairwise(laid) if a != b]) == 3  # each in one stretch


def test_groups_of_one_are_the_plan_without() -> None:
    ones = groups_of(np.random.default_rng(0).permutation(40))
    assert steps_of(a_plan(ones)) == steps_of(a_plan(None))


def test_large_groups_do_not_come_first() -> None:
    """Each group has the same chance of any place, however many conversations it has."""
    groups = groups_of([0] * 30 + list(range(1, 31)))
    first = [
        int(groups.numbers[a_plan(groups, seed=seed, batch_size=1, epochs=1).conversations(0)[0]])
        for seed in range(300)
    ]
    assert first.count(0) < 30  # 1 in 31 is about 10; by conversations it would be half of them


def test_an_order_is_a_pure_function_of_groups_fingerprint_seed_and_epoch() -> None:
    other = groups_of([*range(38), 0, 0])
    orders = {
        (f, s, e, g is other): tuple(a_plan(g, fingerprint=f, seed=s).order(e))
        for f in "fg"
        for s in (1, 2)
        for e in (0, 1)
        for g in (FOURS, other)
    }
    assert len(set(orders.values())) == len(orders) == 16
    grouped.cache_clear()
    for (f, s, e, is_other), order in orders.items():
        plan = a_plan(
            other if is_other else FOURS, fingerprint=f, seed=s, batch_size=3, epochs=9, max_steps=2
        )
        assert tuple(plan.order(e)) == order


def test_orders_do_not_change_from_one_release_to_the_next() -> None:
    assert a_plan(groups_of([0, 1, 0, 2, 1, 3, 0])).order(0).tolist() == [4, 1, 0, 2, 6, 5, 3]


@pytest.mark.parametrize("at", [1, 4, 5, 11])
def test_a_resumed_run_draws_the_same(at: int) -> None:
    through = steps_of(a_plan(FOURS))[at:]
    grouped.cache_clear()
    again = a_plan(groups_of(np.arange(40) % 10))
    assert [again.conversations(step) for step in range(at, again.total_steps)] == through


@pytest.mark.parametrize("share", ["0.25", "0.1"])
def test_with_replay(share: str) -> None:
    replay = Replay(7, Fraction(share), 1, "r")
    with_groups, without = a_plan(FOURS, replay=replay), a_plan(None, replay=replay)
    assert with_groups.total_steps == without.total_steps
    for step in range(without.total_steps):
        assert with_groups.drawn(step) == without.drawn(step)
        assert len(with_groups.conversations(step)) == len(without.conversations(step))
    order = [i for step in range(with_groups.total_steps) for i in with_groups.conversations(step)]
    for epoch in range(3):
        laid = [i % 10 for i in order[epoch * 40 : epoch * 40 + 40]]
        assert sorted(order[epoch * 40 : epoch * 40 + 40]) == list(range(40))
        assert sum(a != b for a, b in pairwise(laid)) == 9


def test_an_order_is_made_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = module.draw
    monkeypatch.setattr(module, "draw", lambda count, key: drawn.append(key) or original(count, key))
    grouped.cache_clear()
    steps_of(a_plan(FOURS, fingerprint="once"))
    assert len(drawn) == 3 * 2  # groups and members, in each of three epochs
    with pytest.raises(ValueError, match="read-only"):
        a_plan(FOURS).order(0)[0] = 1
