"""Memory that ran out: however it is said, one exception, and nothing of the broken pass left behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from imprint.pack.row import Row

# What torch, oneDNN, cuBLAS and the C++ library say where their error has no type of its own.
SAID = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "out_of_memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class OutOfMemory(Exception):
    """Memory ran out in the forward or backward pass of a step. No weight was changed."""

    def __init__(self, row: Row, said: str):
        super().__init__(said)
        self.row, self.said = row, said


class InHand(list[Row]):
    """Rows that know which of them was taken last."""

    row: Row | None = None

    def __iter__(self) -> Iterator[Row]:
        for row in super().__iter__():
            self.row = row
            yield row


@contextmanager
def room_for(rows: Sequence[Row]) -> Iterator[InHand]:
    """The same rows; every way to say that memory ran out while they are computed becomes OutOfMemory."""
    hand = InHand(rows)
    try:
        yield hand
    except (MemoryError, RuntimeError) as error:
        if hand.row is None or not ran_out(error):
            raise
        raise OutOfMemory(hand.row, " ".join(str(error).split())) from error


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in SAID)


def release(device: torch.device) -> None:
    """Give back what a pass that was broken off has left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
