"""Read the records of one source: files of any kind in `open.KINDS`, or a hub dataset."""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from imprint.data import formats, parse_arrow, parse_json
from imprint.data.conversation import Place, Record
from imprint.data.faults import cut
from imprint.data.hub import hub_fingerprint, hub_rows
from imprint.data.ledger import Ledger
from imprint.data.locate import File, Located, locate
from imprint.data.open import DAMAGE, Look, damaged, look, unpacked
from imprint.data.parse_document import json_document
from imprint.data.parse_table import FLAN, csv_rows, dialect, looks_like_table
from imprint.data.text import LIMIT, decode, lines, too_long
from imprint.errors import DataError
from imprint.recipe import DataSource

NOT_TAKEN = "not taken by share"
NO_HEADER = "the table has no header: its columns are 0, 1, …"
AS_TEXT = "the text looks like a table, and is read as one document: name it .tsv, if its lines are rows"
UNKNOWN_HEADER = (
    "the first row is taken for a header, of unknown names ({}); "
    "if it is a row, say which column is which: fields.prompt=0 fields.response=1"
)
AS_FLAN = f"three columns without a header are read as {', '.join(FLAN)} (FLAN)"


def read(
    source: DataSource, base: Path | None = None, *, seed: int = 0, ledger: Ledger | None = None
) -> Iterator[Record]:
    """The records of `source`, in order, each with its place; a relative path starts at `base`.

    A row that cannot be parsed, in a file that can be read on, comes as a record whose value is
    `text.Broken`. Of a source with a share, which records are taken depends on `seed` and on where
    they stand alone: rows added at the end change nothing, and a larger share takes all that a
    smaller one takes. `ledger` is told of the others, and of what is worth a warning. Raises
    DataError when the source is missing, is empty, or cannot be read on.
    """
    found = locate(source, base)
    if ledger is not None and found is not None:
        for name in found.others:
            ledger.warn("a file that is no data was not read", Place(name, 1))
    return _counted(_parts(source, found, ledger), source, seed, ledger)


def fingerprint(source: DataSource, base: Path | None = None) -> str:
    """SHA-256 of the source's bytes and of the settings that change what is read from it.

    The path is not part of it: the same file elsewhere holds the same data. A hub dataset is
    represented by its id, its revision and the fingerprint that `datasets` gives it.
    """
    found = locate(source, base)
    settings: dict[str, Any] = {"format": source.format, "fields": source.fields}
    if source.share < 1:
        settings["share"] = source.share
    digest = hashlib.sha256()
    if found is None:
        settings |= source.model_dump(include={"path", "split", "config", "revision"})
        digest.update(hub_fingerprint(source).encode())
    elif found.saved:
        folder = found.files[0].path
        settings |= {"kind": "saved", "split": source.split}
        for path in parse_arrow.saved_files(folder, source.path, source.split):
            _hash(path, digest)
    elif len(found.files) == 1 and not found.files[0].key:
        (file,) = found.files
        settings["kind"] = look(file.path, file.name).kind
        _hash(file.path, digest)
    else:
        settings["files"] = [_of_file(file) for file in found.files]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _of_file(file: File) -> list[str]:
    digest = hashlib.sha256()
    _hash(file.path, digest)
    return [file.key, look(file.path, file.name).kind, digest.hexdigest()]


def _hash(path: Path, digest: Any) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


class Part(NamedTuple):
    """The records of one file of a source, its name in messages, and its name within the source."""

    name: str
    key: str
    records: Iterator[Record]


def _parts(source: DataSource, found: Located | None, ledger: Ledger | None) -> Iterator[Part]:
    if found is None:
        yield Part(source.path, "", hub_rows(source))
    elif found.saved:
        rows = parse_arrow.saved_rows(found.files[0].path, source.path, source.split)
        yield Part(source.path, "", rows)
    else:
        for file in found.files:
            yield Part(file.name, file.key, _one_of(found.files, file, source, ledger))


def _counted(parts: Iterator[Part], source: DataSource, seed: int, ledger: Ledger | None) -> Iterator[Record]:
    """The records that the share takes; DataError where there are none."""
    read = taken = 0
    bar = round(source.share * 2**64)
    for part in parts:
        before = read
        for record in part.records:
            read += 1
            if source.share < 1 and _lot(part.key, record, seed) >= bar:
                if ledger is not None:
                    ledger.pass_over(record.place, NOT_TAKEN)
                continue
            taken += 1
            yield record
        if read == before and part.key and ledger is not None:
            ledger.warn("the file is empty", Place(part.name, 1))
    if not read:
        raise DataError(
            "the file is empty",
            where=source.path,
            found="no rows",
            expected="at least one row",
            fix="give another file",
        )
    if not taken:
        raise DataError(
            "the share takes no row",
            where=source.path,
            found=f"share {source.share:g} of {read} rows",
            expected="at least one row",
            fix="give a larger share",
        )


