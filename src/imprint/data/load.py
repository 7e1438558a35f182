"""From the sources of a recipe to the conversations that are trained and held out.

Rows are read, settled and written to a spool one by one; what stays in memory of a row are the
eight bytes by which it is split, and the eight by which copies of it are found.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from imprint.data.conversation import Conversation
from imprint.data.formats import converter
from imprint.data.gather import fingerprint, read
from imprint.data.ledger import PLACES, Ledger, Tally
from imprint.data.locate import stamps_of
from imprint.data.replies import has_adjacent_replies, merge_replies
from imprint.data.split import has_trained, prompt_hash, split
from imprint.data.spool import Numbers, Part, Scratch, Spool, SpoolWriter, write_numbers
from imprint.data.unused import Unused, format_of
from imprint.errors import DataError
from imprint.recipe import DataSource

MOST_REPEATED = 0.01  # share of the conversations trained on; if more repeat another, that is warned of

REPEATS = "a conversation repeats an earlier one"
OVERLAPS = "a validation conversation is also trained on"

FACTS, TRAIN, VALIDATION, PROMPTS = "loaded.json", "train.rows", "validation.rows", "prompts.hashes"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The conversations of a run, in the order of the files, and what identifies them.

    They lie on disk and are read one by one. `reasoning` is the share of those trained on in
    which some reply has reasoning, apart or in tags. `prompts` has the `prompt_hash` of each row of
    the spool, as an int64.
    """

    train: Part
    validation: Part
    fingerprint: str
    reasoning: float = 0.0
    prompts: Sequence[int] = field(default=(), compare=False, repr=False)


class Identity(NamedTuple):
    """What identifies the sources' bytes: a hash of each, of [data, validation]; and how the files looked."""

    parts: list[list[str]]
    stamps: list[tuple[int, int]]  # bytes and time of change of each file


def identify(
    data: Sequence[DataSource], held_out: Sequence[DataSource], base: Path | None = None
) -> Identity:
    """Hash every source; DataError where one is missing."""
    stamps = _stamps([*data, *held_out], base)
    return Identity(
        [[fingerprint(source, base) for source in sources] for sources in (data, held_out)], stamps
    )


def load(
    data: Sequence[DataSource],
    *,
    validation: float | DataSource,
    bad_rows: Literal["stop", "leave_out"],
    consecutive_replies: Literal["merge", "leave_out"],
    seed: int,
    ledger: Ledger,
    base: Path | None = None,
    folder: Path | None = None,
    identity: Identity | None = None,
    key: str = "data",
) -> Loaded:
    """Read every source, account for every row in `ledger`, and hold out the validation share.

    Relative paths start at `base`; the recipe calls `data` by `key`. The conversations are written into
    `folder` (none: a temporary one), from which `reopen` reads them again. With bad_rows="stop", bad
    rows raise one DataError after everything is read. Raises DataError too where no conversation is
    left to train on, and where a file changed since `identity` was taken.
    """
    held_out = [validation] if isinstance(validation, DataSource) else []
    identity = identity or identify(data, held_out, base)
    scratch = Scratch() if folder is None else None
    place = scratch.path if scratch else folder
    assert place is not None
    with SpoolWriter(place) as spool:
        rows = _Rows(ledger, base, spool, consecutive_replies, seed)
        for number, source in enumerate(data):
            rows.read(source, f"{key}.{number}")
        count = len(spool)
        for source in held_out:
            rows.read(source, "validation")
    if bad_rows == "stop" and rows.first is not None:
        raise stopped(rows.first, rows.bad)
    _refuse_none(count, data, "trainable", ledger)
    train, apart = array("q", range(count)), array("q", range(count, len(spool)))
    if held_out:
        _refuse_none(len(apart), held_out, "validation", ledger)
    elif validation:
        assert isinstance(validation, float)
        train, apart = split(rows.prompts, validation)
    if _stamps([*data, *held_out], base) != identity.stamps:
        _refuse_changed(identity, data, held_out, base)
    write_numbers(place / TRAIN, train)
    write_numbers(place / VALIDATION, apart)
    write_numbers(place / PROMPTS, array("q", rows.prompts.tobytes()))
    settings = [consecutive_replies, None if held_out or not validation else [validation, seed]]
    drawn = [seed] if any(source.share < 1 for source in (*data, *held_out)) else []
    _write_facts(place, rows, train, [identity.parts, settings, *drawn])
    if words := rows.unused.words():
        ledger.note(f"not used: {words}")
    loaded = reopen(place, keep=scratch)
    ledger.keep("train", len(train))
    ledger.keep("validation", len(apart))
    _tell_copies(loaded, rows.contents, ledger)
    if validation and not apart:
        ledger.warn("nothing is held out: all prompts are equal", loaded.train[0].source)
    return loaded


