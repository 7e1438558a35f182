"""The model folder of a run: what you serve, with the tokenizer and the template it was trained with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from imprint.disk import is_valid, patiently, seal
from imprint.distributed.mesh import Mesh
from imprint.distributed.shard import reshard, whole
from imprint.model.adapters import for_original_base
from imprint.model.quantize import write_quantized
from imprint.model.rowmodel import RowModel
from imprint.render.resolve import Rendering


def save_model(
    model: RowModel,
    rendering: Rendering,
    path: Path,
    base: Path,
    mesh: Mesh,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Write `path` in one move: safetensors (or a PEFT adapter), config, stops, tokenizer, template.

    Weights are saved in the type that the base model has on disk. Every rank calls this. A full disk is waited
    for (see disk.patiently), and the user told.
    """
    inner: Any = model.model
    reshard(model)
    shared = {name: storage(value) for name, value in inner.state_dict().items()}
    tensors = {name: whole(value.detach()).cpu() for name, value in inner.state_dict().items()}
    if not mesh.is_main or is_valid(path):  # valid: the run was killed after this was done
        mesh.wait()
        return
    partial = path.with_name(path.name + ".partial")

    def write() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _write(model, tensors, shared, rendering, partial, base)
            seal(partial, path)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)  # on a full disk it takes the room that others need
            raise

    patiently(write, tell)
    mesh.wait()


def _write(
    model: RowModel,
    tensors: dict[str, torch.Tensor],
    shared: Mapping[str, Any],
    rendering: Rendering,
    partial: Path,
    base: Path,
) -> None:
    """All files of a model folder, into `partial`."""
    inner: Any = model.model
    adapter = hasattr(inner, "peft_config")
    if adapter:
        for config in inner.peft_config.values():
            config.base_model_name_or_path = str(base.resolve())
        first = getattr(inner, "imprint_first_factors", {})
        changed: dict[str, Any] = {}
        if first:
            names = ("r", "lora_alpha", "use_rslora", "init_lora_weights")
            config = inner.peft_config["default"]
            before = {name: getattr(config, name) for name in names}
            tensors, changed = for_original_base(tensors, before, first)
        inner.save_pretrained(partial, state_dict=tensors, save_embedding_layers=False)
        model.base.generation_config.save_pretrained(partial)
        _tidy_adapter(partial, changed)
        if model.quantized is not None:
            write_quantized(partial, model.quantized)
    else:
        kept = type_on_disk(base)
        once: dict[Any, torch.Tensor] = {}  # tied weights stay one tensor, and are written once
        for name, value in tensors.items():
            converted = value.to(kept) if value.is_floating_point() else value
            tensors[name] = once.setdefault(shared[name] or name, converted)
        implementation = inner.config._attn_implementation
        inner.set_attn_implementation("sdpa" if inner._supports_sdpa else "eager")
        try:
            inner.save_pretrained(partial, state_dict=tensors)
        finally:
            inner.set_attn_implementation(implementation)
        _name_type(partial / "config.json", kept)
    save_tokenizer(rendering.encoder.tokenizer, rendering, partial)


def save_tokenizer(tokenizer: Any, rendering: Rendering, folder: Path) -> None:
    """The tokenizer of a rendering, or a copy of it, with its template and its stop."""
    tokenizer.chat_template = rendering.template.serving
    if "eos_token" not in rendering.template.variables:  # else the template would write another text
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(rendering.stop_ids[0])
    for key in ("is_local", "local_files_only"):  # how it was loaded here is nothing to keep
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def storage(value: torch.Tensor) -> tuple[Any, ...] | None:
    """What two tied tensors have in common, sharded or not; None where a tensor holds nothing here."""
    local = value.to_local() if isinstance(value, DTensor) else value
    return (local.data_ptr(), *value.shape) if local.data_ptr() else None


def _name_type(path: Path, kept: torch.dtype) -> None:
    """Write the weights' type into config.json: transformers writes that of the model in memory."""

    def named(part: dict[str, Any]) -> dict[str, Any]:
        inner = {key: named(value) if isinstance(value, dict) else value for key, value in part.items()}
        return inner | ({"dtype": str(kept).removeprefix("torch.")} if "dtype" in part else {})

    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(named(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tidy_adapter(folder: Path, changed: dict[str, Any]) -> None:
    """Undo two habits of PEFT: names in the order of a set (other bytes each time), a card of blanks.

    `changed` are settings that are other in the saved adapter than they were in training.
    """
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changed
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)


def type_on_disk(folder: Path) -> torch.dtype:
    """The floating type of a folder's weights: of the first tensor that has one."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a mapping
                found: torch.dtype = weights.get_tensor(name).dtype
                if found.is_floating_point:
                    return found
    return torch.float32
