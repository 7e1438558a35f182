"""Turns on disk: written as they are made, and read one conversation at a time.

    NAME.ids      int32    of each turn: what its prompt adds to the turn before it, then its completion
    NAME.turns    records  one a turn (see `TURN`)
    NAME.groups   int64    the first turn of each conversation, and the number of all turns
    NAME.prompts  uint64   a hash of each conversation's last prompt: which of them are equal
    NAME.weights  float32  only of turns whose tokens do not all weigh the same
    NAME.json     sums, and what the numbers in the records stand for

The turns of a conversation mostly begin with the one before them, so twenty replies take the room
of one text, not of twenty. Plain numbers only: nothing that is read here can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from imprint.data.conversation import Place
from imprint.data.spool import BUFFER, map_file
from imprint.render.tokens import Ids
from imprint.render.turns import Turn

TURN = np.dtype(
    [
        ("start", "<i8"),  # of what is new, among the ids
        ("conversation", "<i8"),
        ("line", "<i8"),
        ("weights", "<i8"),  # where they begin, -1 where all are `weight`
        ("weight", "<f4"),
        ("shared", "<i4"),  # leading ids of the prompt, taken from the turn before
        ("rest", "<i4"),  # the prompt's other ids
        ("completion", "<i4"),
        ("message", "<i4"),
        ("file", "<i4"),
        ("case", "<i2"),
        ("unit", "<i2"),
    ]
)
WRITTEN = 1024  # turns at a time, or
WRITTEN_IDS = 1 << 20
READ = 64  # conversations at a time


@dataclass
class Sums:
    """What is known of all turns of a store together."""

    num_turns: int = 0
    longest: int = 0  # tokens of the longest turn
    largest_id: int = -1
    tokens: int = 0  # of all turns one by one
    trained_tokens: int = 0
    cases: dict[str, int] = field(default_factory=dict)  # turns of each case


class TurnWriter:
    """Writes turns, in the order of their conversations, into the files NAME.* of a folder."""

    def __init__(self, folder: Path, name: str):
        self.base = folder / name
        self.sums = Sums()
        self._names: dict[str, int] = {}  # files of the data
        self._cases: dict[str, int] = {}
        self._units: dict[str, int] = {}
        self._files: dict[str, BinaryIO] = {
            suffix: _path(self.base, suffix).open("wb", BUFFER)
            for suffix in ("ids", "turns", "groups", "prompts", "weights")
        }
        self._num_ids = self._num_weights = self._num_waiting = 0
        self._last: Turn | None = None
        self._waiting: list[Turn] = []
        self._shared: list[int] = []  # of each waiting turn
        self._begins: list[bool] = []  # whether it is the first of its conversation

    def add(self, turn: Turn) -> None:
        last = self._last
        begins = last is None or last.conversation != turn.conversation
        assert last is None or last.conversation <= turn.conversation, "turns come in the order of the data"
        self._waiting.append(turn)
        self._begins.append(begins)
        self._shared.append(0 if begins or last is None else _common(last, turn.prompt))
        if begins and last is not None:
            self._write_prompt(last)
        self._last = turn
        self._num_waiting += len(turn)
        if len(self._waiting) == WRITTEN or self._num_waiting > WRITTEN_IDS:
            self._flush()

    def __enter__(self) -> TurnWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for file in self._files.values():
                file.close()

    def _finish(self) -> None:
        self._flush()
        if self._last is not None:
            self._write_prompt(self._last)
        self._write("groups", np.array([self.sums.num_turns], "<i8"))
        facts = {
            "sums": asdict(self.sums),
            "names": list(self._names),
            "cases": list(self._cases),
            "units": list(self._units),
        }
        _path(self.base, "json").write_text(json.dumps(facts), encoding="utf-8")

    def _write_prompt(self, turn: Turn) -> None:
        self._files["prompts"].write(hashlib.blake2b(turn.prompt.tobytes(), digest_size=8).digest())

    def _write(self, suffix: str, numbers: NDArray[Any]) -> None:
        self._files[suffix].write(numbers.tobytes())

    def _flush(self) -> None:
        """Write the waiting turns: their ids as one array, their records as another."""
        turns = self._waiting
        if not turns:
            return
        first = self.sums.num_turns
        self._write("groups", first + np.flatnonzero(self._begins).astype("<i8"))
        records = np.empty(len(turns), TURN)
        records["shared"] = self._shared
        prompts = np.array([len(turn.prompt) for turn in turns])
        completions = np.array([len(turn.completion) for turn in turns])
        records["rest"], records["completion"] = prompts - records["shared"], completions
        news = records["rest"].astype("<i8") + completions
        records["start"] = self._num_ids + np.cumsum(news) - news
        records["conversation"] = [turn.conversation for turn in turns]
        records["message"] = [turn.turn for turn in turns]
        records["line"] = [turn.source.line for turn in turns]
        records["file"] = [self._names.setdefault(turn.source.file, len(self._names)) for turn in turns]
        records["case"] = [self._cases.setdefault(turn.case, len(self._cases)) for turn in turns]
        records["unit"] = [self._units.setdefault(turn.source.unit, len(self._units)) for turn in turns]
        self._write_weights(turns, completions, records)
        pieces = [
            piece
            for turn, shared in zip(turns, self._shared, strict=True)
            for piece in (turn.prompt[shared:] if shared else turn.prompt, turn.completion)
        ]
        ids = np.concatenate(pieces).astype("<i4", copy=False)
        self._write("ids", ids)
        self._write("turns", records)
        self._count(turns, prompts + completions, completions, ids)
        self._num_ids += len(ids)
        self._waiting, self._shared, self._begins, self._num_waiting = [], [], [], 0

    def _write_weights(self, turns: list[Turn], sizes: NDArray[Any], records: NDArray[Any]) -> None:
        weights = np.concatenate([turn.weight for turn in turns])
        starts = np.cumsum(sizes) - sizes
        records["weight"] = weights[starts]
        same = np.logical_and.reduceat(weights == np.repeat(weights[starts], sizes), starts)
        records["weights"] = -1
        for index in np.flatnonzero(~same):
            records["weights"][index] = self._num_weights
            self._write("weights", turns[index].weight.astype("<f4", copy=False))
            self._num_weights += int(sizes[index])

    def _count(self, turns: list[Turn], sizes: NDArray[Any], completions: NDArray[Any], ids: Ids) -> None:
        sums = self.sums
        sums.num_turns += len(turns)
        sums.longest = max(sums.longest, int(sizes.max()))
        sums.largest_id = max(sums.largest_id, int(ids.max()))
        sums.tokens += int(sizes.sum())
        sums.trained_tokens += int(completions.sum())
        for turn in turns:
            sums.cases[turn.case] = sums.cases.get(turn.case, 0) + 1


class TurnStore(Sequence[Sequence[Turn]]):
    """What a `TurnWriter` wrote: the turns of each conversation that has any, read when they are asked for.

    `renamed` says which names the data's files have now; `keep` lives as long as the turns can be read.
    """

    def __init__(
        self, folder: Path, name: str, renamed: Mapping[str, str] | None = None, keep: object = None
    ):
        base = folder / name
        facts = json.loads(_path(base, "json").read_text(encoding="utf-8"))
        self.sums = Sums(**facts["sums"])
        self._names = [(renamed or {}).get(name, name) for name in facts["names"]]
        self._cases, self._units = facts["cases"], facts["units"]
        self._ids: NDArray[np.int32] = _mapped(base, "ids", np.dtype("<i4"))
        self._turns = _mapped(base, "turns", TURN)
        self._groups = _mapped(base, "groups", np.dtype("<i8"))
        self._weights = _mapped(base, "weights", np.dtype("<f4"))
        self.last_prompts: NDArray[np.uint64] = _mapped(base, "prompts", np.dtype("<u8"))
        self._keep = keep

    def __len__(self) -> int:
        return len(self._groups) - 1

    @overload
    def __getitem__(self, index: int) -> Sequence[Turn]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sequence[Turn]]: ...
    def __getitem__(self, index: int | slice) -> Sequence[Turn] | Sequence[Sequence[Turn]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._read(index, index + 1)[0]

    def __iter__(self) -> Iterator[Sequence[Turn]]:
        for first in range(0, len(self), READ):
            yield from self._read(first, min(first + READ, len(self)))

    @property
    def conversations(self) -> NDArray[np.int64]:
        """Which of the conversations that were rendered these are, by number."""
        numbers: NDArray[np.int64] = self._turns["conversation"][self._groups[:-1]]
        return numbers

    def __repr__(self) -> str:
        return f"<the turns of {len(self)} conversations on disk>"

    def _read(self, first: int, stop: int) -> list[list[Turn]]:
        """The turns of the conversations from `first` up to `stop`."""
        bounds = self._groups[first : stop + 1].tolist()
        records = self._turns[bounds[0] : bounds[-1]].tolist()
        begin = records[0][0]
        end = records[-1][0] + records[-1][6] + records[-1][7]
        ids = np.array(self._ids[begin:end], np.int32)  # a copy: the file may go when the turns are in use
        found = []
        for start, after in pairwise(bounds):
            turns: list[Turn] = []
            for record in records[start - bounds[0] : after - bounds[0]]:
                turns.append(self._turn(record, ids, begin, turns[-1] if turns else None))
            found.append(turns)
        return found

    def _turn(self, record: tuple[Any, ...], ids: Ids, begin: int, last: Turn | None) -> Turn:
        start, conversation, line, at, weight, shared, rest, size, message, file, case, unit = record
        cut = start - begin + rest
        prompt = ids[cut - rest : cut]
        if shared:
            assert last is not None
            prompt = np.concatenate((_head(last, shared), prompt))
        weights = (
            np.full(size, weight, np.float32)
            if at < 0
            else np.array(self._weights[at : at + size], np.float32)
        )
        place = last.source if last else Place(self._names[file], line, self._units[unit])
        return Turn(prompt, ids[cut : cut + size], weights, place, conversation, message, self._cases[case])


def _path(base: Path, suffix: str) -> Path:
    return base.with_name(f"{base.name}.{suffix}")


def _mapped(base: Path, suffix: str, kind: np.dtype[Any]) -> NDArray[Any]:
    """The numbers of a file, mapped into memory."""
    return np.frombuffer(map_file(_path(base, suffix)), kind)


def _common(last: Turn, prompt: Ids) -> int:
    """How many leading ids a prompt has in common with the turn before it."""
    count = _agreeing(last.prompt, prompt)
    if count == len(last.prompt):
        count += _agreeing(last.completion, prompt[count:])
    return count


def _agreeing(a: Ids, b: Ids) -> int:
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


def _head(turn: Turn, count: int) -> Ids:
    """The first ids of a turn."""
    return turn.prompt[:count] if count <= len(turn.prompt) else turn.ids[:count]
