"""What a GGUF file says of an architecture: the keys llama.cpp reads, made from a model's config.

llama.cpp builds each architecture from a few numbers and fixes the rest in its code. What a config may
say beyond that (a window where llama.cpp has none, another activation) would be lost without a word, so
it is refused here, or said where it matters only beyond a length.
Key names and what llama.cpp fixes: gguf.constants, llama.cpp's src/models and conversion folders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.errors import ModelError

# model_type of the config → architecture of llama.cpp
ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
GEMMA = ("gemma", "gemma2", "gemma3")
SWA_PERIOD = {"gemma2": 2, "gemma3": 6}  # every n-th layer sees all, the others a window: fixed in llama.cpp
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, whose attention scale differs


@dataclass(frozen=True)
class Shape:
    """An architecture as llama.cpp knows it, and the keys and values that describe one model of it."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    keys: Mapping[str, int | float | str]  # below `<architecture>.`
    rope_factors: tuple[float, ...] | None  # [head_dim / 2] divisors of the rotary frequencies (llama 3.1+)
    notes: tuple[str, ...]


def read_shape(folder: Path) -> Shape:
    """The shape of the model in a folder. Raises ModelError where llama.cpp would compute something else."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder)
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        extra = " (its text model alone can be)" if config.model_type == "gemma3" else ""
        raise ModelError(
            f"a {config.model_type} model cannot be written as GGUF{extra}",
            where=f"{folder.name}/config.json: model_type",
            found=config.model_type,
            expected=", ".join(ARCHITECTURES),
            fix="serve the exported folder itself (--to hf), or convert it with llama.cpp's own script",
        )
    _refuse_what_is_fixed(config, architecture, folder)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    context, notes = _context(config, architecture)
    keys: dict[str, int | float | str] = {
        "context_length": context,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": head_dim,
    }
    rope, factors = _rotary(config, architecture, head_dim, folder)
    keys |= rope
    if architecture in SWA_PERIOD:
        keys["attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        keys["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        keys["final_logit_softcapping"] = float(config.final_logit_softcapping)
    return Shape(
        architecture,
        config.num_hidden_layers,
        heads,
        int(keys["attention.head_count_kv"]),
        head_dim,
        config.vocab_size,
        bool(config.tie_word_embeddings),
        keys,
        factors,
        notes,
    )


def _context(config: Any, architecture: str) -> tuple[int, tuple[str, ...]]:
    """The context that llama.cpp computes rightly: where it has no window, not beyond the model's window."""
    context: int = config.max_position_embeddings
    window: int | None = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    slides = (types is None or "sliding_attention" in types) and architecture not in SWA_PERIOD
    if config.model_type in ("qwen2", "qwen3") and not getattr(config, "use_sliding_window", False):
        slides = False
    if window is None or not slides or window >= context:
        return context, ()
    note = (
        f"context length {window} instead of {context}: the model looks back {window} tokens, "
        f"llama.cpp's {architecture} has no window and would compute otherwise beyond"
    )
    return window, (note,)


def _rotary(
    config: Any, architecture: str, head_dim: int, folder: Path
) -> tuple[dict[str, int | float | str], tuple[float, ...] | None]:
    """The keys of rotary positions, and the factors of llama 3.1's scaling."""
    rope: dict[str, Any] = dict(config.rope_parameters)
    keys: dict[str, int | float | str] = {}
    if "full_attention" in rope:  # gemma 3: one for layers that see all, one for those with a window
        local = rope.get("sliding_attention", rope["full_attention"])
        keys["rope.freq_base_swa"] = float(local["rope_theta"])
        if local.get("rope_type", "default") != "default":
            raise _fixed(folder, "rope_parameters.sliding_attention", local["rope_type"], "default")
        rope = dict(rope["full_attention"])
    keys["rope.freq_base"] = float(rope["rope_theta"])
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise _fixed(folder, "partial_rotary_factor", rope["partial_rotary_factor"], "1.0")
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return keys, None
    if kind == "linear":
        return keys | {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}, None
    if kind == "llama3" and architecture == "llama":
        return keys, _llama3_factors(rope, head_dim)
    if kind == "yarn" and not {"mscale", "mscale_all_dim", "attention_factor"} & {
        key for key, value in rope.items() if value is not None
    }:
        return keys | {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": int(
                rope.get("original_max_position_embeddings") or config.max_position_embeddings
            ),
            "rope.scaling.yarn_beta_fast": float(rope.get("beta_fast") or 32.0),
            "rope.scaling.yarn_beta_slow": float(rope.get("beta_slow") or 1.0),
        }, None
    raise _fixed(folder, "rope_parameters", str(rope), "default, linear, yarn without mscale, llama3 (llama)")


def _llama3_factors(rope: Mapping[str, Any], head_dim: int) -> tuple[float, ...]:
    """By what each rotary frequency is divided, [head_dim / 2]: Llama 3.1's rule.

    Waves longer than the trained context / low_freq_factor are stretched by `factor`, those shorter than
    context / high_freq_factor stay, between the two it goes over smoothly.
    """
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        smooth = min(1.0, max(0.0, (context / wave - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


def _fixed(folder: Path, key: str, found: object, expected: str) -> ModelError:
    return ModelError(
        "llama.cpp would compute something else from this model",
        where=f"{folder.name}/config.json: {key}",
        found=str(found),
        expected=f"{expected}: what llama.cpp's code fixes for this architecture",
        fix="serve the exported folder itself: imprint export RUN --to hf",
    )


def _refuse_what_is_fixed(config: Any, architecture: str, folder: Path) -> None:
    """Raise ModelError for settings that a GGUF file cannot carry."""
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    gelu = ("gelu_pytorch_tanh", "gelu", "gelu_new") if architecture == "gemma" else ("gelu_pytorch_tanh",)
    wanted = gelu if architecture in GEMMA else ("silu", "swish")
    if activation not in wanted:
        raise _fixed(folder, "hidden_act", activation, " or ".join(wanted))
    if architecture in GEMMA and not config.tie_word_embeddings:
        raise _fixed(folder, "tie_word_embeddings", "false", "true")
    if architecture in ("qwen2", "qwen3", *GEMMA) and getattr(config, "attention_bias", False):
        raise _fixed(folder, "attention_bias", "true", "false")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if architecture == "qwen2" and head_dim * config.num_attention_heads != config.hidden_size:
        raise _fixed(folder, "head_dim", head_dim, str(config.hidden_size // config.num_attention_heads))
    if architecture == "gemma3":
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(config, key, None):
                raise _fixed(folder, key, getattr(config, key), "null")
        if getattr(config, "use_bidirectional_attention", False):
            raise _fixed(folder, "use_bidirectional_attention", "true", "false")
    if architecture not in SWA_PERIOD:
        return
    period, layers = SWA_PERIOD[architecture], config.num_hidden_layers
    pattern = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]
    if list(config.layer_types) != pattern:
        raise _fixed(folder, "layer_types", config.layer_types, f"every {period}th layer full_attention")
    if layers == _LARGEST_GEMMA[architecture]:
        head_dim = config.hidden_size // config.num_attention_heads
    if config.query_pre_attn_scalar != head_dim:
        raise _fixed(folder, "query_pre_attn_scalar", config.query_pre_attn_scalar, str(head_dim))
