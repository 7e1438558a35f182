"""Rotary scaling that looks at the longest position of a batch: where it changes, and what that forbids.

`longrope` has two sets of frequencies: turns of up to a limit are turned by the one, longer ones by the
other, so rows hold turns of one side only. `dynamic` has others for each length beyond the limit, so
such a turn has a row of its own.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from imprint.pack.sides import Sides


def sides_of(base: Any) -> Sides | None:
    """Which turns may lie in one row, by the model's config; None where all may.

    The limit counts the tokens that go through the model, as transformers 5 counts them.
    """
    config = base.config.get_text_config()
    found = []
    for rope in ropes_of(config):
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "longrope":
            limit = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            found.append(Sides(int(limit or config.max_position_embeddings), alone=False))
        elif kind == "dynamic":
            found.append(Sides(int(config.max_position_embeddings), alone=True))
    # two limits in one model: the lower one, and beyond it each turn alone, is right for both
    return (
        Sides(min(s.limit for s in found), any(s.alone for s in found) or len(set(found)) > 1)
        if found
        else None
    )


def ropes_of(config: Any) -> list[dict[str, Any]]:
    """The rotary parameters of a config: one set, or one for each kind of layer (gemma 3)."""
    ropes = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [rope for rope in ropes.values() if isinstance(rope, dict)]
    return nested or [ropes]


def rotate_each_row_afresh(base: nn.Module) -> None:
    """Let dynamic scaling forget, before each forward pass, how long the rows before it were.

    transformers 5.23 keeps the frequencies of the longest sequence it has met until one comes that is
    shorter than the limit: the same turn would be turned otherwise behind another one.
    """
    for module in base.modules():
        kinds = getattr(module, "rope_type", None)
        names = list(kinds.values()) if isinstance(kinds, dict) else [kinds]
        if "dynamic" in names and hasattr(module, "original_max_seq_len"):
            module.register_forward_pre_hook(_forget)


def _forget(module: Any, _: Any) -> None:
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        setattr(module, name, module.original_max_seq_len)
    buffers = dict(module.named_buffers(recurse=False))
    for name, value in buffers.items():
        original = name.replace("inv_freq", "original_inv_freq")
        if name.endswith("inv_freq") and "original" not in name and original in buffers:
            module.register_buffer(name, buffers[original].to(value.device), persistent=False)
