"""What must hold of every mutant, whatever was done to it.

It loads, and then: the account's sums hold; each conversation can be learned from and came back from the
disk as it was made; each row was read as Python's own strict parser reads it, and refused where that
refuses it; a row that was not touched is trained as in the file that was whole; nothing is said that does
not stand in the row. Or it is refused: by one DataError with place and remedy, and not because of one row.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from data.mutants import Mutant
from data.strict import ARROW, REFUSED, as_cells, rows_of, without_nulls
from imprint.data.conversation import TEXT, Conversation, Place, Record
from imprint.data.formats import converter
from imprint.data.gather import read as gathered
from imprint.data.ledger import Ledger
from imprint.data.load import Loaded, load, settle
from imprint.data.readers import read
from imprint.data.replies import check
from imprint.data.text import Broken
from imprint.errors import DataError
from imprint.recipe import DataSource

SECONDS = 5.0  # of processor time for one mutant
LONGEST = 3000  # characters of a message
STOP_MARK = "<|endoftext|>"
SAID = {
    ("instruction", "input", "output"),
    ("prompt", "response"),
    ("question", "answer"),
    ("prompt", "completion"),
}
OTHER_KIND = "imprint does not read this kind of file"


class Verdict(NamedTuple):
    """What became of a mutant: "loaded", "in part" or "refused"; of the last, the reason."""

    outcome: str
    reason: str = ""


class TooSlow(BaseException):
    """A mutant took more than SECONDS."""


@contextmanager
def limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlow(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def examine(mutant: Mutant, folder: Path) -> Verdict:
    """Hold a mutant against all that must hold; AssertionError where it does not, or whatever imprint raised."""
    path = folder / mutant.name
    path.write_bytes(mutant.data)
    with limit():
        try:
            return _examine(mutant, path)
        finally:
            path.unlink()


def _examine(mutant: Mutant, path: Path) -> Verdict:
    expected = None if mutant.plain is None else rows_of(mutant.plain, mutant)
    wanted = _wanted(mutant, expected)
    ledger = Ledger()
    try:
        loaded = load_file(path, ledger)
    except DataError as error:
        refused = error
        loaded = None
    if loaded is None:
        _check_message(refused, mutant.name)
        other_kind = refused.what == OTHER_KIND and expected and expected[0] is REFUSED
        assert other_kind or not wanted, f"{len(wanted)} good rows were refused as a whole: {refused}"
        return Verdict("refused", refused.what)
    ledger.check()
    source = DataSource(path=path.name)
    records = list(read(source, path.parent))
    if expected is not None:
        _check_rows(records, expected, mutant.written)
    elif " truncated" in "".join(mutant.done) and mutant.name.endswith((".gz", ".xz", ".bz2", ".zst")):
        whole = len(records) >= len(mutant.rows)
        if mutant.written == "txt" and ".txt" in mutant.name:  # a text is one document
            whole = records[0].value["text"].encode() == "\n".join(map(str, mutant.rows)).encode(
                "utf-8", "replace"
            )
        assert whole, "a file that was cut off was read without a word"
    talks = [loaded.train.spool[row] for row in sorted([*loaded.train.rows, *loaded.validation.rows])]
    made = list(_made(source, path, mutant.name))
    assert list(map(repr, talks)) == list(map(repr, made)), "what came from the disk is not what was made"
    values = {record.place: record.value for record in records}
    for talk in talks:
        _check_talk(talk)
        if mutant.written in ("jsonl", "json", "csv", "tsv", "parquet", "arrow"):
            _check_said(talk, values[talk.source])
            _check_nothing_lost(talk, values[talk.source])
    if expected is not None:
        _check_untouched(records, wanted, talks)
    left = ledger.records.num_left + ledger.conversations.num_left
    return Verdict("in part" if left else "loaded")


def load_file(path: Path, ledger: Ledger) -> Loaded:
    return load(
        [DataSource(path=path.name)],
        validation=0.2,
        bad_rows="leave_out",
        consecutive_replies="merge",
        seed=0,
        ledger=ledger,
        base=path.parent,
    )


def _made(source: DataSource, path: Path, name: str) -> Iterator[Conversation]:
    """The conversations as they are before they are written to the disk."""
    convert = converter(source)
    for record in gathered(source, path.parent):
        try:
            talks = convert(record)
        except DataError as error:
            _check_message(error, name)
            continue
        for talk in talks:
            settled = settle(talk, "merge")
            if isinstance(settled, Conversation):
                yield settled


def _check_message(error: DataError, name: str) -> None:
    """Place, remedy, and a length that can be read."""
    assert error.where.startswith(name), f"no place: {error}"
    assert error.fix, f"no remedy: {error}"
    assert error.what, f"no reason: {error}"
    assert len(str(error)) < LONGEST, f"{len(str(error))} characters: {str(error)[:300]}"


def _check_talk(talk: Conversation) -> None:
    if talk.tokens is not None:
        assert any(talk.tokens.weights)
        assert len(talk.tokens.weights) == len(talk.tokens.ids)
    elif talk.messages[0].role == TEXT:
        assert talk.messages[0].content.strip()
        assert len(talk.messages) == 1
    else:
        check(talk.messages, talk.source)
    assert 0 < talk.weight < float("inf")


def _check_said(talk: Conversation, value: Any) -> None:
    """Every line of every message stands in a text of the row; FLAN's own words aside."""
    texts = list(_texts(value))
    held = "\n".join(texts) + "".join(texts)
    held += held.replace("\\n", "\n")
    is_flan = isinstance(value, dict) and ("rationale" in value or "2" in value)
    for message in talk.messages:
        for line in message.content.splitlines():
            said = line.removesuffix(".").partition("The answer is ")
            words = (said[0], said[2]) if is_flan else (line,)
            for word in words:
                assert word.strip() in held or not _rest(word, texts), f"invented: {word!r}, row {value!r}"


