"""Which attention a run takes: the fastest that this device has and that is right on this model's layers."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from imprint.errors import RunError
from imprint.model import attention
from imprint.model.attention import Rule, for_transformers, no_mask, reference
from imprint.model.load import use_attention
from imprint.model.rowmodel import RowModel
from imprint.model.varlen import available
from imprint.model.view import View
from imprint.pack.row import Row

TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 1e-2,
    torch.float16: 1e-2,
}  # |ours - reference| / |reference|
WORDS = {
    "tiles": "computes only what is seen",
    "flex": "computes only what is seen, in one kernel (FlexAttention)",
    "varlen": "flash attention for rows without shared prompts, FlexAttention for others",
}
_NOTING = "imprint_noting"
_noted: ContextVar[dict[tuple[Any, ...], Layer]] = ContextVar("_noted")


class Choice(NamedTuple):
    """An attention by its name in the recipe, and why it was taken."""

    name: str
    reason: str


class Layer(NamedTuple):
    """What tells one kind of attention layer from another."""

    heads: int
    groups: int
    width: int
    value_width: int
    rule: Rule


def choose_attention(model: RowModel, wanted: str, compute: torch.dtype, separate: bool = False) -> Choice:
    """What the recipe wants, or for `auto` the best that works on this model's layers; the model is set to it.

    `separate`: rows will be single turns in the model's own attention, so nothing needs to be tried.
    RunError where what the recipe asks for does not work here.
    """
    name = best(next(model.parameters()).device) if wanted == "auto" else wanted
    reason = WORDS.get(name, "as the recipe says")
    if name in ("flex", "varlen") and not separate:
        fault = trial(model, name, compute)
        if fault and wanted != "auto":
            raise RunError(
                f"attention={wanted} does not work with this model on this machine",
                found=fault,
                fix="attention=auto takes another way, or attention=tiles",
            )
        if fault:
            name, reason = "tiles", f"{WORDS['tiles']}; {name} does not work here: {fault}"
    use_attention(model.base, name)
    return Choice(name, reason)


def best(device: torch.device) -> str:
    """What is fastest on a device, where it works."""
    if device.type != "cuda":
        return "tiles"
    return "varlen" if available(device) else "flex"


def trial(model: RowModel, name: str, compute: torch.dtype) -> str:
    """What is wrong with an attention on the layers of this model; nothing where it agrees with the reference.

    One row without shared prompts and one with, forward and backward, in the compute type, for each kind of layer.
    """
    device = next(model.parameters()).device
    for layer in layers(model):
        for end in _rows(device):
            try:
                off = difference(name, layer, end, compute)
            except Exception as error:  # a compiler's, a kernel's or a driver's: what it says is handed on
                return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if not off <= TOLERANCE[compute]:
                return f"it is off by {off:.1e} (relative, at most {TOLERANCE[compute]:.0e})"
    return ""


def layers(model: RowModel) -> list[Layer]:
    """The kinds of attention layers that a short row meets; none where the model does not take rows."""
    device = next(model.parameters()).device
    nothing = torch.empty(0, dtype=torch.int64)
    row = Row(torch.arange(8) % 4, torch.full((8,), 8), nothing, nothing, torch.empty(0)).to(device)
    before = model.base.config._attn_implementation
    model.base.set_attn_implementation(_NOTING)
    token = _noted.set({})
    try:
        with torch.no_grad():
            model.hidden(row)
        return list(_noted.get().values())
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return []  # the checks of layouts find this out, and say so
    finally:
        _noted.reset(token)
        model.base.set_attn_implementation(before)


@for_transformers
def noting(query: Tensor, key: Tensor, value: Tensor, view: View, rule: Rule) -> Tensor:
    """The reference, which notes each kind of layer that calls it."""
    sinks = None if rule.sinks is None else rule.sinks.detach()
    shape = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
    rule = replace(rule, dropout=0.0, sinks=sinks)
    kind = (*shape, rule.scale, rule.window, rule.chunk, rule.softcap, sinks is None)
    _noted.get().setdefault(kind, Layer(*shape, rule))
    return reference.compute(query, key, value, view, rule)  # type: ignore[attr-defined,no-any-return]


AttentionInterface.register(_NOTING, noting)
AttentionMaskInterface.register(_NOTING, no_mask)


def difference(name: str, layer: Layer, end: Tensor, compute: torch.dtype) -> float:
    """How far an attention is from the reference in float32, relative: the worst of its result and its gradients."""
    generator = torch.Generator().manual_seed(len(end))
    shapes = [(layer.heads, layer.width), (layer.groups, layer.width), (layer.groups, layer.value_width)]
    drawn = [torch.randn(1, heads, len(end), width, generator=generator) for heads, width in shapes]
    pull = torch.randn(1, len(end), layer.heads, layer.value_width, generator=generator)
    results: list[list[Tensor]] = []
    attends: list[Any] = [getattr(attention, name), reference]
    for attend, dtype in zip(attends, (compute, torch.float32), strict=True):
        x = [part.to(end.device, compute).to(dtype).requires_grad_() for part in drawn]
        with torch.enable_grad(), torch.autocast(end.device.type, enabled=False):
            out = attend.compute(*x, View(end), layer.rule)
            results.append([out.detach(), *torch.autograd.grad(out, x, pull.to(out))])
    return max(
        float((ours.float() - theirs).norm() / theirs.norm()) for ours, theirs in zip(*results, strict=True)
    )


def _rows(device: torch.device) -> list[Tensor]:
    """The `end` of a row of turns without shared prompts, and of one with."""
    flat = [130] * 130 + [300] * 170
    tree = [260] * 100 + [180] * 80 + [260] * 80 + [300] * 40
    return [torch.tensor(end, device=device) for end in (flat, tree)]
