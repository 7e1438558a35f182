"""The small operations of a layer in fewer passes over memory, with the numbers of the originals to rounding.

Norms, rotary embeddings and gates are a few products per element, but written out they read and write
their operands many times, and keep what they made for the backward pass. Here each is one function with
its own derivative, worked through in pieces that stay in the processor's cache, that keeps only what it
was given. Under autocast the result is rounded to the compute type at once: the product behind it would
round it there anyway.

Nothing is replaced by name alone: the original is asked first, on random numbers.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PIECE = 1 << 18  # bytes of a piece in float32, well inside the second-level cache
ALIKE = 1e-5  # relative, in float32


def fuse(model: nn.Module) -> list[str]:
    """Replace what is recognised in a transformers model; what was, in words.

    Where no gradient is asked for (generation, validation) the originals still run.
    """
    norms = sum(_fuse_norm(module) for module in model.modules())
    gates = sum(_fuse_gate(module) for module in model.modules())
    done = [f"{count} {what}" for count, what in ((norms, "norms"), (gates, "gates")) if count]
    module = sys.modules.get(type(model).__module__)
    if module is not None and _fuse_rotary(module):
        done.append("rotary embeddings")
    return done


def _training(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _compute_type(x: Tensor) -> torch.dtype:
    """Autocast's type where it is on and would round `x`, else that of `x`."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype == torch.float32:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _pieces(size: int, width: int) -> Iterator[slice]:
    """Slices of `size` rows of `width` numbers, each of about PIECE bytes."""
    step = max(1, PIECE // (4 * width))
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


# norms


class _Norm(torch.autograd.Function):
    """x [N, H] → x / rms(x) · scale, in the type `out`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, epsilon: float, out: torch.dtype) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_()
        inverse = inverse.div_(x.shape[-1]).add_(epsilon).rsqrt_()  # [N, 1]
        result = torch.empty_like(x, dtype=out)
        for rows in _pieces(*x.shape):
            result[rows] = (x[rows] * inverse[rows]).mul_(scale)
        ctx.save_for_backward(x, scale, inverse)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, inverse = ctx.saved_tensors
        to_x = torch.empty_like(x)
        to_scale = torch.zeros_like(scale, dtype=inverse.dtype)
        with torch.autocast(x.device.type, enabled=False):
            for rows in _pieces(*x.shape):
                normal = x[rows] * inverse[rows]
                above = pull[rows].to(inverse.dtype)
                to_scale += (above * normal).sum(0)
                above = above * scale
                mean = (above * normal).mean(-1, keepdim=True)
                to_x[rows] = above.sub_(normal.mul_(mean)).mul_(inverse[rows])
        return to_x, to_scale, None, None


def _norm(
    module: Any, original: Callable[[Tensor], Tensor], epsilon: float, plus: float, x: Tensor
) -> Tensor:
    if not _training(x, module.weight):
        return original(x)
    scale = module.weight.to(torch.promote_types(module.weight.dtype, torch.float32)) + plus
    flat: Tensor = _Norm.apply(x.reshape(-1, x.shape[-1]), scale, epsilon, _compute_type(x))  # type: ignore[no-untyped-call]
    return flat.view(x.shape)


@torch.no_grad()
def _fuse_norm(module: nn.Module) -> bool:
    """Replace the forward of one RMS norm over the last dimension, if that is what it computes."""
    weight = getattr(module, "weight", None)
    if "RMSNorm" not in type(module).__name__ or not isinstance(weight, Tensor) or weight.dim() != 1:
        return False
    epsilon = next(
        (getattr(module, n) for n in ("variance_epsilon", "eps", "epsilon") if hasattr(module, n)), None
    )
    if not isinstance(epsilon, float):
        return False
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(3)).to(weight.device)
    try:
        wanted = module(x)
    except (TypeError, RuntimeError):  # it takes something else beside the states
        return False
    normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    for plus in (0.0, 1.0):  # gemma's weights are kept as their distance from 1
        if _alike(normal * (weight + plus), wanted):
            module.forward = partial(_norm, module, module.forward, epsilon, plus)
            return True
    return False


# gates


class _Gate(torch.autograd.Function):
    """silu(gate) · up, all of one shape and type."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(pull * up, gate), F.silu(gate).mul_(pull)


def _gated(module: Any, original: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return original(x)
    gate, up = module.gate_proj(x), module.up_proj(x)
    product = _Gate.apply(gate, up) if gate.dtype == up.dtype else F.silu(gate) * up  # type: ignore[no-untyped-call]
    return module.down_proj(product)  # type: ignore[no-any-return]


@torch.no_grad()
def _fuse_gate(module: Any) -> bool:
    """Replace the forward of a gated layer with SiLU, if that is what it computes."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Linear) for part in parts):
        return False
    weight, width = module.gate_proj.weight, module.gate_proj.in_features
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(4)).to(weight.device)
    if weight.is_floating_point():  # a weight in four bits takes what comes
        x = x.to(weight.dtype)
    try:
        wanted = module(x)
    except (TypeError, RuntimeError, ValueError):  # it takes something else beside the states
        return False
    if not _alike(module.down_proj(F.silu(module.gate_proj(x)) * module.up_proj(x)), wanted):
        return False
    module.forward = partial(_gated, module, module.forward)
    return True


# rotary embeddings


class _Rotate(torch.autograd.Function):
    """x [B, H, T, D] rotated by angles whose cosines and sines are [B, 1, T, D]; in the type `out`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, out: torch.dtype) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, out, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(pull, cos, sin, pull.dtype, back=True), None, None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, out: torch.dtype, back: bool) -> Tensor:
    """The rotation, or its transpose; laid out in memory as `x` is."""
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, cos.dtype)
    result = torch.empty_like(x, dtype=out)
    for rows in _pieces(x.shape[2], x.shape[1] * x.shape[3]):
        part, c, s = x[:, :, rows].to(wide), cos[:, :, rows].to(wide), sin[:, :, rows].to(wide)
        first, second = part[..., :half], part[..., half:]
        turned = part * c
        if back:
            turned[..., :half].addcmul_(second, s[..., half:])
            turned[..., half:].addcmul_(first, s[..., :half], value=-1)
        else:
            turned[..., :half].addcmul_(second, s[..., :half], value=-1)
            turned[..., half:].addcmul_(first, s[..., half:])
        result[:, :, rows] = turned
    return result


