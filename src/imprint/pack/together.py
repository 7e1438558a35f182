"""Conversations that are drawn into the same step, because they share a prompt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imprint.pack.shuffle import draw


@dataclass(frozen=True)
class Groups:
    """Which conversations belong together: the number of each one's group, counted as they first appear."""

    count: int
    largest: int  # conversations of the largest group
    digest: str  # of `numbers`: equal groups have equal ones
    numbers: NDArray[np.int64] = field(compare=False, repr=False)


def groups_of(marks: ArrayLike) -> Groups:
    """The groups of conversations of which equal ones have the same mark (int64, one a conversation)."""
    _, first, of_each, sizes = np.unique(
        np.asarray(marks), return_index=True, return_inverse=True, return_counts=True
    )
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    numbers = number[of_each]
    numbers.flags.writeable = False
    digest = hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()
    return Groups(len(first), int(sizes.max(initial=0)), digest, numbers)


@lru_cache(maxsize=2)  # every step of an epoch asks for one; the step between two epochs for neither twice
def grouped(groups: Groups, key: str) -> NDArray[np.int64]:
    """All conversations in an order that depends on the groups and `key` alone: groups in the order in
    which as many conversations would be drawn, and those of each in one of their own."""
    place = np.empty(groups.count, np.int64)
    place[draw(groups.count, key)] = np.arange(groups.count)
    members = draw(len(groups.numbers), f"{key}/members")
    order = members[np.argsort(place[groups.numbers[members]], kind="stable")]
    order.flags.writeable = False
    return order
