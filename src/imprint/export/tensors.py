"""Safetensors files read and written by rows, so that no tensor need be whole in memory.

The format is documented at huggingface.co/docs/safetensors: 8 bytes (little-endian) with the length of a
JSON header, the header (name → dtype, shape, data_offsets), and the bytes of the tensors. The library's own
reader maps the file, and a mapped page that was read counts as memory of this process; plain reads do not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from imprint.errors import ModelError

NAMES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NAME_OF = {dtype: name for name, dtype in NAMES.items()}
_LONGEST_HEADER = 100_000_000  # bytes; the library's own limit
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: file, place of its first byte, type and shape."""

    name: str
    file: Path
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Length of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.row_bytes

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Rows `first` to `last` (exclusive; None: to the end), in the type on disk."""
        last = self.num_rows if last is None else last
        shape = (last - first, *self.shape[1:]) if self.shape else ()
        size = (last - first) * self.row_bytes
        if not size:
            return torch.empty(shape, dtype=self.dtype)
        buffer = bytearray(size)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.begin + first * self.row_bytes)
            filled = 0
            while filled < size:  # one read gives at most 2 GB
                count = file.readinto(memoryview(buffer)[filled:])
                if not count:
                    raise _damaged(self.file, f"it ends within {self.name}")
                filled += count
        return torch.frombuffer(buffer, dtype=self.dtype).reshape(shape)


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file; ModelError where its header is damaged."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= min(size - 8, _LONGEST_HEADER):
            raise _damaged(file, f"a header of {length:,} bytes in a file of {size:,}")
        try:
            header = json.loads(opened.read(length))
            return dict(_entries(file, header, 8 + length, size))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(file, f"{type(error).__name__}: {error}") from error


def _entries(file: Path, header: Any, start: int, size: int) -> Iterator[tuple[str, Entry]]:
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        if facts["dtype"] not in NAMES:
            raise ValueError(f"{name} has the type {facts['dtype']}")
        begin, end = facts["data_offsets"]
        entry = Entry(name, file, start + begin, NAMES[facts["dtype"]], tuple(facts["shape"]))
        if entry.num_bytes != end - begin or not 0 <= begin <= end <= size - start:
            raise ValueError(f"{name} does not lie within the file")
        yield name, entry


def _damaged(file: Path, found: str) -> ModelError:
    return ModelError(
        "this is not a safetensors file",
        where=str(file),
        found=found,
        fix="copy it anew from where it came from",
    )


def read_folder(folder: Path) -> dict[str, Entry]:
    """Every tensor of a model folder, in the order of its files; ModelError where there is none."""
    index = folder / INDEX
    if index.is_file():
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(named))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(
                "a shard of the model is missing",
                where=str(folder),
                found=f"{INDEX} names {', '.join(missing[:5])}",
                fix="copy it anew from where it came from",
            )
    else:
        files = [
            file for file in sorted(folder.glob("*.safetensors")) if file.name != "adapter_model.safetensors"
        ]
    found: dict[str, Entry] = {}
    for file in files:
        found |= read_header(file)
    if not found:
        raise ModelError("there are no weights in this folder", where=str(folder))
    return found


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be written: `pieces` gives its rows in order, in any number of parts, of type `dtype`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Tensor]]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def shards(planned: Sequence[Planned], most_bytes: int) -> list[list[Planned]]:
    """The tensors in order, cut into shards of at most `most_bytes`; a larger tensor gets one of its own."""
    cut: list[list[Planned]] = [[]]
    size = 0
    for tensor in planned:
        if cut[-1] and size + tensor.num_bytes > most_bytes:
            cut.append([])
            size = 0
        cut[-1].append(tensor)
        size += tensor.num_bytes
    return cut


def write_model(folder: Path, planned: Sequence[Planned], most_bytes: int) -> list[Path]:
    """model.safetensors, or its shards with their index; the files, in order."""
    cut = shards(planned, most_bytes)
    names = (
        ["model.safetensors"]
        if len(cut) == 1
        else [f"model-{at:05d}-of-{len(cut):05d}.safetensors" for at in range(1, len(cut) + 1)]
    )
    for name, part in zip(names, cut, strict=True):
        write_file(folder / name, part)
    if len(cut) > 1:
        facts = {
            "metadata": {"total_size": sum(tensor.num_bytes for tensor in planned)},
            "weight_map": {
                tensor.name: name for name, part in zip(names, cut, strict=True) for tensor in part
            },
        }
        (folder / INDEX).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def write_file(file: Path, planned: Sequence[Planned]) -> None:
    """One safetensors file, written piece by piece and synced.

    Wider types come first, as the library does it, so that every tensor lies at a multiple of its item's size.
    """
    planned = sorted(planned, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in planned:
        begin, end = end, end + tensor.num_bytes
        header[tensor.name] = {
            "dtype": _NAME_OF[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little"))
        opened.write(text)
        for tensor in planned:
            _write_pieces(opened, tensor)
        opened.flush()
        os.fsync(opened.fileno())


def _write_pieces(opened: BinaryIO, tensor: Planned) -> None:
    written = 0
    for piece in tensor.pieces():
        assert piece.dtype == tensor.dtype, tensor.name
        data = piece.contiguous().reshape(-1).view(torch.uint8)
        opened.write(data.numpy().data)
        written += data.numel()
    assert written == tensor.num_bytes, f"{tensor.name}: {written} of {tensor.num_bytes} bytes"
