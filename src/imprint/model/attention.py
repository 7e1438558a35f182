"""Attention by `end`: query i sees key j iff j <= i < end[j].

Two implementations of the one rule, registered with transformers under their own names:
`reference` builds the whole mask, `segments` computes only the blocks that someone sees.
Windows and chunks are measured in positions, never in row indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from imprint.pack.row import positions

NAMES = {"reference": "imprint_reference", "segments": "imprint_segments"}


class View:
    """Who sees whom in one row; what is derived from `end` is made once, for all layers."""

    def __init__(self, end: Tensor):
        self.end = end
        self.position = positions(end)
        self._masks: dict[tuple[Any, ...], Tensor | None] = {}
        self._segments: list[tuple[int, list[int]]] | None = None

    def allowed(self, window: int | None = None, chunk: int | None = None) -> Tensor:
        """bool [T, T]: row i, column j: does i see j?"""
        key = ("all", window, chunk)
        if key not in self._masks:
            index = torch.arange(len(self.end), device=self.end.device)
            seen = (index[None, :] <= index[:, None]) & (index[:, None] < self.end[None, :])
            self._masks[key] = seen & _near(self.position, self.position, window, chunk)
        mask = self._masks[key]
        assert mask is not None
        return mask

    @property
    def segments(self) -> list[tuple[int, list[int]]]:
        """(length, earlier segments that it sees) of each run of tokens that the same later ones see."""
        if self._segments is None:
            ends = self.end.tolist()
            starts = [0] + [i for i in range(1, len(ends)) if ends[i - 1] <= i or ends[i - 1] != ends[i]]
            stops = [*starts[1:], len(ends)]
            visible: list[int] = []
            self._segments = []
            for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
                while visible and ends[starts[visible[-1]]] <= start:
                    visible.pop()
                self._segments.append((stop - start, list(visible)))
                visible.append(number)
        return self._segments

    def segment_mask(self, number: int, window: int | None, chunk: int | None) -> Tensor | None:
        """bool [n, m + n] for a segment behind m visible tokens; None where plain causal attention does."""
        key = (number, window, chunk)
        if key not in self._masks:
            length, before = self.segments[number]
            offsets = self._offsets
            own = torch.arange(offsets[number], offsets[number] + length, device=self.end.device)
            pieces = [
                torch.arange(offsets[b], offsets[b] + self.segments[b][0], device=self.end.device)
                for b in before
            ]
            keys = torch.cat([*pieces, own])
            near = _near(self.position[own], self.position[keys], window, chunk)
            plain = not before and bool(near.tril().sum() == length * (length + 1) // 2)
            self._masks[key] = None if plain else (keys[None, :] <= own[:, None]) & near
        return self._masks[key]

    @property
    def _offsets(self) -> list[int]:
        offsets = [0]
        for length, _ in self.segments:
            offsets.append(offsets[-1] + length)
        return offsets


def _near(query: Tensor, key: Tensor, window: int | None, chunk: int | None) -> Tensor:
    """bool [q, k]: is the key within the query's sliding window and chunk, by position?"""
    near = torch.ones(len(query), len(key), dtype=torch.bool, device=query.device)
    if window is not None:
        near &= query[:, None] - key[None, :] < window
    if chunk is not None:
        near &= query[:, None] // chunk == key[None, :] // chunk
    return near


def _rules(module: nn.Module, sliding_window: int | None) -> tuple[int | None, int | None]:
    """(window, chunk) of a layer. llama4's chunk does not arrive as a keyword: the config has it."""
    config: Any = getattr(module, "config", None)
    chunk = getattr(config, "attention_chunk_size", None)
    kinds, layer = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    if chunk is not None and (kinds is None or layer is None or kinds[layer] != "chunked_attention"):
        chunk = None
    return sliding_window, chunk


@dataclass(frozen=True, slots=True)
class Rule:
    """How one layer attends, beside who sees whom."""

    scale: float
    dropout: float = 0.0
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None  # gpt_oss: a learned place per head that takes weight and gives nothing


def _dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rule: Rule) -> Tensor:
    """Softmax attention written out: query [1, H, q, D], mask bool [q, k] → [1, H, q, D]."""
    scores = query @ key.transpose(-1, -2) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    scores = scores.masked_fill(~mask, -math.inf)
    if rule.sinks is not None:
        sink = rule.sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    if rule.sinks is not None:
        weights = weights[..., :-1]
    return F.dropout(weights, rule.dropout) @ value


def _for_transformers(compute: Callable[[Tensor, Tensor, Tensor, View, Rule], Tensor]) -> Callable[..., Any]:
    """`compute` as transformers calls an attention function; [1, T, H, D] comes out."""

    @wraps(compute)
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        end: View | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        if end is None:
            raise RuntimeError(
                "imprint's attention was called without `end`: rows go through RowModel, "
                "generation through `generating(model)`"
            )
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        window, chunk = _rules(module, sliding_window)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        rule = Rule(scale, dropout, window, chunk, softcap, s_aux)
        return compute(query, key, value, end, rule).transpose(1, 2).contiguous(), None

    return attend


@_for_transformers
def reference(query: Tensor, key: Tensor, value: Tensor, view: View, rule: Rule) -> Tensor:
    """The obvious way: the whole [T, T] mask. query [1, H, T, D] → [1, H, T, D]."""
    return _dense(query, key, value, view.allowed(rule.window, rule.chunk), rule)


@_for_transformers
def segments(query: Tensor, key: Tensor, value: Tensor, view: View, rule: Rule) -> Tensor:
    """Only what is seen: each segment against itself and the segments before it on its path."""
    lengths = [length for length, _ in view.segments]
    queries, keys, values = (x.split(lengths, dim=2) for x in (query, key, value))
    outs = []
    for number, (length, before) in enumerate(view.segments):
        mask = view.segment_mask(number, rule.window, rule.chunk)
        k = torch.cat([*(keys[b] for b in before), keys[number]], dim=2) if before else keys[number]
        v = torch.cat([*(values[b] for b in before), values[number]], dim=2) if before else values[number]
        q = queries[number]
        if rule.softcap is None and rule.sinks is None:
            causal = mask is None
            out = F.scaled_dot_product_attention(q, k, v, mask, rule.dropout, causal, scale=rule.scale)
        else:
            if mask is None:
                mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
            out = _dense(q, k, v, mask, rule)
        outs.append(out)
    return torch.cat(outs, dim=2)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


for _name, _function in (("reference", reference), ("segments", segments)):
    AttentionInterface.register(NAMES[_name], _function)
    AttentionMaskInterface.register(NAMES[_name], _no_mask)


def own_attention(base: Any) -> None:
    """Switch a transformers model from `end` back to transformers' own attention."""
    if base.config._attn_implementation in NAMES.values():
        base.set_attn_implementation("sdpa" if getattr(base, "_supports_sdpa", True) else "eager")


def base_model(model: Any) -> Any:
    """The transformers model below any PEFT adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def generating(model: nn.Module) -> Iterator[None]:
    """Generation inside this block runs on transformers' own attention, in evaluation mode.

    Without it, a left-padded batch would silently generate other text.
    """
    base = base_model(model)
    before, training = base.config._attn_implementation, model.training
    own_attention(base)
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        if before in NAMES.values():
            base.set_attn_implementation(before)