def _rotary(
    original: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    unsqueeze_dim: int = 1,
) -> tuple[Tensor, Tensor]:
    if not _training(q, k) or unsqueeze_dim != 1 or q.shape[-1] != cos.shape[-1] or cos.requires_grad:
        return original(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    types = (_compute_type(x.new_empty(0, dtype=torch.promote_types(x.dtype, cos.dtype))) for x in (q, k))
    return tuple(_Rotate.apply(x, cos, sin, out) for x, out in zip((q, k), types, strict=True))  # type: ignore[no-untyped-call]


@torch.no_grad()
def _fuse_rotary(module: Any) -> bool:
    """Replace `apply_rotary_pos_emb` of a family's module, if it rotates halves, as most do."""
    original = getattr(module, "apply_rotary_pos_emb", None)
    if isinstance(original, partial) and original.func is _rotary:
        return True
    if original is None or list(inspect.signature(original).parameters) != [
        "q",
        "k",
        "cos",
        "sin",
        "unsqueeze_dim",
    ]:
        return False
    generator = torch.Generator().manual_seed(5)
    q, k, cos, sin = (
        torch.randn(shape, generator=generator)
        for shape in ((2, 4, 5, 8), (2, 2, 5, 8), (2, 5, 8), (2, 5, 8))
    )
    try:
        wanted = original(q, k, cos, sin, unsqueeze_dim=1)
    except (TypeError, RuntimeError, ValueError):  # another signature
        return False
    found = [_rotated(x, cos[:, None], sin[:, None], x.dtype, back=False) for x in (q, k)]
    if not all(_alike(a, b) for a, b in zip(found, wanted, strict=True)):
        return False
    module.apply_rotary_pos_emb = partial(_rotary, original)
    return True


def _alike(a: Tensor, b: Tensor) -> bool:
    return (
        isinstance(b, Tensor)
        and a.shape == b.shape
        and bool((a - b).abs().max() <= ALIKE * b.abs().max().clamp_min(1e-12))
    )
