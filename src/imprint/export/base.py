"""A base model as it lies on disk, and its architecture without memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imprint.export.blocks import blocks
from imprint.export.names import model_without_memory, name_on_disk
from imprint.export.tensors import Entry, read_folder


@dataclass(frozen=True)
class Base:
    """A model folder: its tensors, and its architecture without memory."""

    folder: Path
    entries: dict[str, Entry]
    model: Any
    embedding: str  # in memory
    head: str | None
    tied: bool

    def on_disk(self, name: str) -> str | None:
        return name_on_disk(self.model, name, self.entries)


def open_base(folder: Path, trust_remote_code: bool = False) -> Base:
    """A base model, ready to be merged into."""
    entries = read_folder(folder)
    model = model_without_memory(folder, trust_remote_code=trust_remote_code)
    embedding, head = (
        _name_of(model, model.get_input_embeddings()),
        _name_of(model, model.get_output_embeddings()),
    )
    assert embedding is not None
    tied = head is not None and _is_tied(model, embedding, head)
    if tied and head is not None:
        first, second = (name_on_disk(model, name, entries) for name in (embedding, head))
        if first and second and not _equal(entries[first], entries[second]):  # transformers then ties nothing
            tied = False
            model = model_without_memory(folder, tied=False, trust_remote_code=trust_remote_code)
    return Base(folder, entries, model, embedding, head, tied)


def _name_of(model: Any, module: Any) -> str | None:
    if module is None:
        return None
    return next((f"{name}.weight" for name, other in model.named_modules() if other is module), None)


def _is_tied(model: Any, embedding: str, head: str) -> bool:
    return model.get_parameter(embedding) is model.get_parameter(head)


def _equal(first: Entry, second: Entry) -> bool:
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    return all(
        torch.equal(first.read(begin, end), second.read(begin, end)) for begin, end in blocks(first.shape)
    )
