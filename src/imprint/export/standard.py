"""A folder as transformers, vLLM and SGLang load it: weights, config, tokenizer with its template, every stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imprint.errors import ModelError
from imprint.export.base import Base, open_base
from imprint.export.merge import Held, Plan, plan_between, plan_merge
from imprint.export.tensors import write_model
from imprint.model.quantize import Quantized, held_values, read_quantized

SHARD = 4_000_000_000  # bytes
# of a trained folder, what is not copied as it is
_WEIGHTS = ("adapter_config.json", "quantized_base.json", "manifest.json", "README.md", "config.json")
_LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class Trained:
    """What a run left, and what belongs to it.

    `model` is the run's model folder: a whole model, or an adapter to `base`. `stop_ids` are all tokens
    that end a reply. `num_tokens` is the size of the tokenizer that was trained with.
    """

    model: Path
    base: Path
    stop_ids: Sequence[int]
    num_tokens: int
    trust_remote_code: bool = False

    @property
    def is_adapter(self) -> bool:
        return (self.model / "adapter_config.json").is_file()


def write_standard(
    trained: Trained,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
    most_bytes: int = SHARD,
    look: Callable[[Path], None] = lambda _: None,
) -> Plan:
    """Fill the empty folder `out` with the merged model; what was planned, its rounding filled in.

    `look` is called when everything but the weights is there, and may raise.
    """
    plan = plan_weights(trained, dtype, scale)
    source = trained.base if trained.is_adapter else trained.model
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    write_json(out / "config.json", standard_config(config, plan, trained.stop_ids))
    copy_others(trained, out)
    check_stops(out, trained.stop_ids, trained.trust_remote_code)
    look(out)
    write_model(out, plan.tensors, most_bytes)
    return plan


def plan_weights(trained: Trained, dtype: torch.dtype | None, scale: float) -> Plan:
    if trained.is_adapter:
        base = open_base(trained.base, trained.trust_remote_code)
        return plan_merge(
            base,
            trained.model,
            dtype=dtype,
            scale=scale,
            num_tokens=trained.num_tokens,
            held=in_four_bits(base, read_quantized(trained.model)),
        )
    return plan_between(trained.base, trained.model, scale, dtype)


def in_four_bits(base: Base, quantized: Quantized | None) -> Held:
    """What the quantised matrices of a base held while an adapter was trained on it (docs/decisions/0026)."""
    if quantized is None:
        return {}
    modules = dict(base.model.named_modules())

    def values(weight: Tensor, turned: bool) -> Tensor:
        return held_values(weight.T, quantized).T if turned else held_values(weight, quantized)

    return {
        f"{name}.weight": partial(values, turned=type(modules[name]).__name__ == "Conv1D")
        for name in quantized.layers
    }


def standard_config(config: dict[str, Any], plan: Plan, stop_ids: Sequence[int]) -> dict[str, Any]:
    """A base's config.json as it is true of what was written: its type, its vocabulary, its head, its stops."""
    stops = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0]
    dtype = str(plan.dtype).removeprefix("torch.")
    for key in ("_name_or_path", "torch_dtype"):
        config.pop(key, None)
    config["dtype"] = dtype
    for part in (config, *(inner for inner in config.values() if isinstance(inner, dict))):
        if part is not config and "vocab_size" not in part:
            continue  # of another kind than text
        part["eos_token_id"] = stops
        if "dtype" in part:
            part["dtype"] = dtype
        part.pop("torch_dtype", None)
        if plan.vocab is not None and "vocab_size" in part:
            part["vocab_size"] = plan.vocab
        if plan.untied:
            part["tie_word_embeddings"] = False
    return config


def copy_others(trained: Trained, out: Path) -> None:
    """The tokenizer, its template, the stops; the base's licence, and the code that it may bring."""
    for path in sorted(trained.model.iterdir()):
        if path.name in _WEIGHTS or ".safetensors" in path.name:
            continue
        if path.is_dir():
            shutil.copytree(path, out / path.name)
        else:
            shutil.copyfile(path, out / path.name)
    for pattern in (*_LEGAL, *(["*.py"] if trained.trust_remote_code else [])):
        for path in trained.base.glob(pattern):
            if path.is_file() and not (out / path.name).exists():
                shutil.copyfile(path, out / path.name)


def check_stops(folder: Path, stop_ids: Sequence[int], trust_remote_code: bool = False) -> None:
    """ModelError where a file of an exported folder names other stops than those that were trained."""
    from imprint.render.resolve import load_tokenizer

    wanted = set(stop_ids)
    for name in ("generation_config.json", "config.json"):
        if not (folder / name).is_file():
            continue
        found = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        ids = set(found if isinstance(found, list) else [found])
        if ids != wanted:
            raise _other_stops(folder / name, ids, wanted)
    eos = load_tokenizer(str(folder), trust_remote_code=trust_remote_code).eos_token_id
    if eos is not None and eos not in wanted:
        raise _other_stops(folder / "tokenizer_config.json", {eos}, wanted)


def _other_stops(path: Path, found: set[Any], wanted: set[int]) -> ModelError:
    return ModelError(
        "the files of this model do not name the same stops",
        where=str(path),
        found=f"ends a reply at {sorted(map(str, found))}",
        expected=f"{sorted(wanted)}, which were trained",
        fix="put the run's model/ back as training left it",
    )


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
