"""A PEFT adapter read as changes to the base's parameters, strictly: every tensor of it must fit.

PEFT itself is asked what each tensor means: its modules are built around a base without memory (on the
meta device), so ranks by pattern, rsLoRA's scale, transposed layers and experts are as they are in training.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imprint.errors import ModelError, nearest
from imprint.export.changes import Added, Change, Experts, LowRank, Replaced, TokenRows
from imprint.export.tensors import read_header

_MADE_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "orthogonal")
# variants of LoRA whose arithmetic is none of LowRank's
_OTHERS = (
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "velora_config",
    "kasa_config",
    "monteclora_config",
    "layer_replication",
    "megatron_config",
)


@dataclass(frozen=True, slots=True)
class Adapter:
    """The changes by parameter name in memory, and which of them are one change to two tied parameters."""

    changes: dict[str, Change]
    tied: frozenset[str]  # names of parameters that share the change of the embedding they are tied to


def read_adapter(folder: Path, model: Any) -> Adapter:
    """The adapter in `folder` as changes to `model`, a base on the meta device (which is wrapped in place).

    Raises ModelError where a tensor of the adapter fits nothing, where one is missing, or where its method is unknown.
    """
    file = folder / "adapter_model.safetensors"
    config = _config(folder)
    if not file.is_file():
        raise ModelError(
            "the adapter has no weights",
            where=str(folder),
            expected="adapter_model.safetensors beside adapter_config.json",
            fix="copy the adapter anew from where it came from",
        )
    wrapped = _wrap(model, config, folder)
    entries = read_header(file)
    taken: set[str] = set()
    wanted: list[str] = []

    def take(name: str) -> Tensor | None:
        wanted.append(name)
        if name not in entries:
            return None
        value = entries[name].read()
        taken.add(name)
        return value.float() if value.is_floating_point() else value

    changes: dict[str, Change] = {}
    tied: set[str] = set()
    for name, change in _changes(wrapped, take, tied):
        if name in changes:
            raise ModelError(
                "the adapter changes a parameter twice",
                where=str(folder),
                found=name,
                expected="one kind of change for each parameter",
            )
        changes[name] = change
    _be_strict(file, entries.keys(), taken, wanted)
    return Adapter(changes, frozenset(tied))


def copy_adapter(folder: Path, out: Path, model: Any) -> None:
    """Copy an adapter with its tokenizer into `out`; ModelError where it does not fit `model` (see read_adapter)."""
    read_adapter(folder, model)
    for path in sorted(folder.iterdir()):
        if path.name in ("manifest.json", "README.md"):
            continue
        if path.is_dir():
            shutil.copytree(path, out / path.name)
        else:
            shutil.copyfile(path, out / path.name)


def _config(folder: Path) -> Any:
    from peft import LoraConfig

    path = folder / "adapter_config.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        kind = facts["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError("adapter_config.json cannot be read", where=str(path), found=str(error)) from error
    odd = [name for name in _OTHERS if facts.get(name)]
    start = facts.get("init_lora_weights")
    if kind != "LORA" or odd:
        raise ModelError(
            "this kind of adapter cannot be merged here",
            where=str(path),
            found=", ".join(odd) or f"peft_type {kind}",
            expected="LoRA, with or without rank-stabilised scale or DoRA",
            fix="merge it with the tool that made it",
        )
    if isinstance(start, str) and start.lower().startswith(_MADE_FROM_BASE):
        raise ModelError(
            "this adapter belongs to a changed base model",
            where=str(path),
            found=f"init_lora_weights: {start}, which takes the adapter's first values out of the base",
            expected="an adapter that was converted to an ordinary one when it was saved",
            fix="save it with PEFT's path_initial_model_for_weight_conversion",
        )
    return LoraConfig.from_pretrained(str(folder))


def _wrap(model: nn.Module, config: Any, folder: Path) -> Any:
    from peft import get_peft_model

    config.init_lora_weights = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as when it was made: model/adapters.py
        try:
            return get_peft_model(model, config, low_cpu_mem_usage=True)
        except ValueError as error:
            raise ModelError(
                "the adapter does not fit the base model",
                where=str(folder),
                found=" ".join(str(error).split())[:400],
                fix="name the base model that it was trained on: --base FOLDER",
            ) from error


def _changes(wrapped: Any, take: Any, tied: set[str]) -> Iterator[tuple[str, Change]]:
    from peft.tuners.lora.layer import LoraLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in wrapped.named_modules():
        if isinstance(module, LoraLayer):
            yield from _of_layer(name, module, take)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            yield from _of_wrapper(name, module, take, tied)


def _of_layer(name: str, module: Any, take: Any) -> Iterator[tuple[str, Change]]:
    """The changes of one adapted layer; names are those that PEFT saves, without its adapter's name."""
    parameter = getattr(module, "parameter_name", "weight")  # PEFT adapts experts as a parameter
    target = f"{bare(name)}.{parameter}"
    if "default" in module.lora_embedding_A:
        a, b = take(f"{name}.lora_embedding_A"), take(f"{name}.lora_embedding_B")
        if a is not None and b is not None:
            yield target, LowRank(b.T, a.T, module.scaling["default"])  # its weight is [tokens, width]
        return
    a, b = take(f"{name}.lora_A.weight"), take(f"{name}.lora_B.weight")
    bias = take(f"{name}.lora_B.bias") if module.lora_bias.get("default") else None
    has_magnitude = "default" in module.lora_magnitude_vector
    magnitude = take(f"{name}.lora_magnitude_vector") if has_magnitude else None
    if a is None or b is None:
        return
    scale = module.scaling["default"]
    if getattr(module, "num_experts", 1) > 1:
        inner_first = not module._did_swap_in_out_features
        yield target, Experts(a, b, scale, module.num_experts, inner_first)
        return
    yield target, LowRank(a, b, scale, bool(getattr(module, "fan_in_fan_out", False)), magnitude)
    if bias is not None:
        yield f"{bare(name)}.bias", Added(scale * bias)


