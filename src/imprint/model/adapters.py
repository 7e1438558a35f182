"""LoRA and its kin (rsLoRA, DoRA, PiSSA) through PEFT."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from imprint.errors import ModelError, nearest


def add_lora(
    model: Any,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str | list[str],
    new_tokens: Sequence[int] = (),
    seed: int = 0,
    scaling: str = "alpha/rank",
    dora: bool = False,
    init: str = "zero",
) -> PeftModel:
    """`model` with low-rank adapters; everything else is frozen, but the embeddings of `new_tokens`.

    targets: `all-linear` (all but the head), `attention`, or names of modules. With init `pissa` the
    adapted matrices of `model` lose what the adapters begin with; see `for_original_base`.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        use_rslora=scaling == "rslora",
        use_dora=dora,
        init_lora_weights=PISSA if init == "pissa" else True,  # type: ignore[arg-type]
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
    if init == "pissa":
        factors: Any = first_factors(adapted, rank)
        adapted.imprint_first_factors = factors
    return adapted


def first_factors(model: PeftModel, rank: int) -> dict[str, Tensor]:
    """What PiSSA's adapters began with, by parameter; ModelError where a matrix is smaller than the rank."""
    factors = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if _is_factor(name)}
    for name, value in factors.items():
        if rank not in value.shape:
            raise ModelError(
                "lora.rank is larger than a matrix that PiSSA should take apart",
                where=name.split(".lora_")[0].removeprefix("base_model.model."),
                found=f"{min(value.shape)} directions",
                expected=f"at least lora.rank, {rank}",
                fix=f"lora.rank={min(value.shape)}, lora.init=zero, or leave this layer out of lora.targets",
            )
    return factors


def _is_factor(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def for_original_base(
    tensors: dict[str, Tensor], config: dict[str, Any], first: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """PiSSA's adapter as a plain one of the original base: (tensors, adapter_config) with twice the rank.

    The run trained W - s·B₀A₀ + s·BA, where s is the scale and the first two terms are frozen. On W that
    is s·[B, -B₀]·[A; A₀] (arXiv 2404.02948, appendix C). Twice the rank divides the scale: alpha makes up for it.
    """
    converted = dict(tensors)
    for name, began in first.items():
        ours = tensors[name]
        if ".lora_A." in name:
            converted[name] = torch.cat([ours, began.to(ours)], 0)
        else:
            converted[name] = torch.cat([ours, -began.to(ours)], 1)
    factor = 2**0.5 if config["use_rslora"] else 2
    changed = {"r": 2 * config["r"], "lora_alpha": factor * config["lora_alpha"], "init_lora_weights": True}
    return converted, config | changed


def _targets(model: Any, targets: str | list[str]) -> str | list[str]:
    """What PEFT's `target_modules` takes; ModelError where a name fits no layer."""
    if targets == "all-linear":
        return "all-linear"
    layers = [name for name, module in model.named_modules() if _adaptable(module)]
    if targets == "attention":
        # by where they stand: gpt2 has a c_proj in attention and another one outside
        outside = {name.rpartition(".")[2] for name in layers if not _in_attention(name)}
        inside = {
            ".".join(name.split(".")[-2 if name.rpartition(".")[2] in outside else -1 :])
            for name in layers
            if _in_attention(name)
        }
        if inside:
            return sorted(inside)
    wanted = [] if isinstance(targets, str) else targets
    missing = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if missing or not wanted:
        names = {name.rpartition(".")[2] for name in layers}
        guess = nearest(missing[0], names) if missing else None
        raise ModelError(
            "lora.targets names layers that this model does not have",
            found=", ".join(missing) or "no linear layer inside an attention module",
            expected=f"names among: {', '.join(sorted(names))}",
            fix=f"lora.targets=[{guess}]" if guess else "lora.targets=all-linear",
        )
    return wanted


def _in_attention(name: str) -> bool:
    parent = name.rpartition(".")[0].rpartition(".")[2]
    return "attn" in parent or "attention" in parent


def adapted_layers(model: PeftModel) -> str:
    """Which layers have an adapter and which linear ones have none, in one line for the log."""
    base: Any = model.get_base_model()
    head = base.get_output_embeddings()
    adapted: Counter[str] = Counter()
    bare: Counter[str] = Counter()
    for name, module in model.named_modules():
        leaf = name.removesuffix(".base_layer").rpartition(".")[2]  # PEFT's name for what it wraps
        if hasattr(module, "lora_A"):
            adapted[leaf] += 1
        elif _adaptable(module) and module is not head and not _part_of_adapter(name):
            bare[leaf] += 1
    settings: Any = next(iter(model.peft_config.values()))
    kinds = {
        "rsLoRA": settings.use_rslora,
        "DoRA": settings.use_dora,
        "PiSSA": settings.init_lora_weights == PISSA,
    }
    kind = "".join(f" ({name})" for name, on in kinds.items() if on)
    text = f"adapters{kind} on {_counted(adapted)}"
    return text + (f"; none on {_counted(bare)}" if bare else "")


def _part_of_adapter(name: str) -> bool:
    return "lora_" in name or name.endswith("base_layer")


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{name} × {count}" for name, count in names.items())


# Halko's randomised decomposition, drawn by the seed: of a 4096 × 4096 matrix it takes seconds, the whole one a
# minute. What it misses stays in the frozen rest, so nothing is lost.
PISSA = "pissa_niter_16"


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _token_rows(model: Any, new_tokens: Sequence[int]) -> dict[str, list[int]]:
    """Which rows of the embedding, and of an untied head, are trained beside the adapters."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    modules = [embedding] if head.weight is embedding.weight else [embedding, head]
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(module)].rpartition(".")[2]: list(new_tokens) for module in modules}