def _write_facts(place: Path, rows: _Rows, train: Sequence[int], identity: Sequence[Any]) -> None:
    """What `reopen` needs. bad_rows is not part of the fingerprint: where both settings load, they load the same."""
    facts = {
        "fingerprint": hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        "reasoning": sum(map(rows.reasoning.__getitem__, train)) / len(train),
        "names": rows.spool.names,
    }
    (place / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def reopen(folder: Path, renamed: Mapping[str, str] | None = None, keep: object = None) -> Loaded:
    """What `load` wrote into a folder; `renamed` says which names the data's files have now."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    spool = Spool(folder, [(renamed or {}).get(name, name) for name in facts["names"]], keep)
    train, validation = (Part(spool, Numbers(folder / name)) for name in (TRAIN, VALIDATION))
    return Loaded(train, validation, facts["fingerprint"], facts["reasoning"], Numbers(folder / PROMPTS))


class _Rows:
    """Reads sources into a spool, and remembers the first bad row in full and the others by reason."""

    def __init__(
        self,
        ledger: Ledger,
        base: Path | None,
        spool: SpoolWriter,
        consecutive_replies: str,
        seed: int,
    ):
        self.ledger, self.base, self.spool = ledger, base, spool
        self.consecutive_replies, self.seed = consecutive_replies, seed
        self.first: DataError | None = None
        self.bad: dict[str, Tally] = {}
        self.unused = Unused()
        self.prompts = array("Q")  # a hash of each one's prompt
        self.contents = array("Q")  # and of all that it says
        self.reasoning = bytearray()  # 1 where a reply has reasoning

    def read(self, source: DataSource, key: str) -> None:
        ledger = self.ledger
        convert = converter(source, key, ledger.warn)
        for record in read(source, self.base, seed=self.seed, ledger=ledger):
            place = record.place
            ledger.read(place)
            try:
                conversations = convert(record)
            except DataError as error:
                ledger.refuse(place, error.what)
                if self.first is None:
                    self.first = error
                else:
                    self.bad.setdefault(error.what, Tally()).add(place)
            else:
                ledger.use(place)
                self.unused.add(*format_of(record, source, key))
                for conversation in conversations:
                    ledger.conversation(place)
                    self.keep(conversation)

    def keep(self, conversation: Conversation) -> None:
        """Spool a conversation that has something to train, with adjacent replies merged or left out."""
        settled = settle(conversation, self.consecutive_replies)
        if isinstance(settled, str):
            self.ledger.leave_out(conversation.source, settled)
            return
        self.spool.add(settled)
        self.prompts.append(prompt_hash(settled, self.seed))
        self.contents.append(_content_hash(settled))
        self.reasoning.append(any(m.role == "assistant" and m.thought[0] for m in settled.messages))


def settle(conversation: Conversation, consecutive_replies: str) -> Conversation | str:
    """The conversation with adjacent replies merged, or the reason why it is left out."""
    if consecutive_replies == "leave_out" and has_adjacent_replies(conversation):
        return "two replies in a row"
    settled = merge_replies(conversation)
    if not isinstance(settled, str) and (settled.weight == 0 or not has_trained(settled)):
        return "no reply has a weight above 0"
    return settled


def stopped(first: DataError, others: dict[str, Tally]) -> DataError:
    """The first bad row in full, and the others counted by reason."""
    found = first.found
    if others:
        found += f"\nand {sum(tally.count for tally in others.values())} more:"
        found += "".join(f"\n{reason} × {tally.count} ({tally})" for reason, tally in others.items())
    fix = f"{first.fix}\nor train without the bad rows: bad_rows=leave_out"
    return DataError(first.what, where=first.where, found=found, expected=first.expected, fix=fix)


def _refuse_none(count: int, sources: Sequence[DataSource], kind: str, ledger: Ledger) -> None:
    if count:
        return
    reasons = ledger.records.left | ledger.conversations.left
    raise DataError(
        f"0 {kind} rows",
        where=", ".join(source.path for source in sources),
        found="\n".join(f"{reason} × {tally.count} ({tally})" for reason, tally in reasons.items()),
        expected="at least one conversation with a reply to learn",
        fix="mend these rows, or give other data",
    )


def _stamps(sources: Sequence[DataSource], base: Path | None) -> list[tuple[int, int]]:
    """Size and time of change of every source that is a file."""
    return [stamp for source in sources for stamp in stamps_of(source, base)]


def _refuse_changed(
    identity: Identity, data: Sequence[DataSource], held_out: Sequence[DataSource], base: Path | None
) -> None:
    """DataError where the bytes that were hashed are not those that were read."""
    after = identify(data, held_out, base).parts
    if after != identity.parts:
        old = [part for parts in identity.parts for part in parts]
        new = [part for parts in after for part in parts]
        changed = [s.path for s, a, b in zip([*data, *held_out], old, new, strict=True) if a != b]
        raise DataError(
            "the data changed while it was read",
            where=", ".join(changed),
            expected="files that nothing writes to",
            fix="wait until they are written, then start again",
        )


def _tell_copies(loaded: Loaded, contents: array[int], ledger: Ledger) -> None:
    """Tell of conversations that come twice: among those trained on, and of validation among those."""
    trained: set[int] = set()
    again = []
    for number, row in enumerate(loaded.train.rows):
        if contents[row] in trained:
            again.append(number)
        trained.add(contents[row])
    both = [number for number, row in enumerate(loaded.validation.rows) if contents[row] in trained]
    if again:
        ledger.tell(
            REPEATS,
            _tally(loaded.train, again),
            warning=len(again) > MOST_REPEATED * len(loaded.train),
            detail="each is trained as often as it stands there: keep one of each, or leave it if you mean it; "
            "`imprint data check` says which repeats which",
        )
    if both:
        ledger.tell(
            OVERLAPS,
            _tally(loaded.validation, both),
            warning=True,
            detail="what was trained on says little of what was learned: remove these rows from one of the two",
        )


def _tally(part: Part, rows: Sequence[int]) -> Tally:
    """How many rows of a part, and where the first of them stand."""
    return Tally(len(rows), list(dict.fromkeys(part[row].source for row in rows[:PLACES])))


def _content_hash(conversation: Conversation) -> int:
    """64 bits of SHA-256 over all that a conversation says."""
    said = [(m.role, m.content, m.reasoning, m.tool_calls) for m in conversation.messages]
    text = json.dumps([said, conversation.tools, conversation.tokens], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
