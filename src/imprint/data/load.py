"""From the sources of a recipe to the conversations that are trained and held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imprint.data.conversation import Conversation
from imprint.data.formats import converter
from imprint.data.ledger import Ledger, Tally
from imprint.data.readers import fingerprint, read
from imprint.data.replies import has_adjacent_replies, merge_replies
from imprint.data.split import first_trained, split
from imprint.errors import DataError
from imprint.recipe import DataSource


@dataclass(frozen=True, slots=True)
class Loaded:
    """The conversations of a run, in the order of the files, and what identifies them."""

    train: list[Conversation]
    validation: list[Conversation]
    fingerprint: str


def load(
    data: Sequence[DataSource],
    *,
    validation: float | DataSource,
    bad_rows: Literal["stop", "leave_out"],
    consecutive_replies: Literal["merge", "leave_out"],
    seed: int,
    ledger: Ledger,
    base: Path | None = None,
) -> Loaded:
    """Read every source, account for every row in `ledger`, and hold out the validation share.

    Relative paths start at `base`. With bad_rows="stop", bad rows raise one DataError after
    everything is read. Raises DataError too where no conversation is left to train on.
    """
    held_out = [validation] if isinstance(validation, DataSource) else []
    rows = _Rows(ledger, base)
    train = [item for number, source in enumerate(data) for item in rows.read(source, f"data.{number}")]
    apart = [item for source in held_out for item in rows.read(source, "validation")]
    if bad_rows == "stop" and rows.first is not None:
        raise _stop(rows.first, rows.bad)
    train = _usable(train, consecutive_replies, ledger)
    apart = _usable(apart, consecutive_replies, ledger)
    _refuse_none(train, data, "trainable", ledger)
    if isinstance(validation, DataSource):
        _refuse_none(apart, held_out, "validation", ledger)
        _warn_of_copies(train, apart, ledger)
    else:
        everything = train
        train, apart = split(everything, validation, seed)
        if validation > 0 and not apart:
            ledger.warn("nothing is held out: all prompts are equal", everything[0].source)
    ledger.keep("train", len(train))
    ledger.keep("validation", len(apart))
    # bad_rows is not part of it: where both settings load at all, they load the same
    settings = [consecutive_replies, None if held_out or not validation else [validation, seed]]
    parts = [[fingerprint(source, base) for source in sources] for sources in (data, held_out)]
    digest = hashlib.sha256(json.dumps([parts, settings]).encode()).hexdigest()
    return Loaded(train, apart, digest)


class _Rows:
    """Reads sources, and remembers the first bad row in full and the others by reason."""

    def __init__(self, ledger: Ledger, base: Path | None):
        self.ledger, self.base = ledger, base
        self.first: DataError | None = None
        self.bad: dict[str, Tally] = {}

    def read(self, source: DataSource, key: str) -> list[Conversation]:
        convert = converter(source, key)
        ledger = self.ledger
        conversations = []
        for record in read(source, self.base):
            place = record.place
            ledger.read(place)
            try:
                conversations.append(convert(record))
            except DataError as error:
                ledger.refuse(place, error.what)
                if self.first is None:
                    self.first = error
                else:
                    self.bad.setdefault(error.what, Tally()).add(place)
            else:
                ledger.use(place)
                ledger.conversation(place)
        return conversations


def _usable(
    conversations: list[Conversation], consecutive_replies: str, ledger: Ledger
) -> list[Conversation]:
    """The conversations that have something to train, with adjacent replies merged or left out."""
    usable = []
    for conversation in conversations:
        if consecutive_replies == "leave_out" and has_adjacent_replies(conversation):
            settled: Conversation | str = "two replies in a row"
        else:
            settled = merge_replies(conversation)
        if not isinstance(settled, str) and (settled.weight == 0 or first_trained(settled) is None):
            settled = "no reply has a weight above 0"
        if isinstance(settled, str):
            ledger.leave_out(conversation.source, settled)
        else:
            usable.append(settled)
    return usable


def _stop(first: DataError, others: dict[str, Tally]) -> DataError:
    """The first bad row in full, and the others counted by reason."""
    found = first.found
    if others:
        found += f"\nand {sum(tally.count for tally in others.values())} more:"
        found += "".join(f"\n{reason} × {tally.count} ({tally})" for reason, tally in others.items())
    fix = f"{first.fix}\nor train without the bad rows: bad_rows=leave_out"
    return DataError(first.what, where=first.where, found=found, expected=first.expected, fix=fix)


def _refuse_none(
    conversations: list[Conversation], sources: Sequence[DataSource], kind: str, ledger: Ledger
) -> None:
    if conversations:
        return
    reasons = ledger.records.left | ledger.conversations.left
    raise DataError(
        f"0 {kind} rows",
        where=", ".join(source.path for source in sources),
        found="\n".join(f"{reason} × {tally.count} ({tally})" for reason, tally in reasons.items()),
        expected="at least one conversation with a reply to learn",
        fix="mend these rows, or give other data",
    )


def _warn_of_copies(train: list[Conversation], validation: list[Conversation], ledger: Ledger) -> None:
    """Warn of validation conversations that are trained on too: their loss says little."""
    seen = set(map(_content, train))
    for conversation in validation:
        if _content(conversation) in seen:
            ledger.warn("a validation conversation is also trained on", conversation.source)


def _content(conversation: Conversation) -> str:
    said = [(m.role, m.content, m.reasoning, m.tool_calls) for m in conversation.messages]
    return json.dumps([said, conversation.tools], sort_keys=True, default=str)
