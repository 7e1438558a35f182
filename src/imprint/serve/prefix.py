"""Keys and values of prompts that were computed before, in blocks: what extends an earlier text reuses them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from imprint.serve.slots import Layers, Place

BLOCK = 16  # tokens

# A block is known by the number of the block before it and its own tokens; the first by its adapter.
Key = tuple[int | str, tuple[int, ...]]


class PrefixCache:
    """Blocks of BLOCK tokens within `most_bytes`; the one that was used longest ago makes room.

    What a block holds depends on its tokens and all before them alone, so a text finds the longest chain
    of blocks that are its own. Two texts that begin alike share the blocks of their beginning.
    """

    def __init__(self, layers: Layers, most_bytes: int, dtype: torch.dtype, device: torch.device):
        self.layers = layers
        features = sum(shape.features for shape in layers.values())
        count = most_bytes // (BLOCK * features * dtype.itemsize)
        self.store = torch.empty(count, BLOCK, features, dtype=dtype, device=device)
        self.free = list(range(count))
        self.blocks: OrderedDict[Key, tuple[int, int]] = (
            OrderedDict()
        )  # (number of its own, row of the store)
        self.numbers = 0

    @property
    def bytes(self) -> int:
        return self.store.numel() * self.store.element_size()

    def find(self, ids: Sequence[int], adapter: str) -> list[int]:
        """Rows of the store that hold the beginning of `ids`, as far as it is known; the last token never."""
        chain: list[Key] = []
        rows: list[int] = []
        before: int | str = adapter
        for start in range(0, len(ids) - BLOCK, BLOCK):
            key = (before, tuple(ids[start : start + BLOCK]))
            found = self.blocks.get(key)
            if found is None:
                break
            before = found[0]
            rows.append(found[1])
            chain.append(key)
        for key in reversed(chain):  # the beginning is used last: it goes after what follows it
            self.blocks.move_to_end(key)
        return rows

    def read(self, rows: Sequence[int], place: Place) -> int:
        """Copy blocks into the beginning of a slot; how many tokens that were."""
        size = len(rows) * BLOCK
        index = torch.tensor(rows, device=self.store.device)
        kept = self.store.index_select(0, index).flatten(0, 1)
        for tensor, start, stop in self._columns(place):
            new = kept[:, start:stop].unflatten(1, (tensor.shape[1], -1))
            tensor[place.slot, :, :size] = new.transpose(0, 1)
        return size

    def keep(self, ids: Sequence[int], adapter: str, place: Place) -> None:
        """Keep the whole blocks of `ids`, whose keys and values lie in the slot."""
        before: int | str = adapter
        chain: list[Key] = []
        new: list[int] = []
        first = None
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            key = (before, tuple(ids[start : start + BLOCK]))
            found = self.blocks.get(key)
            if found is None:
                row = self._room(chain)
                if row is None:
                    break
                self.numbers += 1
                found = self.blocks[key] = (self.numbers, row)
                first = start if first is None else first
                new.append(row)
            else:
                self.blocks.move_to_end(key)
            before = found[0]
            chain.append(key)
        if first is not None:
            # once one block is new, all behind it are
            stop = first + len(new) * BLOCK
            parts = [
                t[place.slot, :, first:stop].transpose(0, 1).flatten(1) for t, _, _ in self._columns(place)
            ]
            index = torch.tensor(new, device=self.store.device)
            self.store[index] = torch.cat(parts, dim=1).view(len(new), BLOCK, -1)
        for key in reversed(chain):
            self.blocks.move_to_end(key)

    def _room(self, chain: Sequence[Key]) -> int | None:
        """A row for a new block; None where only the blocks of the text itself could make room."""
        if self.free:
            return self.free.pop()
        oldest = next(iter(self.blocks), None)
        if oldest is None or oldest in chain:
            return None
        return self.blocks.pop(oldest)[1]

    def _columns(self, place: Place) -> list[tuple[Tensor, int, int]]:
        """Each tensor of a pool with its columns in the store."""
        found, start = [], 0
        for layer, shape in self.layers.items():
            for kept, width in ((place.pool.keys, shape.key), (place.pool.values, shape.value)):
                found.append((kept[layer], start, start + shape.heads * width))
                start += shape.heads * width
        return found
