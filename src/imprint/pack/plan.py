"""The plan: which conversations make up a step, and how their turns are laid into rows."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from imprint.pack.replay import Replay
from imprint.pack.row import Row, empty_row
from imprint.pack.shuffle import shuffled
from imprint.pack.tree import build_rows
from imprint.render.turns import Turn


@dataclass(frozen=True)
class Plan:
    """Which conversations make up step s: a pure function of (data fingerprint, seed, epoch).

    So the state of the data is two integers, and packing can never change a batch. A step has
    `batch_size` places; those that are not `replay`'s hold the conversations of the epoch in its order,
    and the step in which an epoch ends holds what is left of it.
    """

    num_conversations: int
    batch_size: int
    epochs: float
    seed: int
    fingerprint: str
    max_steps: int | None = None
    replay: Replay | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch; with replay, a later one may have one more or fewer."""
        return self._first_step(1)

    @cached_property
    def total_steps(self) -> int:
        whole, part = divmod(Fraction(str(self.epochs)), 1)
        most = self.max_steps or math.inf
        epoch = next((e for e in range(whole) if self._first_step(e) >= most), whole)
        first = self._first_step(epoch)
        steps = first if epoch < whole else first + math.ceil(part * (self._first_step(whole + 1) - first))
        return max(1, min(steps, self.max_steps or steps))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All conversations in the order of this epoch (from 0)."""
        return shuffled(self.num_conversations, f"{self.fingerprint}/{self.seed}/{epoch}")

    def conversations(self, step: int) -> list[int]:
        """The conversations of a step (from 0), without its replay. An epoch's last step holds what is left."""
        epoch, start, stop = self._places(step)
        done = epoch * self.num_conversations
        first, last = (place - self._replayed(place) - done for place in (start, stop))
        return [int(i) for i in self.order(epoch)[first:last]]

    def drawn(self, step: int) -> list[int]:
        """The pieces of replay in a step (from 0)."""
        if self.replay is None:
            return []
        _, start, stop = self._places(step)
        return [self.replay.piece(i) for i in range(self._replayed(start), self._replayed(stop))]

    @property
    def num_drawn(self) -> int:
        """How many pieces of replay all steps together hold, repeats included."""
        return self._replayed(self._places(self.total_steps - 1)[2])

    def epoch(self, step: int) -> float:
        """Passes over the conversations that are done after so many steps."""
        epoch = self._epoch_of(step)
        first = self._first_step(epoch)
        return epoch + (step - first) / (self._first_step(epoch + 1) - first)

    def _places(self, step: int) -> tuple[int, int, int]:
        """(epoch, first place of the step, the place behind its last one)."""
        epoch = self._epoch_of(step)
        start = self._first_place(epoch) + (step - self._first_step(epoch)) * self.batch_size
        return epoch, start, min(start + self.batch_size, self._first_place(epoch + 1))

    def _replayed(self, place: int) -> int:
        return self.replay.before(place) if self.replay else 0

    def _first_place(self, epoch: int) -> int:
        count = epoch * self.num_conversations
        return self.replay.places(count) if self.replay else count

    @cached_property
    def _first_steps(self) -> list[int]:
        return [0]  # of each epoch; it grows as it is asked for

    def _first_step(self, epoch: int) -> int:
        known = self._first_steps
        while len(known) <= epoch:
            places = self._first_place(len(known)) - self._first_place(len(known) - 1)
            known.append(known[-1] + math.ceil(places / self.batch_size))
        return known[epoch]

    def _epoch_of(self, step: int) -> int:
        while self._first_steps[-1] <= step:
            self._first_step(len(self._first_steps))
        return bisect_right(self._first_steps, step) - 1


def share_out(turns: Sequence[Turn], budget: int, num_ranks: int, layout: str = "shared") -> list[list[Row]]:
    """The rows of one step for each rank: equally many each, balanced by their tokens.

    The budget is lowered where there would be fewer rows than ranks; empty rows fill up.
    """
    if num_ranks > 1:
        total = sum(row.num_tokens for row in build_rows(turns, budget, layout))
        budget = min(budget, max(1, math.ceil(total / num_ranks)))
    rows = build_rows(turns, budget, layout)
    if num_ranks == 1:
        return [rows or [empty_row()]]
    rows.sort(key=lambda row: row.num_tokens, reverse=True)  # stable: equal on every rank
    ranks: list[list[Row]] = [[] for _ in range(num_ranks)]
    most = max(1, math.ceil(len(rows) / num_ranks))
    for row in rows:
        free = [rank for rank in ranks if len(rank) < most]
        min(free, key=lambda rank: sum(r.num_tokens for r in rank)).append(row)
    for rank in ranks:
        rank += [empty_row() for _ in range(most - len(rank))]
    return ranks
