"""Orders that depend on a key alone."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=4)  # every step of an epoch asks for one, and for that of its replay
def shuffled(count: int, key: str) -> NDArray[np.int64]:
    """The numbers below `count` in an order that depends on `key` alone."""
    order = draw(count, key)
    order.flags.writeable = False
    return order


def draw(count: int, key: str) -> NDArray[np.int64]:
    """The same, drawn anew each time."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest(), "big")
    # raw draws, sorted: numpy keeps a bit generator's stream for ever, but not permutation()'s
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