def _check_nothing_lost(talk: Conversation, value: Any) -> None:
    """What a row says in columns that have no other meaning than to be said, is said."""
    if not isinstance(value, dict):
        return
    said = "\n".join(message.content for message in talk.messages)
    wanted: list[Any] = []
    if tuple(value) in SAID:
        wanted = [text.removesuffix(STOP_MARK) for text in value.values() if isinstance(text, str)]
    talks = value.get("messages", value.get("conversations"))
    for message in talks if isinstance(talks, list) else ():
        if isinstance(message, dict) and set(message) in ({"role", "content"}, {"from", "value"}):
            who, text = (
                message.get(old, message.get(new)) for old, new in (("role", "from"), ("content", "value"))
            )
            wanted += [text] if isinstance(text, str) and "call" not in str(who) else []
    for text in wanted:
        assert text.strip() in said, f"{talk.source}: not said: {text!r}"


def _rest(word: str, texts: list[str]) -> str:
    """What of a line stands in no text: parts of a message are joined without a space."""
    for piece in sorted((piece for text in texts for piece in text.splitlines()), key=len, reverse=True):
        word = word.replace(piece.strip(), "") if piece.strip() else word
    return word.strip()


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value, and those in its texts that are JSON."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
            if one.lstrip()[:1] in ("[", "{", '"'):
                with suppress(ValueError, RecursionError):
                    waiting.append(json.loads(one))
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


# ---- rows


def _check_rows(records: list[Record], expected: list[Any], written: str) -> None:
    for record, value in zip(records, expected, strict=True):
        refused = isinstance(record.value, Broken)
        if value is REFUSED:
            assert refused, f"{record.place} was read: {record.value!r}"
            continue
        assert not refused, f"{record.place} was refused: {record.value.error}"
        found = without_nulls(record.value) if written in ARROW else record.value
        assert repr(found) == repr(value), f"{record.place} was read as another value"


# ---- rows that were not touched


def _said(talk: Conversation) -> str:
    """All that a conversation says, wherever it stands; Arrow knows no nulls, and one kind of number for a column."""
    bare = dataclasses.replace(talk, source=Place("", 0), id="", group="")
    return json.dumps(_as_floats(without_nulls(dataclasses.asdict(bare))), sort_keys=True)


def _as_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_floats(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_floats(inner) for inner in value]
    return float(value) if type(value) is int and abs(value) < 2**53 else value


def _key(row: Any, written: str) -> str:
    """What a row says in this kind of file: in a table, an empty cell and a null say nothing."""
    if isinstance(row, dict) and written in ("csv", "tsv"):
        row = {key: value for key, value in as_cells(row).items() if value}
    if isinstance(row, dict) and written in ARROW:
        row = _as_floats(without_nulls(row))
    return json.dumps(row, sort_keys=written in (*ARROW, "csv", "tsv"))


@functools.cache
def _pristine(text: str) -> tuple[str, ...]:
    """What the conversations of one row say, in a file that is whole."""
    value = json.loads(text)
    if isinstance(value, dict) and "message_id" in value:
        return ()  # belongs to a tree with others
    try:
        talks = converter(DataSource(path="rows.jsonl"))(Record(value, Place("rows.jsonl", 1)))
    except DataError:
        return ()
    settled = (settle(talk, "merge") for talk in talks)
    return tuple(_said(talk) for talk in settled if isinstance(talk, Conversation))


def _wanted(mutant: Mutant, expected: list[Any] | None) -> dict[int, tuple[str, ...]]:
    """Of the rows that were not touched, by their number in the file, what must be trained."""
    written = mutant.written
    whole = {
        _key(row, written): json.dumps(as_cells(row) if written in ("csv", "tsv") else row)
        for row in mutant.rows
    }
    keys = [_key(value, written) if value is not REFUSED else "" for value in expected or ()]
    wanted = {number: _pristine(whole[key]) for number, key in enumerate(keys) if key in whole}
    return {number: talks for number, talks in wanted.items() if talks}


def _check_untouched(
    records: list[Record],
    wanted: dict[int, tuple[str, ...]],
    talks: list[Conversation],
) -> None:
    found: dict[Place, list[Conversation]] = {}
    for talk in talks:
        found.setdefault(talk.source, []).append(talk)
    for number, pristine in wanted.items():
        place = records[number].place
        said = tuple(map(_said, found.get(place, ())))
        assert said == pristine, f"{place} was not touched, and changed: {said} from {pristine}"[:600]
