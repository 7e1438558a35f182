"""JSON in, records out: JSON lines and JSON documents.

Every row is parsed on its own, never through a table: a table would give each row the keys of
all others, as nulls. A row that cannot be parsed, in a file that can be read on, becomes a
record whose value is `Broken`; where nothing after it can be trusted, `DataError` is raised.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from imprint.data.conversation import Place, Record
from imprint.data.text import BOM, Broken, decode, not_utf8, refuse_foreign, refuse_surrogates
from imprint.errors import DataError

JSON_FIXES = {
    "Expecting property name": "put keys in double quotes, and no comma before a closing brace",
    "Expecting ',' delimiter": 'add the comma, or write a quotation mark inside a text as \\"',
    "Expecting ':' delimiter": "put a colon between the key and its value",
    "Expecting value": "put a JSON value here: text in double quotes, a number, true, false, null, [] or {}",
    "Illegal trailing comma": "remove the comma before the closing bracket",
    "Unterminated string": "close the text with a quotation mark; if the file was cut off, fetch it again",
    "Invalid control character": "write a line break inside a text as \\n, a tab as \\t",
    "Invalid \\escape": "write a backslash inside a text as \\\\",
    "Invalid \\uXXXX escape": "write four hexadecimal digits after \\u",
    "Extra data": "put each row on a line of its own, and nothing after it",
}
SPACE = re.compile(r"[ \t\n\r]*")


class _Twice(ValueError):
    """A key stands twice in one object; Python's own decoder takes the last and says nothing."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in made if keys.count(key) > 1))
    return made


DECODER = json.JSONDecoder()
UNIQUE = json.JSONDecoder(object_pairs_hook=_unique)


def json_lines(lines: Iterable[bytes], file: str) -> Iterator[Record]:
    """One record per line that is not blank; a line that is no JSON gives a `Broken` record."""
    offset = 0
    for number, raw in enumerate(lines, 1):
        if number == 1:
            refuse_foreign(raw, file)
            if raw.startswith(BOM):
                raw, offset = raw[len(BOM) :], len(BOM)
        if raw and not raw.isspace():
            place = Place(file, number)
            try:
                text = str(raw, "utf-8").rstrip()  # else a text that is cut off seems to hold a line break
                value = UNIQUE.decode(text)
                if "\\ud" in text or "\\uD" in text:
                    refuse_surrogates(value, str(place))
            except _Twice as error:
                value = Broken(_key_twice(error, place))
            except (ValueError, RecursionError) as error:
                value = Broken(_unparsed(error, file, number, offset))
                if number == 1 and raw.strip() in (b"[", b"{"):
                    raise DataError(
                        "the file is one JSON document, not JSON lines",
                        where=str(place),
                        found=f"a first line of {raw.strip().decode()!r}",
                        expected="one row per line",
                        fix="rename it to .json",
                    ) from None
            except DataError as error:
                value = Broken(error)
            yield Record(value, place)
        offset += len(raw)


def json_document(data: bytes, file: str, is_row: Callable[[Any], bool]) -> Iterator[Record]:
    """The rows of an array, of the one list that an object holds, or of JSON lines in a .json file.

    `is_row` tells an object that is itself a row (a file of a single row) from one that holds
    the rows. The place of an element is the line where it starts, or its number ("row 3")
    where that line does not tell it from another.
    """
    refuse_foreign(data, file)
    first, _, rest = data.removeprefix(BOM).lstrip().partition(b"\n")
    if rest and not rest.isspace() and _parses(first):
        yield from json_lines(io.BytesIO(data), file)
        return
    text = decode(data, file)
    start = _skip(text, 0)
    if text.startswith("{", start):
        value, end = _decode_at(text, start, file)
        _refuse_rest(text, end, file)
        if is_row(value):
            refuse_surrogates(value, file)
            place = Place(file, 1 + text.count("\n", 0, start))
            yield Record(_row_at(text, start, file, place)[0], place)
            return
        start = _list_inside(text, start, value, file)
    if not text.startswith("[", start):
        if start == len(text):
            return
        raise _broken_json(json.JSONDecodeError("Expecting value", text, start), file, 1)
    end = yield from _elements(text, start, file)
    if text.startswith("[", _skip(text, 0)):
        _refuse_rest(text, end, file)


