"""The weights of a GGUF file: their names, the changes llama.cpp expects, their types, written one by one.

Memory: a slice of rows at a time, about `SLICE` values in float32 and once more as they are stored; a
model of any size is written with a few hundred MB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.errors import ModelError
from imprint.export.gguf_config import GEMMA, Shape

SLICE = 1 << 24  # values held at once: 64 MB in float32
QUANTISED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")  # what the gguf package can make
TYPES = ("f32", "f16", "bf16", *QUANTISED)
_SKIPPED = ("rotary_emb.inv_freq",)  # derived, never loaded

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Planned:
    """One tensor to write."""

    name: str  # in the GGUF file
    source: str  # in the safetensors; empty for one that is made here
    file: Path
    shape: tuple[int, ...]
    type: str  # of TYPES
    permuted_heads: int = 0  # heads whose rotary halves are interleaved; 0: none
    shift: float = 0.0  # added to every value
    made: tuple[float, ...] = ()  # the values of one that is made here


def plan(folder: Path, shape: Shape, type: str) -> tuple[list[Planned], tuple[str, ...]]:
    """Every tensor of the file in the order of writing, and what deserves a word.

    Raises ModelError for weights that the architecture does not have, or lacks.
    """
    import gguf

    architecture = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == shape.architecture)
    names = gguf.get_tensor_name_map(architecture, shape.layers)
    planned, unknown, narrow = [], [], []
    if shape.rope_factors is not None:
        size = (len(shape.rope_factors),)
        planned.append(Planned("rope_freqs.weight", "", folder, size, "f32", made=shape.rope_factors))
    for source, (file, sizes) in sorted(sources(folder).items(), key=lambda item: _order(item[0])):
        if source.endswith(_SKIPPED) or (source == "lm_head.weight" and shape.tied):
            continue
        base, _, suffix = source.rpartition(".")
        name = names.get_name(base)
        if name is None or suffix not in ("weight", "bias"):
            unknown.append(source)
            continue
        stored = _stored_type(sizes, type)
        if stored != type and len(sizes) > 1:
            narrow.append(source)
        heads = 0
        if shape.architecture == "llama" and ".self_attn." in source:
            heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(base.rpartition(".")[2], 0)
        shift = 1.0 if shape.architecture in GEMMA and source.endswith("norm.weight") else 0.0
        planned.append(Planned(f"{name}.{suffix}", source, file, sizes, stored, heads, shift))
    _complete(folder, shape, planned, unknown)
    notes: tuple[str, ...] = ()
    if narrow:
        notes = (
            f"{len(narrow)} of {len(planned)} tensors are f16 instead of {type}: their rows are not "
            f"divisible by 32 (such as {narrow[0]})",
        )
    return planned, notes


def sources(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """name → (file, shape) of every tensor in a folder's safetensors, read from their headers alone."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for name in files:
        path = folder / name
        if not path.is_file():
            raise ModelError(
                "the weights are not all there",
                where=str(folder),
                found=f"no {name}",
                expected="model.safetensors, or its parts with model.safetensors.index.json",
                fix="export the run again: imprint export RUN --to hf",
            )
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                found[key] = (path, tuple(tensors.get_slice(key).get_shape()))
    return found


def write(writer: Any, planned: Sequence[Planned]) -> None:
    """Write header, metadata and all tensors of an opened `gguf.GGUFWriter`, a slice of rows at a time."""
    import gguf

    kinds = {type: gguf.GGMLQuantizationType[type.upper()] for type in TYPES}
    for one in planned:
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), stored_bytes(one), kinds[one.type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (out,) = writer.fout
    writer.write_padding(out, out.tell())
    for one in planned:
        written = 0
        for values in read(one):
            data = _encoded(values, kinds[one.type])
            out.write(data.tobytes())
            written += data.nbytes
        assert written == stored_bytes(one), one.name
        writer.write_padding(out, written)


def read(one: Planned) -> Iterator[Values]:
    """A tensor as llama.cpp expects it, a slice of rows at a time, in float32."""
    from safetensors import safe_open

    if one.made:
        yield np.asarray(one.made, np.float32)
        return
    with safe_open(one.file, framework="pt") as tensors:
        tensor = tensors.get_slice(one.source)
        rows = one.shape[0]
        step = max(1, SLICE // max(1, int(np.prod(one.shape[1:]))))
        if one.permuted_heads:  # whole heads
            per_head = rows // one.permuted_heads
            step = max(1, step // per_head) * per_head
        for start in range(0, rows, step):
            values = tensor[start : start + step].float().numpy()
            if one.permuted_heads:
                values = interleaved(values, len(values) // (rows // one.permuted_heads))
            yield values + np.float32(one.shift) if one.shift else values


def interleaved(values: Values, heads: int) -> Values:
    """Rows of each head from [first halves…, second halves…] to [first, second, first, second…].

    transformers rotates dimension i with i + d/2, llama.cpp's llama i with i + 1: the same rotation of
    rows in another order.
    """
    halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def stored_bytes(one: Planned) -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[one.type.upper()]]
    return int(np.prod(one.shape)) // block * size


def _encoded(values: Values, kind: Any) -> npt.NDArray[Any]:
    import gguf

    if kind.name == "F32":
        return values
    if kind.name == "F16":
        return values.astype(np.float16)
    return gguf.quantize(np.ascontiguousarray(values), kind)


def _stored_type(sizes: tuple[int, ...], type: str) -> str:
    """The type of one tensor: vectors (norms, biases) stay float32; rows that blocks do not divide, f16."""
    if len(sizes) == 1:
        return "f32"
    return "f16" if type in QUANTISED and sizes[-1] % 32 else type


def _order(name: str) -> tuple[int, int, str]:
    """Embedding first, then the layers by number, then the end."""
    layer = re.search(r"layers\.(\d+)\.", name)
    return (1, int(layer[1]), name) if layer else (0 if "embed_tokens" in name else 2, 0, name)


def _complete(folder: Path, shape: Shape, planned: Sequence[Planned], unknown: Sequence[str]) -> None:
    kinds: Mapping[int, set[str]] = {layer: set() for layer in range(shape.layers)}
    for one in planned:
        if match := re.match(r"blk\.(\d+)\.(.+)", one.name):
            kinds[int(match[1])].add(match[2])
    names = {one.name for one in planned}
    needed = {"token_embd.weight", "output_norm.weight"} | ({"output.weight"} if not shape.tied else set())
    missing = sorted(needed - names)
    every = set.union(*kinds.values())
    missing += [f"blk.{layer}.{kind}" for layer, found in kinds.items() for kind in sorted(every - found)]
    if not unknown and not missing:
        return
    raise ModelError(
        "the weights are not those of the architecture that the config names",
        where=str(folder),
        found=(f"unknown: {', '.join(unknown[:3])}" if unknown else f"missing: {', '.join(missing[:3])}")
        + (f" and {max(len(unknown), len(missing)) - 3} more" if max(len(unknown), len(missing)) > 3 else ""),
        expected=f"the tensors of {shape.architecture} with {shape.layers} layers",
        fix="adapters must be merged first: imprint export RUN --to hf does it",
    )
