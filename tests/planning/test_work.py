"""What is told of a run's rows from those of some of its steps."""

import random

import pytest

from imprint.planning.work import different


def test_where_all_rows_were_seen_nothing_is_guessed():
    assert different([64, 128, 128, 4096], 4, 64) == 3
    assert different([], 0, 64) == 0


@pytest.mark.parametrize("lengths", [5, 30, 60])
def test_lengths_that_were_not_seen_are_told_from_those_seen_once(lengths):
    draw = random.Random(1)
    rows = [64 * draw.randrange(1, lengths + 1) for _ in range(2000)]
    seen = rows[:40]
    told = different(seen, len(rows), 64)
    assert abs(told - lengths) <= 0.25 * lengths
    if lengths == 60:  # the twin: what was seen is not all there is
        assert len(set(seen)) < 0.75 * lengths


def test_there_are_no_more_lengths_than_rows_or_multiples():
    once = [64 * n for n in range(1, 21)]
    assert different(once, 10_000, 64) == 64
    assert different(once, 25, 64) == 25
