"""Rows into a file of any kind that imprint writes: aside first, read again, then moved in one step."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from imprint.errors import DataError

Row = dict[str, Any]
STDOUT = "-"
SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"
}  # fmt: skip
TABLES = ("csv", "parquet")
BATCH = 1000  # rows of a Parquet batch


def kind_of(out: str) -> tuple[str, bool]:
    """The kind of an output file by its name, and whether it is gzipped; DataError for others."""
    if out == STDOUT:
        return "jsonl", False
    name = out.lower()
    packed = name.endswith(".gz")
    kind = SUFFIXES.get(Path(name.removesuffix(".gz")).suffix)
    if kind is None or (packed and kind == "parquet"):
        raise DataError(
            "imprint does not write this kind of file",
            where=out,
            expected=".jsonl, .json, .csv, .tsv (each also .gz), .parquet, or - for JSON lines on standard output",
            fix="write the rows into rows.jsonl",
        )
    return kind, packed


def line(row: Row) -> str:
    """A row as a line of JSON. What a table holds beside JSON's types, dates for instance, becomes its text."""
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


@contextlib.contextmanager
def aside(out: Path, *, force: bool | None = None) -> Iterator[Path]:
    """A path beside `out` that gets its name when all went well, and is removed when not.

    DataError where `out` is there already and `force` is not given; None says that there is no such option.
    """
    refuse_existing(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    # hidden, so that no folder or glob that is read takes it for data; with the suffix that tells its kind
    partial = out.with_name(f".partial-{os.getpid()}-{secrets.token_hex(3)}-{out.name}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        refuse_existing(out, force=force)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def refuse_existing(out: Path, *, force: bool | None = None) -> None:
    if out.is_dir() or (out.exists() and not force):
        other = "choose another name, or " + (
            "remove it first" if force is None else "write over it with --force"
        )
        raise DataError(
            "it is a folder" if out.is_dir() else "the file exists already",
            where=str(out),
            fix="name a file in it" if out.is_dir() else other,
        )


def write_rows(rows: Path, to: Path, kind: str, *, tabs: bool = False, packed: bool = False) -> None:
    """The rows of a file of JSON lines as a file of another kind."""
    if kind == "parquet":
        _parquet(rows, to)
        return
    with _opened(to, packed) as file:
        if kind == "jsonl":
            for text in _lines(rows):
                file.write(text)
        elif kind == "json":
            start = "[\n"
            for text in _lines(rows):
                file.write(start + text.rstrip("\n"))
                start = ",\n"
            file.write("\n]\n")
        else:
            _csv(rows, file, "\t" if tabs else ",")


def print_rows(rows: Path) -> None:
    for text in _lines(rows):
        sys.stdout.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def _opened(path: Path, packed: bool) -> Iterator[IO[str]]:
    """A text file in UTF-8, gzipped without the time if asked for: equal rows give equal bytes."""
    with contextlib.ExitStack() as stack:
        raw: Any = stack.enter_context(path.open("wb"))
        if packed:
            raw = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline=""))


def _lines(rows: Path) -> Iterator[str]:
    with rows.open(encoding="utf-8", newline="\n") as file:
        yield from file


def _read(rows: Path) -> Iterator[Row]:
    return map(json.loads, _lines(rows))


def _columns(rows: Path) -> list[str]:
    """All columns, in the order in which they first occur."""
    return list(dict.fromkeys(itertools.chain.from_iterable(_read(rows))))


def _csv(rows: Path, file: IO[str], delimiter: str) -> None:
    """A table with a header; a cell that is no text holds its JSON, a weight that is not given is 1."""
    columns = _columns(rows)
    table = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    table.writerow(columns)
    missing = {"weight": 1}
    for row in _read(rows):
        table.writerow([_cell(row.get(column, missing.get(column, ""))) for column in columns])


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parquet(rows: Path, to: Path) -> None:
    """A table whose columns have types; messages that hold more than texts and numbers stand as JSON text.

    In a column of structs every row has the fields of all others, so schemas and arguments would change.
    """
    import pyarrow
    import pyarrow.parquet

    columns = _columns(rows)
    types = {column: _type(column, _read(rows)) for column in columns}
    schema = pyarrow.schema([(column, kind or pyarrow.string()) for column, kind in types.items()])
    with pyarrow.parquet.ParquetWriter(to, schema, compression="zstd") as writer:
        given = _read(rows)
        while batch := list(itertools.islice(given, BATCH)):
            cells = {
                column: [_arrow_cell(row.get(column), kind) for row in batch]
                for column, kind in types.items()
            }
            writer.write_table(pyarrow.table(cells, schema=schema))


def _arrow_cell(value: Any, kind: Any) -> Any:
    return value if value is None or kind is not None else _cell(value)


def _type(column: str, rows: Iterable[Row]) -> Any:
    """The Arrow type of a column; None where it is best held as text."""
    import pyarrow

    if column == "weight":
        return pyarrow.float64()
    names: dict[str, Any] = {}
    for row in rows:
        value = row.get(column)
        if value is None:
            continue
        if not isinstance(value, list):
            return None
        for item in value:
            if isinstance(item, dict):
                for name, inner in item.items():
                    kind = pyarrow.float64() if isinstance(inner, (int, float)) else pyarrow.string()
                    if isinstance(inner, (dict, list)) or names.setdefault(name, kind) != kind:
                        return None
            elif names.setdefault("", _item_type(item)) != _item_type(item):
                return None
    if not names or ("" in names and (len(names) > 1 or names[""] is None)):
        return None
    return pyarrow.list_(names[""] if "" in names else pyarrow.struct(cast(Any, list(names.items()))))


def _item_type(item: Any) -> Any:
    import pyarrow

    if isinstance(item, int):
        return pyarrow.int64()
    if isinstance(item, list) and all(isinstance(text, str) for text in item):
        return pyarrow.list_(pyarrow.string())
    return None
