"""CSV and TSV in, records out, one row at a time."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from imprint.data.conversation import Place, Record
from imprint.data.text import BOM, Broken, listed, not_utf8
from imprint.errors import DataError

LONGEST = 1 << 27  # characters of a cell: a quote that is never closed would swallow the file
SAMPLE = 500  # rows by which the dialect is told
FLAN = ["question", "answer", "rationale"]  # the columns of FLAN's tables, which have no header
_MARK = re.compile(r"sep=([^\r\n]?)[ \t]*(\r\n|\n|\r)", re.IGNORECASE)
_NUMBER = re.compile(r"\s*[-+]?[\d.,]*\d[\d.,]*%?\s*")
_NAME = re.compile(r"([^\W\d][\w\s.:;,/#()-]{0,39})?")  # what can be the name of a column


class Dialect(NamedTuple):
    """How a table is written: what stands between cells, whether quotes hold cells, and the marks before it.

    `flan` says that three columns, where they have no header, may be taken for FLAN's.
    """

    delimiter: str
    quoted: bool
    mark: int = 0  # lines before the header: Excel's `sep=;`
    flan: bool = False


class Table(NamedTuple):
    """The first row of a table: its columns' names, whether it is itself data, and whether a name in it is known.

    `unnamed` columns follow, as where a header ends in a separator; their cells must be empty.
    """

    columns: list[str]
    headerless: bool
    known: bool = True
    unnamed: int = 0


def dialect(head: bytes, *, tabs: bool) -> Dialect:
    """How a table is written, by its first bytes."""
    text = str(head.removeprefix(BOM), "utf-8", "replace")
    mark = _MARK.match(text)
    if mark:
        text = text[mark.end() :]
    chosen = mark[1] if mark and mark[1] else "\t" if tabs else _delimiter(text)
    quoted = chosen != "\t" or _widths(text, "\t") is not None
    flan = tabs and chosen == "\t" and not _has_numbers(text, quoted)
    return Dialect(chosen, quoted, 1 if mark else 0, flan)


def looks_like_table(head: bytes) -> str:
    """What stands between the cells of a text whose rows are nearly all as wide as its first; "" for other texts."""
    style = dialect(head, tabs=b"\t" in head.partition(b"\n")[0])
    text = str(head.removeprefix(BOM), "utf-8", "replace")
    mark = _MARK.match(text)
    rows = _sample(text[mark.end() :] if mark else text, style.delimiter, style.quoted) or []
    even = sum(len(row) == len(rows[0]) for row in rows)
    return style.delimiter if len(rows) > 1 < len(rows[0]) and even >= 0.9 * len(rows) else ""


def _has_numbers(text: str, quoted: bool) -> bool:
    """Whether one of the columns holds nothing but numbers in the first rows, as ids and labels do."""
    columns = itertools.zip_longest(*_sample(text, "\t", quoted) or [], fillvalue="")
    filled = (list(filter(str.strip, cells)) for cells in columns)
    return any(cells and all(map(_NUMBER.fullmatch, cells)) for cells in filled)


def _delimiter(text: str) -> str:
    """A comma, semicolon, tab or bar: of those in the first line, the first by which all rows are of one width."""
    first = text.lstrip("\r\n").partition("\n")[0]
    plain = re.sub(r'"[^"]*"', "", first)
    there = [char for char in ",;\t|" if char in plain]
    if len(there) > 1:
        for char in there:
            widths = _widths(text, char)
            if widths is not None and len(widths) == 1:
                return char
    return there[0] if there else ","


def _widths(text: str, delimiter: str) -> set[int] | None:
    """How many cells the first rows have; None where they cannot be read so."""
    rows = _sample(text, delimiter, True)
    return None if rows is None else set(map(len, rows))


def _sample(text: str, delimiter: str, quoted: bool) -> list[list[str]] | None:
    """The first rows that are whole; None where they cannot be read so."""
    rows: list[list[str]] = []
    try:
        for cells in filter(None, _cells(io.StringIO(text, newline=""), delimiter, quoted)):
            rows.append(cells)
            if len(rows) > SAMPLE:
                break
    except csv.Error as error:
        return rows if "unexpected end" in str(error) else None  # the head may end within a cell
    return rows[:-1] if len(rows) > 1 and not text.endswith(("\n", "\r")) else rows


def _cells(texts: Iterable[str], delimiter: str, quoted: bool) -> Any:
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    return csv.reader(texts, delimiter=delimiter, strict=True, quoting=quoting)  # type: ignore[arg-type]


def csv_rows(
    lines: Iterable[bytes], file: str, style: Dialect, known: Collection[str]
) -> Iterator[Table | Record]:
    """The table's columns, then one record per row, a dict of texts; the place is the row's first line.

    `known` are names that columns may have. A first row that has none of them, and holds what
    cannot be a name, is data: its table has no header, and the columns are "0", "1", …, or those
    of FLAN where the style allows it; so they are where `known` has such numbers. A row that
    repeats the header is `Broken`.
    """
    csv.field_size_limit(LONGEST)  # the module's limit of 131,072 characters is shorter than some replies
    reader = _cells(_texts(lines, file, style.mark), style.delimiter, style.quoted)
    table: Table | None = None
    first = 1 + style.mark
    try:
        for cells in reader:
            place, first = Place(file, first), reader.line_num + 1 + style.mark
            if not cells or (table is None and not any(map(str.strip, cells))):
                continue
            if table is None:
                table = _table(cells, place, known, style.flan)
                yield table
                if not table.headerless:
                    continue
            width = len(table.columns)
            if len(cells) != width and len(cells) != width + table.unnamed:
                yield Record(Broken(_wrong_width(cells, table, place)), place)
                continue
            if table.unnamed:
                cells, beyond = cells[:width], cells[width:]
                if any(map(str.strip, beyond)):
                    yield Record(Broken(_beyond(beyond, table, place)), place)
                    continue
            if cells[-1] == table.columns[-1] and _is_header(cells, table):
                yield Record(Broken(_header_again(cells, place)), place)
            else:
                yield Record(dict(zip(table.columns, cells, strict=True)), place)
    except csv.Error as error:
        raise DataError(
            "not valid CSV",
            where=f"{file}:{first}",
            found=str(error),
            expected='a cell in quotes is closed before the next cell; a quote inside it is doubled: ""',
            fix="close the quote in the row that starts here",
        ) from error


def _texts(lines: Iterable[bytes], file: str, skip: int) -> Iterator[str]:
    """The lines as text; DataError for what is not UTF-8, and for null bytes."""
    offset = 0
    for number, raw in enumerate(lines, 1):
        if number == 1 and raw.startswith(BOM):
            raw, offset = raw[len(BOM) :], len(BOM)
        if b"\0" in raw:
            raise DataError(
                "the file holds a null byte",
                where=f"{file}:{number}",
                found=f"\\0 at byte offset {offset + raw.index(0)}",
                expected="CSV text in UTF-8",
                fix="remove it; where every second byte is null, save the file as UTF-8",
            )
        try:
            text = str(raw, "utf-8")
        except UnicodeDecodeError as error:
            place = f"{file}:{number}"
            raise not_utf8(error.object, error.start, place, offset + error.start) from error
        offset += len(raw)
        if skip:
            mark = _MARK.match(text)
            assert mark is not None
            text, skip = text[mark.end() :], 0
        if "\r" in text[:-2] or text.endswith("\r"):
            yield from io.StringIO(text, newline="")  # a carriage return ends a line too
        elif text:
            yield text


def _table(cells: list[str], place: Place, known: Collection[str], flan: bool) -> Table:
    names = [cell.strip() for cell in cells]
    named = any(name in known for name in names)
    unnamed = [str(number) for number in range(len(cells))]
    if not named and (not all(map(_NAME.fullmatch, names)) or any(number in known for number in unnamed)):
        return Table(FLAN if flan and len(cells) == len(FLAN) else unnamed, True)
    width = max(number for number, name in enumerate(names, 1) if name)
    beyond, cells = len(cells) - width, cells[:width]
    twice = sorted({name for name in cells if cells.count(name) > 1})
    if twice:
        raise DataError(
            "two columns have the same name",
            where=str(place),
            found=listed(map(repr, twice)),
            expected="a header of different names",
            fix="rename one of them",
        )
    return Table(cells, False, named, beyond)


def _is_header(cells: list[str], table: Table) -> bool:
    """Whether a row repeats the header, as where files were put one behind the other."""
    first = cells[0].removeprefix("\ufeff")
    return not table.headerless and [first, *cells[1:]] == table.columns


def _header_again(cells: list[str], place: Place) -> DataError:
    return DataError(
        "the header stands again",
        where=str(place),
        found=listed(cells),
        expected="one header, in the first line",
        fix="remove the line",
    )


def _beyond(cells: list[str], table: Table, place: Place) -> DataError:
    return DataError(
        "a cell stands under no name",
        where=str(place),
        found=listed(map(repr, filter(str.strip, cells))),
        expected=f"nothing behind the columns that have a name: {listed(table.columns)}",
        fix="where a cell holds the separator, put it in double quotes; else name the column in the header",
    )


def _wrong_width(cells: list[str], table: Table, place: Place) -> DataError:
    width = len(table.columns)
    more = len(cells) > width
    return DataError(
        "the row has the wrong number of columns",
        where=str(place),
        found=f"{len(cells)} cell{'s' * (len(cells) > 1)}: {listed(map(_brief, cells))}",
        expected=f"{width}, as in the first row"
        if table.headerless
        else f"{width}, as in the header: {listed(table.columns)}",
        fix="put a cell that holds the separator in double quotes"
        if more
        else "put a cell that holds a line break in double quotes; if cells are missing, add them",
    )


def _brief(cell: str) -> str:
    return repr(cell if len(cell) <= 40 else f"{cell[:39]}…")
