"""Tables in, records out: CSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imprint.data.conversation import Place, Record
from imprint.data.text import Broken, decode, refuse_foreign
from imprint.errors import DataError


def csv_rows(data: bytes, file: str) -> Iterator[Record]:
    """One record per CSV row under the header, a dict of texts; the place is the row's first line."""
    refuse_foreign(data, file)
    text = decode(data, file)
    if "\0" in text:
        at = text.index("\0")
        raise DataError(
            "the file holds a null byte",
            where=f"{file}:{1 + text.count(chr(10), 0, at)}",
            found=f"\\0 at byte offset {data.index(0)}",
            expected="CSV text in UTF-8",
            fix="remove it; where every second byte is null, save the file as UTF-8",
        )
    csv.field_size_limit(2**31 - 1)  # the module's limit of 131,072 characters is shorter than some replies
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    header: list[str] = []
    first = 1
    try:
        for cells in reader:
            place, first = Place(file, first), reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = _header(cells, place)
            elif len(cells) != len(header):
                yield Record(Broken(_wrong_width(cells, header, place)), place)
            else:
                yield Record(dict(zip(header, cells, strict=True)), place)
    except csv.Error as error:
        raise DataError(
            "not valid CSV",
            where=f"{file}:{first}",
            found=str(error),
            expected='a cell in quotes is closed before the next cell; a quote inside it is doubled: ""',
            fix="close the quote in the row that starts here",
        ) from error


def _delimiter(text: str) -> str:
    """A comma, unless the header has none: then the semicolon or tab that it has."""
    header = text.lstrip("\r\n").partition("\n")[0]
    return next((char for char in ",;\t" if char in header), ",")


def _header(cells: list[str], place: Place) -> list[str]:
    twice = sorted({name for name in cells if cells.count(name) > 1})
    if twice:
        raise DataError(
            "two columns have the same name",
            where=str(place),
            found=", ".join(map(repr, twice)),
            expected="a header of different names",
            fix="rename one of them",
        )
    return cells


def _wrong_width(cells: list[str], header: list[str], place: Place) -> DataError:
    return DataError(
        "the row has the wrong number of columns",
        where=str(place),
        found=f"{len(cells)} cells",
        expected=f"{len(header)}, as in the header: {', '.join(header)}",
        fix="put a cell that holds a separator or a line break in double quotes",
    )


def parquet_rows(path: Path, file: str) -> Iterator[Record]:
    """One record per row; the place counts rows from 1. Nulls inside structs are dropped."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(without_nulls(row), Place(file, number, "row"))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            "the Parquet file cannot be read",
            where=str(Place(file, number + 1, "row")),
            found=str(error).splitlines()[0],
            expected="a whole Parquet file",
            fix="fetch or write the file again",
        ) from error


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """The row of an Arrow table without the nulls inside its columns; a null column stays null.

    Arrow gives every struct the fields of all others, as nulls (ms-swift#10125): a tool's schema
    would show parameters that it does not have.
    """
    return {key: _pruned(value) if isinstance(value, (dict, list)) else value for key, value in row.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(inner) for key, inner in value.items() if inner is not None}
    return [_pruned(inner) for inner in value] if isinstance(value, list) else value
