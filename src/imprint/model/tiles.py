"""Attention in tiles: only blocks that someone sees are computed, forward and backward, on any device.

A tile is a few queries with all keys that any of them sees, so its softmax is complete at once and is
made again, not kept, for the backward pass. Scores are products of operands in the compute type, summed,
and turned into weights, in float32 (float64 stays float64). Sums over tiles run in one fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.model.view import Tile


def tiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tiles: list[Tile],
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention: query [1, H, T, D], key [1, G, T, D], value [1, G, T, E] → [1, T, H, E], H a multiple of G.

    sinks [H] are scores of a place per head that takes weight and gives nothing. The products run in
    autocast's type where autocast is on, else in that of `value`.
    """
    device = query.device.type
    on = torch.is_autocast_enabled(device)
    compute = torch.get_autocast_dtype(device) if on else value.dtype
    with torch.autocast(device, enabled=False):
        x = (part[0].to(compute) for part in (query, key, value))
        out: Tensor = _Tiled.apply(*x, sinks, tiles, scale, softcap)  # type: ignore[no-untyped-call]
    return out[None]


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        tiles: list[Tile],
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, sinks)
        ctx.tiles, ctx.scale, ctx.softcap = tiles, scale, softcap
        heads, size, _ = query.shape
        out = query.new_empty(size, heads, value.shape[-1])
        wide = torch.promote_types(query.dtype, torch.float32)
        operands = (query.to(wide) * scale, key.to(wide), sinks, softcap)
        for tile in tiles:
            weights, _ = _weights(tile, *operands)
            product = weights.to(value.dtype) @ _gather(value, tile)  # [G, H/G·n, E]
            out[tile.start : tile.stop] = _by_head(product, heads).transpose(0, 1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(pull.device.type, enabled=False):  # as in the forward pass
            return _backward(ctx, pull)


def _backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of what `_Tiled.forward` was given; `pull` [T, H, E] is that of its result."""
    query, key, value, sinks = ctx.saved_tensors
    heads, groups = query.shape[0], key.shape[0]
    wide = torch.promote_types(query.dtype, torch.float32)
    to_query = torch.empty_like(query.transpose(0, 1)).transpose(0, 1)  # laid out as [T, H, D]
    to_key, to_value = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (key, value))
    to_sinks = None if sinks is None else torch.zeros_like(sinks, dtype=wide)
    operands = (query.to(wide) * ctx.scale, key.to(wide), sinks, ctx.softcap)
    for tile in ctx.tiles:
        weights, slope = _weights(tile, *operands)
        narrow = weights.to(query.dtype)
        above = _by_group(pull[tile.start : tile.stop].transpose(0, 1), groups)  # [G, H/G·n, E]
        _scatter(to_value, tile, narrow.transpose(1, 2) @ above)
        to_weights = (above @ _gather(value, tile).transpose(1, 2)).to(wide)
        # the softmax's derivative; what a sink takes is missing from the sum over keys, as it should be
        to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, wide)
        if to_sinks is not None:
            taken = (1 - weights.sum(-1, keepdim=True)) * (to_weights * weights).sum(-1, keepdim=True)
            to_sinks -= _by_head(taken, heads).sum((1, 2))
        if slope is not None:
            to_scores *= slope
        narrow = to_scores.mul_(ctx.scale).to(query.dtype)
        to_query[:, tile.start : tile.stop] = _by_head(narrow @ _gather(key, tile), heads)
        mine = _by_group(query[:, tile.start : tile.stop], groups)
        _scatter(to_key, tile, narrow.transpose(1, 2) @ mine)
    return to_query, to_key.to(key.dtype), to_value.to(value.dtype), to_sinks, None, None, None


def _weights(
    tile: Tile, query: Tensor, key: Tensor, sinks: Tensor | None, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Attention weights [G, H/G·n, m] of a tile; the soft cap's slope, where there is one.

    `query` is scaled, and like `key` in the type in which the weights come out.
    """
    heads, groups = query.shape[0], key.shape[0]
    mine = _by_group(query[:, tile.start : tile.stop], groups)
    scores = mine @ _gather(key, tile).transpose(1, 2)
    slope = None
    if softcap is not None:
        bent = torch.tanh(scores / softcap)
        scores, slope = softcap * bent, 1 - bent.square()
    split = _by_head(scores, heads)
    split += tile.mask
    if sinks is None:
        return scores.softmax(-1), slope
    column = sinks.to(scores.dtype)[:, None, None].expand(*split.shape[:2], 1)
    weights = torch.cat([split, column], dim=-1).softmax(-1)[..., :-1]
    return weights.reshape(scores.shape), slope


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[H, n, D] → [G, H/G·n, D]: the heads that share a key lie one below the other."""
    return x.reshape(groups, -1, x.shape[-1])


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[G, H/G·n, D] → [H, n, D], a view."""
    return x.view(heads, -1, x.shape[-1])


def _gather(x: Tensor, tile: Tile) -> Tensor:
    """[G, m, D]: the keys (or values) of a tile."""
    runs = [x[:, start:stop] for start, stop in tile.runs]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)


def _scatter(total: Tensor, tile: Tile, part: Tensor) -> None:
    """Add [G, m, D] of a tile's keys to [G, T, D]."""
    at = 0
    for start, stop in tile.runs:
        total[:, start:stop] += part[:, at : at + stop - start]
        at += stop - start
