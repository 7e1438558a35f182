"""LoRA through PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from imprint.errors import ModelError, nearest

# names that attention projections have in transformers' models
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "c_attn", "out_proj")


def add_lora(
    model: Any,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str | list[str],
    new_tokens: Sequence[int] = (),
    seed: int = 0,
) -> PeftModel:
    """`model` with low-rank adapters; everything else is frozen, but the embeddings of `new_tokens`.

    targets: `all-linear` (all but the head), `attention`, or names of modules.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=_targets(model, targets),
        task_type="CAUSAL_LM",
        bias="none",
        trainable_token_indices=_token_rows(model, new_tokens) if new_tokens else None,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)  # the adapters' first factors are drawn at random
        # peft 0.21 warns of what it then does right (Conv1D, experts, old names)
        warnings.simplefilter("ignore")
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(
                "the adapters do not fit this model",
                found=" ".join(str(error).split())[:400],
                fix="name other layers in lora.targets, or train in full (method=full)",
            ) from error
    assert isinstance(adapted, PeftModel)
    return adapted


def _targets(model: Any, targets: str | list[str]) -> str | list[str]:
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if _adaptable(module)}
    if targets == "all-linear":
        return "all-linear"
    wanted = [name for name in _ATTENTION if name in names] if targets == "attention" else list(targets)
    missing = [name for name in wanted if name not in names]
    if missing or not wanted:
        shown = ", ".join(sorted(names))
        guess = nearest(missing[0], names) if missing else None
        raise ModelError(
            "lora.targets names layers that this model does not have",
            found=", ".join(missing) or "no attention layer by a known name",
            expected=f"names among: {shown}",
            fix=f"lora.targets=[{guess}]" if guess else "lora.targets=all-linear",
        )
    return wanted


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _token_rows(model: Any, new_tokens: Sequence[int]) -> dict[str, list[int]]:
    """Which rows of the embedding, and of an untied head, are trained beside the adapters."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    modules = [embedding] if head.weight is embedding.weight else [embedding, head]
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(module)].rpartition(".")[2]: list(new_tokens) for module in modules}
