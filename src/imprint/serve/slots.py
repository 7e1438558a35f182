"""Where the keys and values of running asks lie: pools of slots, each slot as long as its pool says.

An ask begins in the pool that fits it and moves to the next when it outgrows it, so a short one never
pays for a long one beside it. Token p of an ask lies at place p of its slot: what is seen is a matter of
positions alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class NoRoom(Exception):
    """The memory that is set aside for keys and values is used up."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What one layer keeps of a token: keys [heads, key], values [heads, value]."""

    heads: int
    key: int
    value: int

    @property
    def features(self) -> int:
        return self.heads * (self.key + self.value)


Layers = Mapping[int, Shape]


class Pool:
    """S slots of `length` tokens, some of them free: for each layer keys [S, heads, length, key] and values."""

    def __init__(self, layers: Layers, length: int, dtype: torch.dtype, device: torch.device):
        self.layers, self.length, self.dtype, self.device = layers, length, dtype, device
        self.size = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.free: list[int] = []
        self.used: set[int] = set()

    @property
    def slot_bytes(self) -> int:
        return self.length * sum(shape.features for shape in self.layers.values()) * self.dtype.itemsize

    def take(self) -> int | None:
        """The lowest free slot; None where none is."""
        if not self.free:
            return None
        slot = heapq.heappop(self.free)
        self.used.add(slot)
        return slot

    def give(self, slot: int) -> None:
        self.used.remove(slot)
        heapq.heappush(self.free, slot)

    def grow(self, size: int) -> None:
        """Have `size` slots. New ones are zeros: what nobody sees is multiplied by 0, and must be finite."""
        keys, values = (
            {
                layer: self._grown(old.get(layer), size, shape.heads, getattr(shape, width))
                for layer, shape in self.layers.items()
            }
            for old, width in ((self.keys, "key"), (self.values, "value"))
        )
        self.keys, self.values = keys, values  # both or, where memory runs out, neither
        for slot in range(self.size, size):
            heapq.heappush(self.free, slot)
        self.size = size

    def _grown(self, old: Tensor | None, size: int, heads: int, width: int) -> Tensor:
        new = torch.zeros(size, heads, self.length, width, dtype=self.dtype, device=self.device)
        if old is not None:
            new[: len(old)] = old
        return new

    def shrink(self) -> None:
        """Free the memory behind the last slot that is used."""
        size = max(self.used, default=-1) + 1
        if size < self.size:
            self.keys = {layer: tensor[:size].clone() for layer, tensor in self.keys.items() if size}
            self.values = {layer: tensor[:size].clone() for layer, tensor in self.values.items() if size}
            self.free = [slot for slot in range(size) if slot not in self.used]
            self.size = size

    def clean(self, slot: int) -> None:
        """Write zeros over a slot that may hold what is not finite."""
        for kept in (self.keys, self.values):
            for tensor in kept.values():
                tensor[slot].zero_()


@dataclass(frozen=True, slots=True)
class Place:
    """One slot of one pool."""

    pool: Pool
    slot: int


class Slots:
    """All pools of an engine, within `most_bytes`."""

    def __init__(
        self,
        layers: Layers,
        lengths: Sequence[int],
        most_slots: int,
        most_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.most_slots, self.most_bytes = most_slots, most_bytes
        self.pools = [Pool(layers, length, dtype, device) for length in sorted(set(lengths))]

    @property
    def bytes(self) -> int:
        return sum(pool.size * pool.slot_bytes for pool in self.pools)

    def take(self, tokens: int) -> Place:
        """A slot for `tokens` tokens; NoRoom where memory for it is not to be had."""
        pool = next((pool for pool in self.pools if pool.length >= tokens), None)
        if pool is None:
            raise NoRoom(f"{tokens:,} tokens are more than a slot can hold")
        slot = pool.take()
        if slot is None:
            self._grow(pool)
            slot = pool.take()
            assert slot is not None
        return Place(pool, slot)

    def give(self, place: Place) -> None:
        place.pool.give(place.slot)

    def move(self, place: Place, used: int, tokens: int) -> Place:
        """A longer slot with the first `used` tokens of `place`, which is given back."""
        new = self.take(tokens)
        for old_kept, new_kept in (
            (place.pool.keys, new.pool.keys),
            (place.pool.values, new.pool.values),
        ):
            for layer, tensor in old_kept.items():
                new_kept[layer][new.slot, :, :used] = tensor[place.slot, :, :used]
        self.give(place)
        return new

    def _grow(self, pool: Pool) -> None:
        """Twice the slots, or as many more as there is memory for."""
        for size in (min(max(4, 2 * pool.size), self.most_slots), pool.size + 1):
            wanted = (size - pool.size) * pool.slot_bytes
            if wanted <= 0:
                continue
            for other in self.pools:
                if self.bytes + wanted > self.most_bytes and other is not pool:
                    other.shrink()
            if self.bytes + wanted <= self.most_bytes:
                try:
                    pool.grow(size)
                except RuntimeError as error:  # torch's own, on the CPU and on CUDA
                    raise NoRoom(str(error)) from error
                return
        raise NoRoom(f"keys and values take {self.bytes:,} of {self.most_bytes:,} bytes")


def pool_lengths(context: int | None, most: int = 1 << 20, first: int = 256, factor: int = 4) -> list[int]:
    """256, 1024, 4096 … up to the context, which is the last."""
    end = context or most
    lengths = []
    while first < end:
        lengths.append(first)
        first *= factor
    return [*lengths, end]
