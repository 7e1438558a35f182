"""The rows of a file as Python's own strict parsers read them, with nothing of imprint."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow.feather
import pyarrow.parquet

from data.mutants import TABLES, Mutant

CSV_LIMIT = 1 << 27
ARROW = ("parquet", "arrow")


class Refused:
    """Stands for a row that no strict parser takes."""

    def __repr__(self) -> str:
        return "refused"


REFUSED = Refused()


class Twice(ValueError):
    """A key stands twice in an object."""


def rows_of(data: bytes, mutant: Mutant) -> list[Any] | None:
    """Each row of the file in order, `REFUSED` where it must be; None where only the file as a whole can be refused."""
    if mutant.written == "jsonl" and not _is_document(data, mutant):
        return _json_lines(data)
    if mutant.written == "json" and not mutant.name.endswith("ndjson"):
        return _json_document(data)
    if mutant.written in ("csv", "tsv"):
        return _table(data, mutant)
    if mutant.written in ARROW:
        return _arrow(data, mutant.written)
    return None


def _arrow(data: bytes, written: str) -> list[Any]:
    """Rows by pyarrow, without nulls."""
    read = pyarrow.parquet.read_table if written == "parquet" else pyarrow.feather.read_table
    return [without_nulls(row) for row in read(io.BytesIO(data)).to_pylist()]


def without_nulls(value: Any) -> Any:
    """The value without the nulls in its objects; those in its lists stay."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def as_cells(row: Any) -> Any:
    """A row as a table holds it: texts as they are, everything else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}


def _is_document(data: bytes, mutant: Mutant) -> bool:
    """Whether JSON lines may as well be one document: by the name, or because the first line opens a list."""
    suffix = mutant.name.removeprefix("rows").lower().rpartition(".")[2]
    lines = [line for line in data.splitlines() if line.strip()]
    return suffix not in ("jsonl", "ndjson", "gz", "xz", "bz2", "zst") or (
        bool(lines) and lines[0].strip().removeprefix(b"\xef\xbb\xbf") in (b"[", b"{")
    )


def _json_lines(data: bytes) -> list[Any] | None:
    if b"\0" in data:
        return None  # may be another encoding
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = data.split(b"\n") if b"\n" in data else data.split(b"\r")
    return [_strict(line) for line in lines if line and not line.isspace()]


def _strict(line: bytes) -> Any:
    try:
        value = json.loads(str(line, "utf-8").rstrip(), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return REFUSED
    return REFUSED if _has_half(value) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise Twice
    return dict(pairs)


def _has_half(value: Any) -> bool:
    """Whether a key or a text holds half a surrogate pair."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and any("\ud800" <= letter <= "\udfff" for letter in one):
            return True
        waiting += [*one, *one.values()] if isinstance(one, dict) else one if isinstance(one, list) else ()
    return False


def _json_document(data: bytes) -> list[Any] | None:
    try:
        value = json.loads(str(data.removeprefix(b"\xef\xbb\xbf"), "utf-8"))
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and list(value) == ["rows"]:
        value = value["rows"]
    if not isinstance(value, list) or not value:
        return None
    rows = [_strict(json.dumps(row).encode()) for row in value]
    try:
        json.loads(data.removeprefix(b"\xef\xbb\xbf"), object_pairs_hook=_unique)
    except Twice:
        return None  # which row it is, is told by JSON lines
    return rows


def _table(data: bytes, mutant: Mutant) -> list[Any] | None:
    """Rows by the csv module, where the header is that of the file that was whole."""
    csv.field_size_limit(CSV_LIMIT)
    delimiter = TABLES[f".{mutant.written}"]
    columns = list(dict.fromkeys(key for row in mutant.rows for key in row))
    try:
        text = str(data, "utf-8-sig")
        found = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except (ValueError, csv.Error):
        return None
    found = [cells for cells in found if cells]
    if "\0" in text or not found or found[0] != columns:
        return None
    if mutant.written == "tsv" and '"' in text:
        return None  # with quotes, or without: both are written
    rows = [dict(zip(columns, cells, strict=False)) for cells in found[1:]]
    good = (len(cells) == len(columns) and cells != columns for cells in found[1:])  # a header is no row
    return [row if fits else REFUSED for row, fits in zip(rows, good, strict=True)] or None
