"""The plan: which conversations make up a step."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from imprint.pack.ranks import share_out as share_out
from imprint.pack.replay import Replay
from imprint.pack.shuffle import shuffled
from imprint.pack.together import Groups, grouped


@dataclass(frozen=True)
class Plan:
    """Which conversations make up step s: a pure function of (data fingerprint, seed, epoch).

    So the state of the data is two integers, and packing can never change a batch. A step has
    `batch_size` places; those that are not `replay`'s hold the conversations of the epoch in its order,
    and the step in which an epoch ends holds what is left of it. With `groups`, those of a group follow
    one another in that order: a group for which a step has not enough places left goes on in the next.
    """

    num_conversations: int
    batch_size: int
    epochs: float
    seed: int
    fingerprint: str
    max_steps: int | None = None
    replay: Replay | None = None
    groups: Groups | None = None

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
        key = f"{self.fingerprint}/{self.seed}/{epoch}"
        return grouped(self.groups, key) if self.groups else shuffled(self.num_conversations, key)

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
