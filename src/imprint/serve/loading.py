"""An engine from a run or a model folder, with adapters beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imprint.errors import ModelError
from imprint.model.adapter_folder import put_adapter
from imprint.model.devices import check_device
from imprint.model.load import find_model
from imprint.model.quantize import Quantized, read_quantized
from imprint.model.ropes import sides_of
from imprint.model.rowmodel import RowModel
from imprint.model_facts import may_be_hub_id, no_folder
from imprint.render.resolve import Rendering, config_stops, load_tokenizer, prepare_rendering
from imprint.serve.batching import BatchEngine
from imprint.serve.chat import find_base, find_trained, load_weights, refuse_another_base, shown_date
from imprint.serve.prefix import PrefixCache
from imprint.serve.runners import FlatRunner, Runner, SoloRunner
from imprint.serve.slots import Slots, pool_lengths
from imprint.serve.trial import fit_context, try_by_turns, try_together
from imprint.train.free import free_bytes

log = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


@dataclass(frozen=True)
class Served:
    """An engine, and how its model is spoken to."""

    name: str
    engine: BatchEngine
    rendering: Rendering


def load_engine(
    path: Path,
    *,
    adapters: Mapping[str, Path] | None = None,
    template: str = "auto",
    device: str = "cpu",
    dtype: str = "auto",
    max_running: int = 64,
    max_waiting: int = 256,
    step_tokens: int | None = None,
    cache_bytes: int | None = None,
    prefix_bytes: int | None = None,
) -> Served:
    """A run, a model folder or a folder that holds a PEFT adapter, ready for many asks at once.

    `adapters`: runs or PEFT folders on the same base, by the names that an Ask chooses them with.
    `dtype` auto is float32 on the CPU and bfloat16 on CUDA; int8 is bitsandbytes' (weights in 8 bits, the
    rest in float16), which saves memory and costs time on the CPU. `cache_bytes` are set aside for the keys and
    values of running asks (a quarter of the free memory on the CPU, half on CUDA), `prefix_bytes` for
    those of prompts that may come again (an eighth of that; 0: no such cache).
    """
    check_device(device)
    folder = find_trained(path)
    if not folder.is_dir() and not may_be_hub_id(str(folder)):
        raise no_folder(folder)
    own = folder if (folder / "adapter_config.json").is_file() else None
    base = (
        find_base(own / "adapter_config.json", "base_model_name_or_path") if own else find_model(str(folder))
    )
    if own is not None:
        refuse_another_base(own, base)
    tokenizer = load_tokenizer(str(folder))
    stops = list(dict.fromkeys(config_stops(folder) + config_stops(base)))
    rendering = prepare_rendering(tokenizer, template=template, now=shown_date(path), config_stops=stops)
    kind = _dtype(dtype, device)
    quantized = read_quantized(own) if own else None
    if quantized is not None and dtype != "auto":
        raise ModelError(
            "this adapter was trained on quantised weights, and is served on them",
            where=f"dtype={dtype}",
            found=str(folder),
            fix="leave dtype out, or merge it: imprint export RUN --to hf",
        )
    options = _eight_bits(device) if kind == torch.int8 else {}
    model = load_weights(base, own, len(tokenizer), **options)
    found = {
        name: _adapter_on(base, quantized, name, Path(where)) for name, where in (adapters or {}).items()
    }
    model, switch = add_adapters(model, own is not None, found)
    whole = quantized is None and kind != torch.int8  # others cannot be cast
    model = model.to(device=device, dtype=kind) if whole else model.to(device)
    engine = make_engine(
        model,
        switch=switch,
        adapters=tuple(found),
        max_running=max_running,
        max_waiting=max_waiting,
        step_tokens=step_tokens,
        cache_bytes=cache_bytes,
        prefix_bytes=prefix_bytes,
    )
    return Served(path.name or str(path), engine, rendering)


def make_engine(
    model: Any,
    *,
    switch: Any = None,
    adapters: tuple[str, ...] = (),
    max_running: int = 64,
    max_waiting: int = 256,
    step_tokens: int | None = None,
    cache_bytes: int | None = None,
    prefix_bytes: int | None = None,
) -> BatchEngine:
    """An engine on a transformers model, with or without PEFT adapters, in its present type and place."""
    row_model = RowModel(model).eval()
    base, context = row_model.base, row_model.context
    device = next(base.parameters()).device
    if cache_bytes is None:
        cache_bytes = (free_bytes(device) or 4 << 30) // (4 if device.type == "cpu" else 2)
    if prefix_bytes is None:
        prefix_bytes = cache_bytes // 8
    found = try_together(base, context)
    notes = []
    runner: Runner
    if isinstance(found, str):
        notes.append(f"asks are computed one by one, without a cache of prompts: {found}")
        sides = sides_of(base)
        runner = SoloRunner(base, relearn=None if sides is None or sides.alone else sides.limit)
        if not try_by_turns(base, runner):
            notes.append(
                "each ask waits until the one before is answered: its state lies in the model itself"
            )
            max_running = 1
    else:
        layers, kept = found
        fits = fit_context(context, layers, kept, cache_bytes)
        if fits != context:
            notes.append(f"texts of up to {fits:,} tokens: {cache_bytes:,} bytes hold the keys of no more")
        context = fits
        slots = Slots(layers, pool_lengths(context), max_running, cache_bytes, kept, device)
        prefixes = PrefixCache(layers, prefix_bytes, kept, device) if prefix_bytes else None
        runner = FlatRunner(base, slots, prefixes)
    for note in notes:
        log.warning(note)
    return BatchEngine(
        runner,
        context=context,
        vocab=base.config.get_text_config().vocab_size,
        adapters=adapters,
        switch=switch,
        max_running=max_running,
        max_waiting=max_waiting,
        step_tokens=step_tokens or (512 if device.type == "cpu" else 4096),
        notes=notes,
    )


def add_adapters(model: Any, has_own: bool, adapters: Mapping[str, Path]) -> tuple[Any, Any]:
    """The model with all adapters on it, and the switch between them; None where there is nothing to switch."""
    if not adapters:
        return model, None
    own = "default" if has_own else None
    inside = {name: f"adapter_{number}" for number, name in enumerate(adapters)}  # PEFT's names hold no dot
    for name, folder in adapters.items():
        try:
            model = put_adapter(model, folder, inside[name])
        except ModelError as error:
            raise ModelError(
                error.what,
                where=f"{name}={error.where}",
                found=error.found,
                expected=error.expected,
                fix=error.fix,
            ) from error
    return model, AdapterSwitch(model, {"": own, **inside})


class AdapterSwitch:
    """Makes one adapter of a PEFT model, or none, the one that it answers with."""

    def __init__(self, model: Any, names: Mapping[str, str | None]):
        self.model, self.names = model, names
        self.without = ExitStack()
        self("")

    def __call__(self, adapter: str) -> None:
        self.without.close()
        inside = self.names[adapter]
        if inside is None:
            self.without.enter_context(self.model.disable_adapter())
        else:
            self.model.set_adapter(inside)


def _adapter_on(base: Path, quantized: Quantized | None, name: str, path: Path) -> Path:
    """The folder of an adapter that was trained on `base`; ModelError where it was not."""
    folder = find_trained(path)
    recorded = folder / "adapter_config.json"
    if not recorded.is_file():
        raise ModelError(
            "this folder holds no adapter",
            where=f"{name}={path}",
            found="no adapter_config.json" if folder.is_dir() else "no such folder",
            expected="a run of method=lora, or a folder that PEFT has written",
            fix="name another folder; a model that was trained in full is served by itself",
        )
    trained_on = find_base(recorded, "base_model_name_or_path")
    if (its := read_quantized(folder)) != quantized:
        raise ModelError(
            "this adapter was trained on weights of another kind",
            where=f"{name}={path}",
            found="quantised weights" if its is not None else "whole weights",
            expected="those of the model that is served",
            fix="serve it by itself, or merge it: imprint export RUN --to hf",
        )
    if trained_on.resolve() != base.resolve():
        raise ModelError(
            "this adapter was trained on another model",
            where=f"{name}={path}",
            found=str(trained_on),
            expected=str(base),
            fix="serve it by itself, or beside adapters of its own base",
        )
    refuse_another_base(folder, base)
    return folder


def _eight_bits(device: str) -> dict[str, Any]:
    """How weights are loaded in 8 bits."""
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ModelError(
            "weights in 8 bits need bitsandbytes",
            where="dtype=int8",
            found="it is not installed",
            fix="pip install 'imprint-sft[qlora]', or choose another type",
        )
    config = BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": config, "dtype": torch.float16, "device_map": {"": device}}


def _dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise ModelError(
            "there is no such type",
            where=f"dtype={name}",
            expected=f"auto, {', '.join(DTYPES)}",
            fix="name one",
        )
    return DTYPES[name]