def _elements(text: str, start: int, file: str) -> Generator[Record, None, int]:
    """Records of the array that opens at `start`; returns the index behind its closing bracket.

    The place is the line where the element starts; where elements share a line, their number.
    """
    line, counted, number, last = 1, 0, 0, 0
    on_one_line = "\n" not in text[start:].rstrip()
    escapes = "\\ud" in text or "\\uD" in text
    at = _skip(text, start + 1)
    if text.startswith("]", at):
        return at + 1
    while True:
        line, counted = line + text.count("\n", counted, at), at
        number += 1
        place = Place(file, number, "row") if on_one_line or line == last else Place(file, line)
        last = line
        value, end = _row_at(text, at, file, place)
        if escapes and not isinstance(value, Broken):
            try:
                refuse_surrogates(value, str(place))
            except DataError as error:
                value = Broken(error)
        yield Record(value, place)
        at = _skip(text, end)
        if text.startswith("]", at):
            return at + 1
        if not text.startswith(",", at):
            raise _broken_json(json.JSONDecodeError("Expecting ',' delimiter", text, at), file, 1)
        comma, at = at, _skip(text, at + 1)
        if text.startswith("]", at):
            raise _broken_json(json.JSONDecodeError("Illegal trailing comma", text, comma), file, 1)


def _list_inside(text: str, start: int, value: dict[str, Any], file: str) -> int:
    """Index of the bracket that opens the one list that the object at `start` holds."""
    lists = [key for key, inner in value.items() if isinstance(inner, list)]
    if len(lists) != 1:
        raise DataError(
            "the file is an object that does not hold exactly one list of rows",
            where=file,
            found=f"keys {', '.join(value) or 'none'}; lists: {', '.join(lists) or 'none'}",
            expected='an array of rows, or an object with one list, as {"data": [...]}',
            fix="keep only the list of rows in the file",
        )
    at = start
    while True:  # the object is known to be valid: walk over its members
        key, end = DECODER.raw_decode(text, _skip(text, at + 1))
        at = _skip(text, _skip(text, end) + 1)
        if key == lists[0] and text[at] == "[":
            return at
        at = _skip(text, DECODER.raw_decode(text, at)[1])


def _unparsed(error: Exception, file: str, line: int, offset: int) -> DataError:
    """What is wrong with one line of JSON lines that starts at byte `offset`."""
    if isinstance(error, UnicodeDecodeError):
        return not_utf8(error.object[error.start], f"{file}:{line}", offset + error.start)
    return _broken_json(error, file, line)


def _broken_json(error: Exception, file: str, line: int) -> DataError:
    """`line` is where the decoded text starts in the file."""
    if not isinstance(error, json.JSONDecodeError):
        deep = isinstance(error, RecursionError)
        return DataError(
            "JSON nested too deeply" if deep else "JSON that Python cannot hold",
            where=f"{file}:{line}",
            found="hundreds of brackets inside each other" if deep else str(error),
            expected="a row of texts, lists and objects",
            fix="remove this row",
        )
    number = line + error.lineno - 1
    excerpt = error.doc[max(0, error.pos - 20) : error.pos + 20].strip()
    ends = error.pos >= len(error.doc.rstrip())
    fix = next(
        (fix for start, fix in JSON_FIXES.items() if error.msg.startswith(start)), "mend the JSON here"
    )
    return DataError(
        "not valid JSON",
        where=f"{file}:{number}:{error.colno}",
        found=f"{error.msg}, {'at the end of' if ends else 'at'}: {excerpt!r}",
        fix="close what is open; if the file was cut off, fetch it again" if ends else fix,
    )


def _key_twice(error: _Twice, place: Place) -> DataError:
    return DataError(
        "a key stands twice in one object",
        where=str(place),
        found=f"two keys {str(error)!r}",
        expected="each key once",
        fix="remove or rename one of them",
    )


def _row_at(text: str, at: int, file: str, place: Place) -> tuple[Any, int]:
    """The row that starts at `at`, `Broken` where a key stands twice in it, and where it ends."""
    try:
        return _decode_at(text, at, file, UNIQUE)
    except _Twice as error:
        return Broken(_key_twice(error, place)), _decode_at(text, at, file)[1]


def _decode_at(text: str, at: int, file: str, decoder: json.JSONDecoder = DECODER) -> tuple[Any, int]:
    try:
        return decoder.raw_decode(text, at)
    except _Twice:
        raise
    except json.JSONDecodeError as error:
        raise _broken_json(error, file, 1) from error
    except (ValueError, RecursionError) as error:
        raise _broken_json(error, file, 1 + text.count("\n", 0, at)) from error


def _refuse_rest(text: str, end: int, file: str) -> None:
    end = _skip(text, end)
    if end < len(text):
        raise _broken_json(json.JSONDecodeError("Extra data", text, end), file, 1)


def _skip(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
