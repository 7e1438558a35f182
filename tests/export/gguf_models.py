"""Tiny models of the families that GGUF files are written of, and how far two models are apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny import tiny_model

TEXT = (
    "<|im_start|>user\nWhat colour is the sea, 123 or 4567?  I'll go.<|im_end|>\n<|im_start|>assistant\nIt is"
)
_FULL = {"rope_type": "default", "rope_theta": 1e6}
_LOCAL = {"rope_type": "default", "rope_theta": 1e4}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

# a name → what differs from the usual tiny model; `kind` is the architecture, the name itself by default
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-3.1": dict(
        kind="llama", rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, **_LLAMA3}
    ),
    "llama-yarn": dict(
        kind="llama",
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64
        },
    ),
    "llama-linear": dict(
        kind="llama", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    ),
    "llama-biases": dict(kind="llama", attention_bias=True, mlp_bias=True),
    "llama-tied": dict(kind="llama", tie_word_embeddings=True, head_dim=24),
    "mistral": dict(sliding_window=None),
    "qwen2": dict(use_sliding_window=False, layer_types=None, head_dim=16),
    "qwen3": dict(tie_word_embeddings=True),
    "gemma": {},
    "gemma2": dict(query_pre_attn_scalar=32),
    "gemma3_text": dict(
        num_hidden_layers=7, layer_types=None, sliding_window=8, query_pre_attn_scalar=32,
        rope_parameters={"full_attention": _FULL, "sliding_attention": _LOCAL},
    ),
}  # fmt: skip


def write_model(folder: Path, tokenizer: Path, family: str = "llama", spare: int = 3, **extra: Any) -> Path:
    """A tiny model with the tokenizer of another folder, its embedding `spare` rows longer.

    Its weights are small enough for 8 bits to matter little, its attention sharp enough to matter.
    """
    changes = {**FAMILIES[family], **extra}
    words = AutoTokenizer.from_pretrained(tokenizer)
    sizes = dict(
        vocab_size=len(words) + spare, hidden_size=64, intermediate_size=96, head_dim=32, initializer_range=0.04,
        pad_token_id=None, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    model = tiny_model(changes.pop("kind", family), **{**sizes, **changes})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ids_of(folder: Path, text: str = TEXT) -> list[int]:
    return list(AutoTokenizer.from_pretrained(folder)(text)["input_ids"])


def logprobs(model: Any, ids: list[int]) -> Tensor:
    """[T, V]"""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)


def apart(reference: Tensor, other: Tensor) -> float:
    """The largest difference of log-probabilities among the reference's five likeliest tokens at each place."""
    likeliest = reference.topk(5).indices
    return float((reference - other).abs().gather(-1, likeliest).max())
