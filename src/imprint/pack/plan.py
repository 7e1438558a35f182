"""The plan: which conversations make up a step, and how their turns are laid into rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from imprint.pack.row import Row, empty_row
from imprint.pack.tree import build_rows
from imprint.render.turns import Turn


@dataclass(frozen=True)
class Plan:
    """Which conversations make up step s: a pure function of (data fingerprint, seed, epoch).

    So the state of the data is two integers, and packing can never change a batch.
    """

    num_conversations: int
    batch_size: int
    epochs: float
    seed: int
    fingerprint: str
    max_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_conversations / self.batch_size)

    @property
    def total_steps(self) -> int:
        steps = max(1, math.ceil(self.epochs * self.steps_per_epoch))
        return min(steps, self.max_steps) if self.max_steps else steps

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All conversations in the order of this epoch (from 0)."""
        return shuffled(self.num_conversations, f"{self.fingerprint}/{self.seed}/{epoch}")

    def conversations(self, step: int) -> list[int]:
        """The conversations of a step (from 0). An epoch's last step holds what is left."""
        epoch, index = divmod(step, self.steps_per_epoch)
        start = index * self.batch_size
        return [int(i) for i in self.order(epoch)[start : start + self.batch_size]]


@lru_cache(maxsize=2)  # every step of an epoch asks for it
def shuffled(count: int, key: str) -> NDArray[np.int64]:
    """The numbers below `count` in an order that depends on `key` alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest(), "big")
    # raw draws, sorted: numpy keeps a bit generator's stream for ever, but not permutation()'s
    order = np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
    order.flags.writeable = False
    return order


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
