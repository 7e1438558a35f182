"""Attention through torch's FlexAttention: blocks of the row that someone sees, in one fused kernel on CUDA.

Which blocks are seen follows from the least and greatest `end` and position in each; the [T, T] mask is
never made. One kernel is compiled for each kind of layer, for rows of any length.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

BLOCK = 128  # queries, and keys, of a block: the size that the kernels are tuned for
LEAST_BLOCKS = 2  # torch.compile takes a dimension of one for a constant, and compiles anew for two
LEAST_WIDTH = 16  # of a head, on CUDA

_numbers = itertools.count()


class Blocks(NamedTuple):
    """Who sees whom in a row, filled up to n blocks, for a window and a chunk.

    `lists` are what BlockMask holds: counts [1, 1, n] and indices [1, 1, n, n], int32, of the key blocks
    seen in part and wholly by each block of queries, then of the query blocks for each block of keys.
    end, position, first: int32 [n·BLOCK]; the keys that i sees stand at position first[i] or later.
    """

    lists: tuple[Tensor, ...]
    end: Tensor
    position: Tensor
    first: Tensor | None  # None where there is neither window nor chunk

    @property
    def size(self) -> int:
        return len(self.end)


def make_blocks(end: Tensor, position: Tensor, window: int | None = None, chunk: int | None = None) -> Blocks:
    """The blocks of a row; no value is fetched from the device."""
    size = len(end)
    full_size = max(LEAST_BLOCKS, -(-size // BLOCK)) * BLOCK
    beyond = torch.arange(size + 1, full_size + 1, device=end.device)  # sees itself, like any padding
    end = torch.cat([end, beyond]).to(torch.int32)
    position = F.pad(position, (0, full_size - size)).to(torch.int32)
    first = None
    if window is not None:
        first = position - (window - 1)
    if chunk is not None:
        begun = position // chunk * chunk
        first = begun if first is None else torch.maximum(first, begun)
    part, whole = _seen(end, position, first)
    lists = (*_listed(part), *_listed(whole), *_listed(part.T), *_listed(whole.T))
    blocks = Blocks(lists, end, position, first)
    for listed in lists:
        for dim in range(2, listed.dim()):
            torch._dynamo.mark_dynamic(listed, dim)
    for known in (end, position, first):
        if known is not None:
            torch._dynamo.mark_dynamic(known, 0)
    return blocks


def _seen(end: Tensor, position: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """bool [n, n] of (query block, key block): seen in part, seen wholly. In part may be said of too many."""
    last = end.view(-1, BLOCK)
    start = torch.arange(0, len(end), BLOCK, device=end.device)[:, None]
    below = start > start.T
    some = below & (last.amax(1) > start)
    whole = below & (last.amin(1) >= start + BLOCK)
    if first is not None:
        at, of = position.view(-1, BLOCK), first.view(-1, BLOCK)
        # of a block of queries only those count that come before the end of the block of keys
        reached = (last.amax(1).clamp(max=start + BLOCK) - start - 1).clamp(min=0)
        lowest = of.cummin(1).values.gather(1, reached.long())
        some &= at.amax(1) >= lowest
        whole &= at.amin(1) >= of.amax(1)[:, None]
    return (some & ~whole) | (start == start.T), whole


def _listed(seen: Tensor) -> tuple[Tensor, Tensor]:
    """How many are seen by each [1, 1, n], and which, in order, before all others [1, 1, n, n]."""
    order = torch.argsort((~seen).to(torch.int8), dim=1, stable=True)
    return seen.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32).contiguous()[None, None]


def operands(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three in autocast's type where autocast is on, else in that of `value`."""
    device = query.device.type
    on = torch.is_autocast_enabled(device)
    compute = torch.get_autocast_dtype(device) if on else value.dtype
    return query.to(compute), key.to(compute), value.to(compute)


def flexed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Blocks,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention: query [1, H, T, D], key [1, G, T, D], value [1, G, T, E] → [1, T, H, E], H a multiple of G.

    sinks [H] are scores of a place per head that takes weight and gives nothing. Anywhere but on CUDA the
    same graph is run operation by operation, with all scores at once.
    """
    size, width = query.shape[2], value.shape[3]
    x = operands(query, key, value)
    with torch.autocast(query.device.type, enabled=False):
        x = tuple(_filled(part, blocks.size) for part in x)  # type: ignore[assignment]
        for part in x:
            torch._dynamo.mark_dynamic(part, 2)
        kind = tuple((part.dtype, part.shape[1], part.shape[3], part.requires_grad) for part in x)
        grad = torch.is_grad_enabled()
        attend = _kernel(query.device.type, scale, softcap, sinks is not None, kind, grad)
        limited = blocks.first is not None
        out, total = attend(*x, blocks.lists, blocks.end, blocks.position if limited else None, blocks.first)
        out = out[:, :, :size, :width]
        if sinks is not None and total is not None:
            # e^s / (Σ e^s + e^sink) is the softmax times the sigmoid of log Σ e^s - sink
            share = torch.sigmoid(total[:, :, :size] - sinks.to(total.dtype)[:, None])
            out = (out * share[..., None]).to(out.dtype)
    return out.transpose(1, 2).contiguous()


def _filled(x: Tensor, size: int) -> Tensor:
    """[1, H, T, D] with zeros up to whole blocks, and up to the narrowest head that the kernels take."""
    tokens, width = size - x.shape[2], max(0, LEAST_WIDTH - x.shape[3])
    return F.pad(x, (0, width, 0, tokens)) if tokens or width else x


@cache
def _kernel(
    device: str, scale: float, softcap: float | None, total: bool, kind: tuple[Any, ...], grad: bool
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The compiled attention of one kind of layer, for rows of any length.

    Each has code of its own under its own name: torch.compile counts recompilations by code, and makes a
    number that it has seen change, such as the scale, a variable, which FlexAttention does not take.
    """
    code = _attend.__code__.replace(co_name=f"{_attend.__name__}_{next(_numbers)}")
    own = types.FunctionType(code, _attend.__globals__, code.co_name)
    backend = "inductor" if device == "cuda" else "eager"
    compiled = torch.compile(own, backend=backend, fullgraph=True)

    def attend(*x: Any) -> tuple[Tensor, Tensor | None]:
        return compiled(*x, scale, softcap, total)  # type: ignore[no-any-return]

    return attend


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lists: tuple[Tensor, ...],
    end: Tensor,
    position: Tensor | None,
    first: Tensor | None,
    scale: float,
    softcap: float | None,
    total: bool,
) -> tuple[Tensor, Tensor | None]:
    """What is compiled: [1, H, n·BLOCK, E], and where `total` the log of the sums of weights [1, H, n·BLOCK]."""

    def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = (j <= i) & (i < end[j])
        if position is not None and first is not None:
            seen = seen & (position[j] >= first[i])
        return seen

    def bend(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)  # type: ignore[operator]

    size = query.shape[2]
    make: Any = BlockMask
    mask = make((size, size), *lists, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=sees)
    # not ROWS_GUARANTEED_SAFE: a query may see nothing of the first of its blocks
    found: Any = flex_attention(
        query,
        key,
        value,
        score_mod=None if softcap is None else bend,
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True) if total else None,
    )
    return (found[0], found[1].lse) if total else (found, None)
