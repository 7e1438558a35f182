"""Who sees whom in one row, as attention functions need it: derived from `end`, made once for all layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from imprint.pack.row import positions

Made = TypeVar("Made")

TILE = 64  # queries of a tile; keys come in runs of as many, so that few shapes of matrices occur


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries start to stop - 1, and the keys that any of them sees, as runs (first, last + 1)."""

    start: int
    stop: int
    runs: tuple[tuple[int, int], ...]
    mask: Tensor  # float32 [stop - start, m]: 0 where the query sees the key, -inf elsewhere


class View:
    """Who sees whom in a row of T tokens."""

    def __init__(self, end: Tensor):
        self.end = end
        self.position = positions(end)
        self._made: dict[tuple[Any, ...], Any] = {}

    def once(self, key: tuple[Any, ...], make: Callable[[], Made]) -> Made:
        """What `make` makes of this row, made for the first layer that asks for `key` and kept for the others."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[no-any-return]

    def allowed(self, window: int | None = None, chunk: int | None = None) -> Tensor:
        """bool [T, T]: row i, column j: does i see j?"""
        key = ("all", window, chunk)
        if key not in self._made:
            index = torch.arange(len(self.end), device=self.end.device)
            self._made[key] = self._sees(index, index, window, chunk)
        return self._made[key]  # type: ignore[no-any-return]

    def tiles(self, window: int | None = None, chunk: int | None = None) -> list[Tile]:
        """The row in tiles of TILE queries, each with the blocks of TILE keys that someone in it sees."""
        key = ("tiles", window, chunk)
        if key not in self._made:
            self._made[key] = list(self._make_tiles(window, chunk))
        return self._made[key]  # type: ignore[no-any-return]

    def _make_tiles(self, window: int | None, chunk: int | None) -> list[Tile]:
        size = len(self.end)
        blocks = [(start, min(start + TILE, size)) for start in range(0, size, TILE)]
        last_seen = [int(part.max()) for part in self.end.cpu().split(TILE)]
        tiles = []
        for number, (start, stop) in enumerate(blocks):
            seen = [block for block, end in zip(blocks[:number], last_seen, strict=False) if end > start]
            seen.append((start, stop))
            queries = torch.arange(start, stop, device=self.end.device)
            keys = torch.cat([torch.arange(*block, device=self.end.device) for block in seen])
            sees = self._sees(queries, keys, window, chunk)
            if window is not None or chunk is not None:
                near = [bool(part.any()) for part in sees.split([b - a for a, b in seen], dim=1)]
                sees = torch.cat([p for p, n in zip(sees.split(TILE, dim=1), near, strict=True) if n], dim=1)
                seen = [block for block, n in zip(seen, near, strict=True) if n]
            mask = torch.zeros(sees.shape, device=sees.device).masked_fill_(~sees, -math.inf)
            tiles.append(Tile(start, stop, _joined(seen), mask))
        return tiles

    def _sees(self, query: Tensor, key: Tensor, window: int | None, chunk: int | None) -> Tensor:
        """bool [q, k] for the tokens at these indices; windows and chunks are measured in positions."""
        sees = (key[None, :] <= query[:, None]) & (query[:, None] < self.end[key][None, :])
        at, of = self.position[query][:, None], self.position[key][None, :]
        if window is not None:
            sees &= at - of < window
        if chunk is not None:
            sees &= at // chunk == of // chunk
        return sees


def _joined(blocks: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Neighbouring blocks as one run."""
    runs: list[tuple[int, int]] = []
    for start, stop in blocks:
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    return tuple(runs)
