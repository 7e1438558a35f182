"""Replay in the plan: counts, orders and weights as pure functions of the step."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest

from imprint.pack.plan import Plan
from imprint.pack.replay import Replay, share_of_places, total_weight, weighed
from imprint.pack.shuffle import shuffled
from tiny import make_turn


def a_plan(share="0.1", pieces=17, kind=Replay, **changed) -> Plan:
    facts = dict(num_conversations=500, batch_size=32, epochs=3, seed=1, fingerprint="f")
    replay = kind(pieces, Fraction(share), 1, "r")
    return Plan(**{**facts, **changed}, replay=replay)


@pytest.mark.parametrize("share", ["0.1", "0.25", "0.29", "0.01", "0.5", "0.97", "1/3"])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_full_steps_hold_what_the_floors_say(share, batch_size):
    plan = a_plan(share, num_conversations=20_000, batch_size=batch_size, epochs=1)
    s, b = Fraction(share), batch_size
    steps = min(plan.total_steps - 1, 400)
    drawn = [len(plan.drawn(k)) for k in range(steps)]
    assert drawn == [math.floor((k + 1) * b * s) - math.floor(k * b * s) for k in range(steps)]
    assert all(abs(sum(drawn[:k]) - k * b * s) < 1 for k in range(steps))
    assert all(len(plan.conversations(k)) + drawn[k] == b for k in range(steps))


def test_a_tenth_is_a_tenth():
    """The float 0.1 times 30 is above 3, and 0.29 times 100 below 29: neither may move a piece."""
    assert share_of_places(0.1, "conversations", 32) == Fraction(1, 10)
    for share, batch_size, number in ((0.1, 30, 3), (0.29, 100, 29)):
        plan = a_plan(str(share), batch_size=batch_size, num_conversations=10**6)
        assert [len(plan.drawn(step)) for step in range(5)] == [number] * 5


@pytest.mark.parametrize("count", [1, 3, 20, 100, 500])
@pytest.mark.parametrize("share", ["0.1", "0.4", "0.9"])
def test_an_epoch_is_one_pass_over_the_data(share, count):
    plan = a_plan(share, num_conversations=count, epochs=4)
    at, epochs = 0, []
    for _ in range(4):
        seen: list[int] = []
        while len(seen) < count:
            seen += plan.conversations(at)
            at += 1
        assert sorted(seen) == list(range(count))
        epochs.append(tuple(seen))
        assert plan.epoch(at) == len(epochs)
    assert at == plan.total_steps
    assert count < 20 or len(set(epochs)) == 4
    drawn = sum(len(plan.drawn(step)) for step in range(at))
    # also where the data is smaller than a step, and steps at the end of an epoch are
    assert abs(drawn - Fraction(share) * (drawn + 4 * count)) < 1
    assert drawn == plan.num_drawn


@pytest.mark.parametrize("epochs", [0.1, 0.5, 1, 1.3, 2.6, 3])
def test_without_replay_as_always(epochs):
    plan = Plan(23, 5, epochs, 1, "f")
    assert plan.total_steps == math.ceil(Fraction(str(epochs)) * 5)
    assert [plan.drawn(step) for step in range(3)] == [[], [], []]
    assert plan.num_drawn == 0
    for step in range(15):
        epoch, index = divmod(step, 5)
        assert plan.conversations(step) == plan.order(epoch)[index * 5 : index * 5 + 5].tolist()
        assert plan.epoch(step) == pytest.approx(step / 5)


def test_a_share_of_zero_is_the_plan_without_replay():
    plain, zero = Plan(50, 8, 2, 1, "f"), a_plan("0", num_conversations=50, batch_size=8, epochs=2)
    assert plain.total_steps == zero.total_steps
    for step in range(plain.total_steps):
        assert plain.conversations(step) == zero.conversations(step)
        assert zero.drawn(step) == []


def test_all_pieces_are_drawn_before_one_comes_again():
    plan = a_plan("0.5", pieces=7, epochs=2)
    drawn = [piece for step in range(plan.total_steps) for piece in plan.drawn(step)]
    rounds = [drawn[i : i + 7] for i in range(0, len(drawn) - 6, 7)]
    assert len(rounds) > 100
    assert all(sorted(one) == list(range(7)) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 50
    counts = Counter(drawn).values()
    assert max(counts) - min(counts) <= 1


def test_the_order_depends_on_fingerprint_and_seed_alone():
    def drawn(seed=1, fingerprint="r", pieces=99, share="0.1"):
        return tuple(Replay(pieces, Fraction(share), seed, fingerprint).piece(i) for i in range(99))

    assert drawn() == drawn(share="0.9")
    assert len({drawn(), drawn(seed=2), drawn(fingerprint="q")}) == 3
    assert drawn() != tuple(shuffled(99, "r/1/0").tolist()), "not the order that data of this name would have"
    assert Replay(8, Fraction(1, 10), 1, "r").piece(0) == 7, "nor does it change from release to release"


# ---- planted twins: two ways of drawing that look right as long as nobody comes back


@dataclass(frozen=True)
class FromRandom(Replay):
    def piece(self, number: int) -> int:
        return random.randrange(self.num_pieces)


@dataclass(frozen=True)
class Remembers(Replay):
    """Counts its own draws, so a new process begins anew."""

    count: list[int] = field(default_factory=lambda: [0], compare=False)

    def piece(self, number: int) -> int:
        self.count[0] += 1
        return super().piece(self.count[0] - 1)


def as_if_resumed(kind, at: int) -> bool:
    """Whether steps from `at` on are, in a new process, what they are in one that made those before too."""
    whole = a_plan(kind=kind)
    through = [whole.drawn(step) for step in range(40)][at:]
    new = a_plan(kind=kind)
    return [new.drawn(step) for step in range(at, 40)] == through


@pytest.mark.parametrize("at", [1, 7, 16, 33])
def test_a_step_is_the_same_for_who_comes_back_to_it(at):
    assert as_if_resumed(Replay, at)
    assert not as_if_resumed(FromRandom, at)
    assert not as_if_resumed(Remembers, at)


def test_steps_in_any_order():
    plan, other = a_plan(), a_plan()
    forwards = [(plan.conversations(k), plan.drawn(k)) for k in range(45)]
    backwards = [(other.conversations(k), other.drawn(k)) for k in reversed(range(45))]
    assert forwards == backwards[::-1]


# ---- weights


def turns(sizes, weight=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return [
        make_turn(rng.integers(3, 90, 4).tolist(), rng.integers(3, 90, n).tolist(), [weight] * n)
        for n in sizes
    ]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize(("own", "replayed"), [((5, 3, 8), (64, 64)), ((400, 300), (2,)), ((1,), (1,))])
def test_a_share_of_the_weight_is_met(share, own, replayed):
    mine, theirs = turns(own, 0.3), turns(replayed, 0.7, seed=1)
    scaled, told = weighed(mine, theirs, share)
    assert told == pytest.approx(share, rel=1e-6)
    assert total_weight(scaled) / (total_weight(mine) + total_weight(scaled)) == told
    for before, after in zip(theirs, scaled, strict=True):
        assert after.ids.tolist() == before.ids.tolist()
        assert np.ptp(after.weight / before.weight) < 1e-6
    same, by_itself = weighed(mine, theirs)
    assert all(a is b for a, b in zip(same, theirs, strict=True))
    assert by_itself == pytest.approx(0.7 * sum(replayed) / (0.7 * sum(replayed) + 0.3 * sum(own)))


def test_a_step_of_one_kind_is_left_as_it_is():
    some = turns((5, 3))
    assert weighed(some, [], 0.5) == ([], 0.0)
    alone, share = weighed([], some, 0.5)
    assert alone == some
    assert share == 1.0


@pytest.mark.parametrize("batch_size", [2, 3, 32])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.6])
def test_where_the_weight_is_shared_every_full_step_holds_some(share, batch_size):
    exact = share_of_places(share, "weight", batch_size)
    plan = a_plan(exact, batch_size=batch_size, num_conversations=5000, epochs=1)
    assert all(plan.drawn(step) for step in range(plan.total_steps - 1))
