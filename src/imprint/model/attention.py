"""Attention by `end`: query i sees key j iff j <= i < end[j].

Implementations of the one rule, registered with transformers under their own names: `reference`
builds the whole mask, `tiles` computes only the blocks that someone sees, `flex` does so in one kernel
on CUDA, `varlen` takes rows without shared prompts as sequences. Windows and chunks are measured in
positions, never in row indices.
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

from imprint.model.flex import flexed, make_blocks
from imprint.model.tiles import tiled
from imprint.model.varlen import make_spans, spanned, suits
from imprint.model.view import View

NAMES = {name: f"imprint_{name}" for name in ("reference", "tiles", "flex", "varlen")}


def rules_of(module: nn.Module, sliding_window: int | None) -> tuple[int | None, int | None]:
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


def for_transformers(compute: Callable[[Tensor, Tensor, Tensor, View, Rule], Tensor]) -> Callable[..., Any]:
    """`compute`, which makes [1, T, H, D], as transformers calls an attention function."""

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
        window, chunk = rules_of(module, sliding_window)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        rule = Rule(scale, dropout, window, chunk, softcap, s_aux)
        return compute(query, key, value, end, rule), None

    attend.compute = compute  # type: ignore[attr-defined]
    return attend


@for_transformers
def reference(query: Tensor, key: Tensor, value: Tensor, view: View, rule: Rule) -> Tensor:
    """The obvious way: the whole [T, T] mask."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    out = _dense(query, key, value, view.allowed(rule.window, rule.chunk), rule)
    return out.transpose(1, 2).contiguous()


@for_transformers
def tiles(query: Tensor, key: Tensor, value: Tensor, view: View, rule: Rule) -> Tensor:
    """Only blocks that someone sees; with dropout, whose mask the backward pass needs too, the obvious way."""
    if rule.dropout:
        return reference.compute(query, key, value, view, rule)  # type: ignore[attr-defined,no-any-return]
    seen = view.tiles(rule.window, rule.chunk)
    return tiled(query, key, value, seen, rule.scale, rule.softcap, rule.sinks)


@for_transformers
def flex(query: Tensor, key: Tensor, value: Tensor, view: View, rule: Rule) -> Tensor:
    """Only blocks that someone sees, in one kernel; with dropout the obvious way."""
    if rule.dropout:
        return reference.compute(query, key, value, view, rule)  # type: ignore[attr-defined,no-any-return]
    limits = rule.window, rule.chunk
    blocks = view.once(("flex", *limits), lambda: make_blocks(view.end, view.position, *limits))
    return flexed(query, key, value, blocks, rule.scale, rule.softcap, rule.sinks)


@for_transformers
def varlen(query: Tensor, key: Tensor, value: Tensor, view: View, rule: Rule) -> Tensor:
    """Rows without shared prompts as sequences laid end to end; others, and what those kernels lack, as `flex`."""
    if not rule.dropout and rule.softcap is None and rule.sinks is None and suits(query, key, value):
        spans = view.once(("varlen", rule.chunk), lambda: make_spans(view.end, rule.chunk))
        if spans is not None:
            return spanned(query, key, value, spans, rule.scale, rule.window)
    return flex.compute(query, key, value, view, rule)  # type: ignore[attr-defined,no-any-return]


def no_mask(*_: Any, **__: Any) -> None:
    return None


for _name, _function in (("reference", reference), ("tiles", tiles), ("flex", flex), ("varlen", varlen)):
    AttentionInterface.register(NAMES[_name], _function)
    AttentionMaskInterface.register(NAMES[_name], no_mask)


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