def _of_wrapper(name: str, module: Any, take: Any, tied: set[str]) -> Iterator[tuple[str, Change]]:
    """The changes of a module that PEFT keeps a trained copy of, or trains some rows of."""
    adapter = getattr(module, "token_adapter", None)
    if adapter is None:
        for key in module.adapter_state_dict_load_map("default"):
            value = take(f"{name}.{key}")
            if value is not None:
                yield f"{bare(name)}.{key}", Replaced(value)
        return
    ids = torch.tensor(adapter.token_indices["default"])
    if adapter.tied_adapter:
        tied.add(f"{bare(name)}.weight")
        return
    vectors = take(f"{name}.token_adapter.trainable_tokens_delta")
    if vectors is not None:
        order = torch.argsort(ids)
        yield f"{bare(name)}.weight", TokenRows(ids[order], vectors[order])


def bare(name: str) -> str:
    """A module's name without what PEFT puts around it."""
    name = name.removeprefix("base_model.model.")
    return name.replace(".base_layer", "").replace(".original_module", "")


def _be_strict(file: Path, found: Any, taken: Any, wanted: list[str]) -> None:
    """ModelError where the file holds a tensor that fits nothing, or lacks one that the adapter needs."""
    extra = [name for name in found if name not in taken]
    missing = [name for name in wanted if name not in taken]
    if extra:
        guess = nearest(extra[0], missing) or nearest(extra[0], wanted)
        raise ModelError(
            "a tensor of the adapter fits nothing in the base model",
            where=str(file),
            found=extra[0] + (f", and {len(extra) - 1} more" if len(extra) > 1 else ""),
            expected=f"perhaps {guess}" if guess else "names of the base model's layers",
            fix="take the adapter as it was saved, with the base model that it was trained on",
        )
    if missing:
        raise ModelError(
            "the adapter lacks a tensor",
            where=str(file),
            expected=missing[0] + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
            fix="copy the adapter anew from where it came from",
        )
