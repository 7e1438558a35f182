"""From any format that imprint reads to a file of one of those that it writes, with nothing lost or invented."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from imprint.data.conversation import Conversation
from imprint.data.formats import converter
from imprint.data.gather import read
from imprint.data.ledger import Ledger, Level, Tally
from imprint.data.load import stopped
from imprint.data.rows import difference, row_writer
from imprint.data.spool import Scratch
from imprint.data.unused import Unused, format_of
from imprint.data.write import STDOUT, TABLES, aside, kind_of, line, print_rows, refuse_existing, write_rows
from imprint.errors import DataError
from imprint.recipe import DataSource


def convert(
    sources: Sequence[DataSource],
    out: str,
    *,
    to: str = "messages",
    bad_rows: str = "stop",
    force: bool = False,
    seed: int = 0,
) -> Ledger:
    """Write the conversations of the sources as rows of the format `to`, and account for every one.

    `out` is a file or - for standard output. It appears whole or not at all; it is not written over
    without `force`, and never where it is itself read. With bad_rows="stop", rows that cannot be
    read, and conversations that the format cannot hold, raise one DataError and nothing is written.
    """
    kind, packed = kind_of(out)
    write = row_writer(to)
    path = Path(out).expanduser()
    if out != STDOUT:
        _refuse_input(sources, path)
        refuse_existing(path, force=force)
    ledger = Ledger()
    ledger.conversations = Level(kept={"written": 0})
    scratch = Scratch()
    rows = scratch.path / "rows.jsonl"
    unused = Unused()
    first, bad = _write_all(sources, rows, write, ledger, seed, unused)
    if bad_rows == "stop" and first is not None:
        raise stopped(first, bad)
    ledger.check()
    if words := unused.words():
        ledger.note(f"not used: {words}")
    if not ledger.conversations.kept["written"]:
        raise DataError(
            "no conversation is left to write",
            where=", ".join(source.path for source in sources),
            found="\n".join(f"{reason} × {tally.count} ({tally})" for reason, tally in bad.items())
            or str(first),
            fix="mend these rows, or give other data",
        )
    if out == STDOUT:
        print_rows(rows)
        return ledger
    with aside(path, force=force) as partial:
        write_rows(rows, partial, kind, tabs=".tsv" in path.suffixes, packed=packed)
        if kind in TABLES:
            _compare(rows, partial, path)
    return ledger


def _write_all(
    sources: Sequence[DataSource],
    rows: Path,
    write: Callable[[Conversation], dict[str, Any]],
    ledger: Ledger,
    seed: int,
    unused: Unused,
) -> tuple[DataError | None, dict[str, Tally]]:
    """All rows as JSON lines; the first error, and the others by reason."""
    first: DataError | None = None
    bad: dict[str, Tally] = {}

    def note(error: DataError, place: Any) -> None:
        nonlocal first
        if first is None:
            first = error
        else:
            bad.setdefault(error.what, Tally()).add(place)

    with rows.open("w", encoding="utf-8", newline="\n") as file:
        for number, source in enumerate(sources):
            key = f"data.{number}"
            reading = converter(source, key, ledger.warn)
            for record in read(source, seed=seed, ledger=ledger):
                ledger.read(record.place)
                try:
                    conversations = reading(record)
                except DataError as error:
                    ledger.refuse(record.place, error.what)
                    note(error, record.place)
                    continue
                ledger.use(record.place)
                unused.add(*format_of(record, source, key))
                for conversation in conversations:
                    ledger.conversation(record.place)
                    try:
                        file.write(line(write(conversation)))
                    except DataError as error:
                        ledger.leave_out(record.place, error.what)
                        note(error, record.place)
                    else:
                        ledger.conversations.keep("written")
    return first, bad


def _refuse_input(sources: Sequence[DataSource], out: Path) -> None:
    """DataError where what is written would itself be read."""
    mine = out.resolve()
    for source in sources:
        given = Path(source.path).expanduser()
        inside = given.is_dir() and given.resolve() in mine.parents
        found = source.path != "-" and glob.has_magic(source.path) and not given.exists()
        matched = found and any(Path(one).resolve() == mine for one in glob.iglob(str(given), recursive=True))
        if given.resolve() == mine or inside or matched:
            raise DataError(
                "the output is a part of the input",
                where=str(out),
                found=f"{source.path} is read",
                expected="another file or folder",
                fix="choose another name for the output",
            )


def _compare(rows: Path, written: Path, out: Path) -> None:
    """DataError where the table does not give back, row by row, what its rows say."""
    place, lost = "", ""
    try:
        for mine, theirs in zip(_conversations(rows), _conversations(written), strict=True):
            place = f", row {mine.source.line}"
            if lost := difference(mine, theirs):
                break
    except DataError as error:
        lost = f"what is in it: {error.what} ({error.found})"
    if lost:
        raise DataError(
            f"a table of this kind cannot hold {lost}",
            where=f"{out}{place}",
            expected="conversations that a table holds whole",
            fix="write JSON lines: name the output .jsonl",
        )


def _conversations(path: Path) -> Iterator[Conversation]:
    source = DataSource(path=str(path))
    reading = converter(source)
    for record in read(source):
        yield from reading(record)
