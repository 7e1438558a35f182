"""Conversations on disk: written once, in order, and read one at a time.

    conversations.jsonl   one conversation a line, as lists by position: nothing that could run when read
    conversations.index   int64, where each line begins, and where the last one ends

What is held in memory is a file that is mapped into it, so a million rows cost no objects.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, cast, overload

from imprint.data.conversation import Conversation, Message, Place, Tokens

LINES, INDEX = "conversations.jsonl", "conversations.index"
BUFFER = 1 << 20  # bytes

_NAMES = [field.name for field in fields(Message)]
_VALUES = attrgetter(*_NAMES)
_DEFAULTS = (None, None, *(field.default for field in fields(Message)[2:]))  # role and content have none
_REST = _DEFAULTS[2:]
_CALLS = _NAMES.index("tool_calls")
_OPTIONAL = (None, "line", 1.0, (), "", None)  # id, unit, weight, tools, group, tokens of a conversation

# what a table holds beside JSON's types, dates for instance, becomes its text: as a template shows it
_encode = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, separators=(",", ":"), default=str
).encode
_decode = json.JSONDecoder().decode


class Scratch:
    """A folder of this process, removed when nobody refers to it any more, or at exit."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="imprint-"))
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a process that was forked off
        try:
            shutil.rmtree(path, ignore_errors=True)
        except RecursionError:  # collected where the stack was all but used up: at exit, then
            atexit.register(shutil.rmtree, path, ignore_errors=True)


class SpoolWriter:
    """Writes conversations into a folder, one after the other."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._names: dict[str, int] = {}  # files that they come from
        self._file = (folder / LINES).open("wb", BUFFER)
        self._starts = array("q", [0])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, conversation: Conversation) -> None:
        line = _to_line(conversation, self._names.setdefault(conversation.source.file, len(self._names)))
        self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))

    @property
    def names(self) -> list[str]:
        """The files that the conversations come from, as `Spool` needs them."""
        return list(self._names)

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            write_numbers(self.folder / INDEX, self._starts)


class Spool:
    """The conversations of a folder, by their number; `keep` lives as long as they can be read."""

    def __init__(self, folder: Path, names: Sequence[str], keep: object = None):
        self.names = list(names)
        self._lines = map_file(folder / LINES)
        self._starts = Numbers(folder / INDEX)
        self._keep = keep

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> Conversation:
        line = self._lines[self._starts[number] : self._starts[number + 1]]
        return _from_line(str(line, "utf-8", "surrogatepass"), self.names)


class Part(Sequence[Conversation]):
    """Some conversations of a spool, in this order; each is read when it is asked for."""

    def __init__(self, spool: Spool, rows: Sequence[int]):
        self.spool, self.rows = spool, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Conversation]:
        return map(self.spool.__getitem__, self.rows)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self.spool[self.rows[i]] for i in range(*index.indices(len(self)))]
        return self.spool[self.rows[index]]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} conversations on disk>"


class Numbers(Sequence[int]):
    """The int64 numbers of a file, mapped into memory."""

    def __init__(self, path: Path):
        self._view = memoryview(map_file(path)).cast("q")

    def __len__(self) -> int:
        return len(self._view)

    def __iter__(self) -> Iterator[int]:
        return iter(self._view)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self._view[index].tolist() if isinstance(index, slice) else self._view[index]


def write_numbers(path: Path, numbers: array[int]) -> None:
    """An array of int64 as a file that `Numbers` reads on this machine."""
    assert numbers.typecode == "q", numbers.typecode
    with path.open("wb") as file:
        numbers.tofile(file)


def map_file(path: Path) -> mmap.mmap | bytes:
    """A file's bytes, mapped into memory; an empty file cannot be mapped."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _to_line(conversation: Conversation, number: int) -> bytes:
    """[messages, file, line, id, unit, weight, tools, group, tokens], without what is at its default at the end."""
    messages = []
    for message in conversation.messages:
        values = _VALUES(message)
        end = 2
        if values[2:] != _REST:
            end = max(i for i, value in enumerate(values) if i < 2 or value != _DEFAULTS[i]) + 1
        messages.append(values[:end])
    place = conversation.source
    # an id that only repeats the place is made again from it, under whatever name the file then has
    name = None if conversation.id == str(place) else conversation.id
    rest = [
        name, place.unit, conversation.weight, conversation.tools, conversation.group, conversation.tokens
    ]  # fmt: skip
    for default in reversed(_OPTIONAL):
        if rest[-1] != default:
            break
        rest.pop()
    return (_encode([messages, number, place.line, *rest]) + "\n").encode("utf-8", "surrogatepass")


def _from_line(line: str, names: Sequence[str]) -> Conversation:
    """The conversation that `_to_line` wrote."""
    given, number, row, *rest = cast(list[Any], _decode(line))
    optional: tuple[Any, ...] = (*rest, *_OPTIONAL[len(rest) :])
    name, unit, weight, tools, group, tokens = optional
    place = Place(names[number], row, unit)
    messages = tuple(Message(*values) if len(values) <= _CALLS else _with_calls(values) for values in given)
    made = None if tokens is None else Tokens(*map(tuple, tokens))
    return Conversation(
        messages, place, str(place) if name is None else name, tuple(tools), weight, group, made
    )


def _with_calls(values: list[Any]) -> Message:
    values[_CALLS] = tuple(values[_CALLS])
    return Message(*values)
