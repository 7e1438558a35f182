"""A base model and what training changed of it, merged and written shard by shard.

Tensors are read, changed and written in blocks of rows, each in float32; only the adapter, and of a
mixture of experts the update of one layer, are held whole. What training did not change is copied byte by byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from imprint.errors import ModelError, nearest
from imprint.export.adapter import read_adapter
from imprint.export.base import Base
from imprint.export.blocks import Rounding, written
from imprint.export.changes import Change, Experts, Stored
from imprint.export.names import parts_on_disk
from imprint.export.tensors import FLOATS, Entry, Planned, read_folder


@dataclass
class Plan:
    """Every tensor to be written, and what must be said of them in config.json."""

    tensors: list[Planned]
    dtype: torch.dtype  # the floating type of most values
    vocab: int | None  # rows of the embedding, where it was grown
    untied: bool  # the head is a tensor of its own, where the base's is tied to the embedding
    rounding: Rounding = field(default_factory=Rounding)


# How the values of a matrix are held in training where that is not as they lie on disk, by parameter in memory
Held = Mapping[str, Callable[[Tensor], Tensor]]


def plan_merge(
    base: Base,
    adapter: Path | None = None,
    *,
    dtype: torch.dtype | None = None,
    scale: float = 1.0,
    num_tokens: int = 0,
    held: Held | None = None,
) -> Plan:
    """What `base` with `adapter` is, tensor by tensor, in the type `dtype` (None: each as the base has it).

    scale: 1 is the adapter as trained, 0 the base; between them, the weights are interpolated.
    num_tokens: rows that the embedding must have; missing ones are the mean of the others, as in training
    (`imprint.model.load.grow_embeddings`), until the adapter's own take their place.
    held: what the base's matrices were in training, and are in what is planned, where that is not what lies on disk.
    """
    read = read_adapter(adapter, deepcopy(base.model)) if adapter is not None else None
    changes = read.changes if read else {}
    untied = base.tied and _apart(base, changes, read.tied if read else frozenset())
    merge = _Merge(base, changes, dtype, scale, num_tokens, held or {})
    tensors = merge.stored()
    if untied:
        tensors.append(merge.second())
    grown = num_tokens if num_tokens > base.entries[merge.shared].num_rows else None
    return Plan(tensors, main_type(tensors), grown, untied, merge.rounding)


def _apart(base: Base, changes: Mapping[str, Change], tied: frozenset[str]) -> bool:
    """Whether a tied head and its embedding were changed apart: the head alone, or the embedding alone.

    PEFT trains the rows of new tokens in both at once, and copies of whole modules in one.
    """
    return base.head in changes or (base.embedding in changes and base.head not in tied)


class _Merge:
    """The tensors of a base, in its order, each with the change that it gets."""

    def __init__(
        self,
        base: Base,
        changes: Mapping[str, Change],
        dtype: torch.dtype | None,
        scale: float,
        num_tokens: int,
        held: Held,
    ):
        self.base, self.changes, self.dtype, self.scale = base, changes, dtype, scale
        self.num_tokens, self.rounding = num_tokens, Rounding()
        embedding, head = base.on_disk(base.embedding), base.on_disk(base.head) if base.head else None
        self.shared = embedding or (head if base.tied else None) or ""
        if not self.shared:
            raise ModelError("the base model has no embedding on disk", where=str(base.folder))
        self.role = base.embedding if embedding else (base.head or "")  # of a tied pair, which one is stored
        self.copy = head if base.tied and embedding else None  # the same values again
        bias = base.on_disk(f"{base.head.removesuffix('weight')}bias") if base.head else None
        self.vocabulary = {self.shared, *filter(None, [head, bias])}  # what grows with the tokens
        self.joined: dict[str, _Joined] = {}  # name on disk → the update that it is a part of
        self.by_disk = {found: name for name in changes if (found := self.place(name))}
        self.held = {found: values for name, values in held.items() if (found := base.on_disk(name))}

    def place(self, name: str) -> str | None:
        """The tensor on disk that a changed parameter is; None where it is none by itself."""
        base = self.base
        if base.tied and name in (base.embedding, base.head):
            return self.shared if name == self.role else None
        found = base.on_disk(name)
        if found is None and isinstance(self.changes[name], Experts):
            joined = _Joined(base, name, self.changes[name])
            if all(part in base.entries for part in joined.parts):
                self.joined |= dict.fromkeys(joined.parts, joined)
                return None
        if found is None:
            raise ModelError(
                "the adapter changes a parameter that the base model's files do not hold",
                where=str(base.folder),
                found=name,
                expected=f"perhaps {nearest(name, base.entries)}",
                fix="name the base model that it was trained on: --base FOLDER",
            )
        return found

    def stored(self) -> list[Planned]:
        """What the base has on disk, but for a second copy of a tied tensor."""
        return [self.planned(name, entry) for name, entry in self.base.entries.items() if name != self.copy]

    def planned(self, name: str, entry: Entry) -> Planned:
        change = self.changes.get(self.by_disk.get(name, ""))
        joined = self.joined.get(name)
        return self.changed(name, entry, change or (joined.part(name) if joined else None))

    def second(self) -> Planned:
        """The other one of a tied pair, which becomes a tensor of its own: the same values with its own change."""
        base = self.base
        other = base.head if self.role == base.embedding else base.embedding
        assert other is not None
        entry = base.entries[self.shared]
        return self.changed(self.copy or other, entry, self.changes.get(other))

    def changed(self, name: str, entry: Entry, change: Change | None) -> Planned:
        dtype = self.dtype if self.dtype and entry.dtype in FLOATS else entry.dtype
        held = self.held.get(name)
        grows = entry.name in self.vocabulary
        rows = max(entry.num_rows, self.num_tokens) if grows else entry.num_rows
        if (change is not None or held is not None) and entry.dtype not in FLOATS:
            raise ModelError(
                "a tensor that training changed is not of a floating type in the base model",
                where=str(entry.file),
                found=f"{name}: {entry.dtype}",
                fix="export the adapter alone: --adapter-only",
            )
        self.rounding.changed += change is not None
        pieces = partial(written, entry, dtype, rows, change, self.scale, self.rounding, held)
        return Planned(name, dtype, (rows, *entry.shape[1:]) if entry.shape else (), pieces)


def plan_between(base: Path, tuned: Path, scale: float, dtype: torch.dtype | None = None) -> Plan:
    """A model that was trained whole, or what lies between its base and it (see `plan_merge`)."""
    entries, rounding = read_folder(tuned), Rounding()
    known = read_folder(base) if scale != 1 else entries
    tensors = []
    for name, entry in entries.items():
        floating = entry.dtype in FLOATS
        kept = dtype if dtype and floating else entry.dtype
        source, change = entry, None
        if scale != 1 and floating:
            source, change = known[same_name(name, entry, known, base)], Stored(entry)
            rounding.changed += 1
        pieces = partial(written, source, kept, entry.num_rows, change, scale, rounding)
        tensors.append(Planned(name, kept, entry.shape, pieces))
    return Plan(tensors, main_type(tensors), None, False, rounding)


def same_name(name: str, entry: Entry, known: Mapping[str, Entry], base: Path) -> str:
    """What `known`, the base's tensors, call the tensor `name`: models saved without a head lack a prefix."""
    longer = (other for other in known if other.partition(".")[2] == name)
    for other in (name, name.partition(".")[2], *longer):
        if other in known and known[other].shape[1:] == entry.shape[1:]:
            return other
    raise ModelError(
        "the base model has no such tensor",
        where=str(base),
        found=name,
        expected=f"perhaps {nearest(name, known)}",
        fix="export it at scale 1: nothing lies between two models of different layers",
    )


def main_type(tensors: Sequence[Planned]) -> torch.dtype:
    """The floating type that most bytes are of."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.num_bytes if tensor.dtype in FLOATS else 0
    return sizes.most_common(1)[0][0]


class _Joined:
    """The update of all experts of a layer, taken apart as the files hold them, and let go when all parts are read."""

    def __init__(self, base: Base, name: str, change: Change):
        self.base, self.name, self.change = base, name, change
        shape = base.model.get_parameter(name).shape
        self.shape = shape
        self.parts = list(parts_on_disk(base.model, name, torch.empty(shape, device="meta")))
        self.held: dict[str, Tensor] = {}

    def part(self, name: str) -> Change:
        return _Part(lambda: self.take(name))

    def take(self, name: str) -> Tensor:
        if name not in self.held:
            update = self.change.apply(torch.zeros(self.shape), 0)
            self.held = parts_on_disk(self.base.model, self.name, update)
        return self.held.pop(name)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    update: Callable[[], Tensor]
    whole = True

    def apply(self, rows: Tensor, first: int) -> Tensor:
        return rows + self.update()