def _lot(key: str, record: Record, seed: int) -> int:
    """64 bits that belong to a record's place; the messages of one tree have one lot."""
    place, value = record.place, record.value
    tree = value.get("message_tree_id") if type(value) is dict else None
    name = (
        f"{seed}/tree {tree}" if isinstance(tree, str) and tree else f"{seed}/{place.unit} {place.line}/{key}"
    )
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _one_of(files: list[File], file: File, source: DataSource, ledger: Ledger | None) -> Iterator[Record]:
    """The records of a file; where it cannot be read and others stand beside it, DataError says how to read these."""
    try:
        yield from _file(file, source, ledger)
    except DataError as error:
        if len(files) == 1:
            raise
        pattern = _without(files, file)
        fix = f"{error.fix}\nor leave it out: " + (
            f"name the others, {pattern}" if pattern else "move it elsewhere"
        )
        raise DataError(
            error.what, where=error.where, found=error.found, expected=error.expected, fix=fix
        ) from error


def _without(files: list[File], file: File) -> str:
    """A glob, quoted for a shell, that names all files of a source but one; "" where their suffixes do not tell."""
    others = [one for one in files if one is not file]
    suffixes = {"".join(Path(one.key).suffixes[-1:]) for one in others}
    suffix = suffixes.pop() if len(suffixes) == 1 else ""
    if not suffix or file.key.endswith(suffix):
        return ""
    root = file.name.removesuffix(file.key)
    deep = "**/" if any("/" in one.key for one in others) else ""
    return shlex.quote(f"{glob.escape(root)}{deep}*{suffix}")


def _file(file: File, source: DataSource, ledger: Ledger | None) -> Iterator[Record]:
    """The records of one file; where it turns out to be damaged, DataError says behind which one."""
    seen: Place | None = None
    codec = ""
    try:
        found = look(file.path, file.name)
        codec = found.codec
        for record in _rows(file, found, source, ledger):
            seen = record.place
            yield record
    except DAMAGE as error:
        raise damaged(file.name, error, codec, str(seen or "")) from error


def _rows(file: File, found: Look, source: DataSource, ledger: Ledger | None) -> Iterator[Record]:
    name = file.name
    if found.kind == "parquet":
        yield from parse_arrow.parquet_rows(file.path, name)
        return
    if found.kind == "arrow":
        yield from parse_arrow.arrow_rows(file.path, name)
        return
    with unpacked(file.path, found.codec) as data:
        short = not found.codec and file.path.stat().st_size <= LIMIT
        if found.kind == "json":
            yield from json_document(data, name, functools.partial(_is_row, source))
        elif found.kind == "jsonl":
            yield from parse_json.json_lines(lines(data, name, found.head, short=short), name)
        elif found.kind == "txt":
            if ledger is not None and looks_like_table(found.head) == "\t":
                ledger.warn(AS_TEXT, Place(name, 1))
            yield from _document(data.read(LIMIT + 1), name)
        else:
            yield from _table(lines(data, name, found.head, short=short), name, found, source, ledger)


def _document(data: bytes, name: str) -> Iterator[Record]:
    """A text file as one record."""
    if len(data) > LIMIT:
        raise too_long("text file", name)
    text = decode(data, name)
    if text.strip():
        yield Record({"text": text}, Place(name, 1))


def _table(
    rows: Iterator[bytes], name: str, found: Look, source: DataSource, ledger: Ledger | None
) -> Iterator[Record]:
    known = {*formats.COLUMNS, *formats.OPTIONAL, *source.fields.values()}
    style = dialect(found.head, tabs=found.kind == "tsv")
    flan = source.format == "flan_cot" or (source.format == "auto" and style.flan)
    for row in csv_rows(rows, name, style._replace(flan=flan and not source.fields), known):
        if isinstance(row, Record):
            yield row
        elif row.headerless and ledger is not None:
            ledger.warn(AS_FLAN if row.columns == FLAN else NO_HEADER, Place(name, 1))
        elif not row.known and ledger is not None:
            ledger.warn(UNKNOWN_HEADER.format(cut(", ".join(row.columns))), Place(name, 1))


def _is_row(source: DataSource, value: dict[str, Any]) -> bool:
    return any(column in value for column in source.fields.values()) or formats.is_row(value)
