"""Replay cut into pieces: what may be drawn, and what is held out to tell what a model forgets.

    replay.*         the turns (see `store`); each piece is a group of its own
    replay.origin    int64, the conversation that each piece comes from
    replay.drawable  int64, the pieces that may be drawn
    replay.held_out  int64, those that are never trained

A piece is what is drawn at once: a piece of a document, or a conversation with all its replies.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from imprint.data.conversation import Conversation
from imprint.data.ledger import Ledger
from imprint.data.split import prompt_hash
from imprint.data.spool import Numbers, write_numbers
from imprint.render.documents import DOCUMENT
from imprint.render.store import Sums, TurnStore, TurnWriter
from imprint.render.turns import Turn

NAME = "replay"
ORIGIN, DRAWABLE, HELD_OUT = "replay.origin", "replay.drawable", "replay.held_out"
MOST_HELD_OUT = 64  # pieces, and
SHARE_HELD_OUT = 20  # at most one in so many

Integers = NDArray[np.int64]


class Chosen(Sequence[Sequence[Turn]]):
    """Some groups of a store, in this order; each is read when it is asked for."""

    def __init__(self, store: TurnStore, numbers: Sequence[int]):
        self.store, self.numbers = store, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Sequence[Turn]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sequence[Turn]]: ...
    def __getitem__(self, index: int | slice) -> Sequence[Turn] | Sequence[Sequence[Turn]]:
        if isinstance(index, slice):
            return [self.store[number] for number in self.numbers[index]]
        return self.store[self.numbers[index]]


@dataclass(frozen=True)
class Pieces:
    """The pieces of replay, what became of its rows, and what identifies it.

    `origin[i]` is the conversation of piece i, by its number in the sources.
    """

    drawable: Chosen
    held_out: Chosen
    origin: Sequence[int]
    ledger: Ledger
    fingerprint: str

    @property
    def sums(self) -> Sums:
        return self.drawable.store.sums


def write_pieces(
    folder: Path, conversations: Sequence[Conversation], turns: Iterable[Turn], ledger: Ledger
) -> None:
    """Write the turns of `conversations`, which come in their order, and choose what is held out.

    What became of each document and piece goes into `ledger`, which holds an account up to the turns.
    """
    origin = array("q")
    with TurnWriter(folder, NAME) as writer:
        for turn in turns:
            if turn.case == DOCUMENT or not origin or origin[-1] != turn.conversation:
                origin.append(turn.conversation)
            writer.add(replace(turn, conversation=len(origin) - 1))
    numbers = np.array(origin, np.int64)
    used = np.unique(numbers)
    for index in np.setdiff1d(np.arange(len(conversations)), used).tolist():
        ledger.withdraw("train", conversations[index].source, "nothing of it can be trained")
    hashes = np.zeros(len(conversations), np.uint64)
    for index in used.tolist():
        # not by the run's seed: the loss of what is held out is then the same number in runs of several seeds
        hashes[index] = prompt_hash(conversations[index], 0)
    apart = choose_held_out(numbers, hashes[numbers])
    if len(numbers) and not len(apart):
        note = "nothing of replay is held out, so what is forgotten is not measured: it is too little"
        ledger.warn(note, conversations[origin[0]].source)
    write_numbers(folder / ORIGIN, origin)
    write_numbers(folder / HELD_OUT, array("q", apart.tolist()))
    write_numbers(folder / DRAWABLE, array("q", np.setdiff1d(np.arange(len(numbers)), apart).tolist()))
    whole = np.setdiff1d(used, np.delete(numbers, apart))
    ledger.conversations.kept = {
        "to draw from": ledger.conversations.kept["train"] - len(whole),
        "held out": len(whole),
    }
    ledger.pieces.total = len(numbers)
    ledger.pieces.kept = {"to draw from": len(numbers) - len(apart), "held out": len(apart)}


def choose_held_out(origin: Integers, hashes: NDArray[np.uint64]) -> Integers:
    """Which pieces are never trained: whole documents, in the order of their hashes, as they find room.

    `origin` is each piece's conversation, and `hashes` says which of these have equal texts: they stay
    together. Of documents that are too long for that (books) the ends are held out. Both kinds share
    the room as they share the pieces.
    """
    count = len(origin)
    if count < 2:
        return np.empty(0, np.int64)
    most = min(MOST_HELD_OUT, max(1, count // SHARE_HELD_OUT))
    _, numbers, lengths = np.unique(origin, return_inverse=True, return_counts=True)
    long = lengths[numbers] > most
    room_for_ends = round(most * int(long.sum()) / count)
    whole = _whole(hashes, ~long, most - room_for_ends)
    return np.sort(np.concatenate((whole, _ends(origin, hashes, long, room_for_ends))))


def _whole(hashes: NDArray[np.uint64], among: NDArray[np.bool_], room: int) -> Integers:
    """Pieces of whole documents, of those in `among`."""
    pieces = np.flatnonzero(among)
    _, group, sizes = np.unique(hashes[pieces], return_inverse=True, return_counts=True)
    taken = np.zeros(len(sizes), bool)
    for number, size in enumerate(sizes.tolist()):  # np.unique sorts: in the order of their hashes
        if size <= room:
            taken[number] = True
            room -= size
        if not room:
            break
    return pieces[taken[group]]


def _ends(origin: Integers, hashes: NDArray[np.uint64], among: NDArray[np.bool_], room: int) -> Integers:
    """The last pieces of documents, of those in `among`; of copies, those of each."""
    found = [np.empty(0, np.int64)]
    for value in np.unique(hashes[among]):
        copies = np.unique(origin[among & (hashes == value)])
        length = int((origin == copies[0]).sum())
        end = min(room // len(copies), max(1, length // SHARE_HELD_OUT))
        if end:
            found += [np.flatnonzero(origin == one)[-end:] for one in copies]
            room -= end * len(copies)
        if not room:
            break
    return np.concatenate(found)


def read_pieces(
    folder: Path, facts: Any, renamed: dict[str, str] | None = None, keep: object = None
) -> Pieces:
    """What `write_pieces` wrote; `facts` are its ledger as JSON and its fingerprint."""
    store = TurnStore(folder, NAME, renamed, keep)
    origin, drawable, held_out = (Numbers(folder / name) for name in (ORIGIN, DRAWABLE, HELD_OUT))
    ledger = Ledger.from_json(facts["ledger"])
    return Pieces(Chosen(store, drawable), Chosen(store, held_out), origin, ledger, facts["fingerprint"])
