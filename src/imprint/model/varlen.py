"""Attention of rows without shared prompts, through torch's attention over sequences of different lengths."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from imprint.model.flex import operands

# as the flash kernels behind it have them
WIDEST = 256
WIDTHS = 8
TYPES = (torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)

_TAKES = frozenset(
    inspect.signature(varlen_attn).parameters
)  # torch 2.10 knows no window, 2.12 asks for groups


class Spans(NamedTuple):
    """A row as sequences laid end to end."""

    bounds: Tensor  # int32 [N + 1]: where each begins, and where the last ends
    longest: int


def make_spans(end: Tensor, chunk: int | None = None) -> Spans | None:
    """The sequences of a row, each cut into chunks where there are such; None where some share a prompt.

    Fetches `end` from its device: once a row.
    """
    last = end.cpu().numpy()
    size = len(last)
    closes = last[:-1] == np.arange(1, size)
    if not bool((closes | (last[:-1] == last[1:])).all()):
        return None
    bounds = np.concatenate([[0], np.flatnonzero(closes) + 1, [size]])
    if chunk is not None:
        bounds = np.concatenate([*(np.arange(a, b, chunk) for a, b in pairwise(bounds)), [size]])
    longest = int(np.diff(bounds).max())
    return Spans(torch.from_numpy(bounds.astype(np.int32)).to(end.device), longest)


def available(device: torch.device) -> bool:
    """Whether this torch and this device have it."""
    known = {"window_size", "scale"} <= _TAKES
    return known and device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def suits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels take operands of this type and these shapes, as `spanned` gives them."""
    width, compute = query.shape[3], operands(query[:, :, :0], key[:, :, :0], value[:, :, :0])[0].dtype
    fits = width == value.shape[3] and width <= WIDEST and width % WIDTHS == 0
    return fits and compute in TYPES and available(query.device)


def spanned(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float, window: int | None = None
) -> Tensor:
    """Softmax attention: query [1, H, T, D], key and value [1, G, T, D] → [1, T, H, D], H a multiple of G.

    In a sequence of its own a token's index is its position, so a window by index is one by position.
    """
    x = [part[0].transpose(0, 1) for part in operands(query, key, value)]
    groups = {"enable_gqa": True} if "enable_gqa" in _TAKES and query.shape[1] != key.shape[1] else {}
    # (left, right) are how many beside itself a query sees; -1 is all
    sides = (-1 if window is None else window - 1, 0)
    attend: Any = varlen_attn  # its keywords differ between versions
    with torch.autocast(query.device.type, enabled=False):
        bounds, longest = spans
        out: Tensor = attend(*x, bounds, bounds, longest, longest, scale=scale, window_size=sides, **groups)
    return out[None]
