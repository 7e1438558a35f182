"""One JSON document in, records out: an array of rows, an object that holds one, or a single row.

The document is decoded piece by piece: what is held of it is one row and a megabyte.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from imprint.data import text as texts
from imprint.data.conversation import Place, Record
from imprint.data.faults import show_type
from imprint.data.layout import EACH_A_LINE, ONE_A_LINE, not_rows
from imprint.data.parse_json import NOT_JSON, WORDS, broken_json, key_twice, may_be_half
from imprint.data.text import BOM, CHUNK, Broken, listed, not_utf8, refuse_surrogates, too_long
from imprint.data.unique import DECODER, UNIQUE, Twice
from imprint.errors import DataError

SPACE = re.compile(r"[ \t\n\r]*")
WHOLE = 1 << 26  # characters: an object up to here is looked at as a whole before its rows are read
AHEAD = 1 << 16  # characters by which it is told whether rows stand on lines of their own
CUT = 16  # an error this near to the end of what was read may only be that more is to come


def json_document(file: BinaryIO, name: str, is_row: Callable[[Any], bool]) -> Iterator[Record]:
    """The rows of an array, of the one list that an object holds, or the one row that an object is.

    `is_row` tells an object that is itself a row (a file of a single row) from one that holds
    the rows. The place of an element is the line where it starts, or its number ("row 3")
    where that line does not tell it from another.
    """
    window = Window(file, name)
    first = window.peek()
    if first == "{":
        yield from _object(window, is_row)
    elif first == "[":
        yield from _elements(window)
    elif first:
        raise _no_rows(window)
    else:
        return
    if window.peek():
        raise _behind(window, first)


class Window:
    """The text of a JSON document, of which a part is held: `at` is where the next value begins in it."""

    def __init__(self, file: BinaryIO, name: str):
        self.file, self.name = file, name
        self.text, self.at = "", 0
        self.line, self.column = 1, 0  # of the first character held
        self.ended = False
        self.bytes, self.pending = 0, b""  # decoded so far; the beginning of a character
        self.counted, self.lines = 0, 0  # line breaks in text[:counted]

    def more(self) -> bool:
        """Let go of what was read, and hold more: as much again, so that a long value is cheap."""
        if self.ended:
            return False
        self._drop()
        data = self.pending + self.file.read(max(CHUNK, len(self.text)))
        self.ended = len(data) == len(self.pending)
        if not self.bytes and data.startswith(BOM):
            data, self.bytes = data.removeprefix(BOM), len(BOM)
        try:
            added, used = codecs.utf_8_decode(data, "strict", self.ended)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n") + data.count(b"\n", 0, error.start)
            raise not_utf8(data, error.start, f"{self.name}:{line}", self.bytes + error.start) from error
        self.text += added
        self.pending, self.bytes = data[used:], self.bytes + used
        return True

    def _drop(self) -> None:
        """Forget the text before `at`."""
        gone = self.text[: self.at]
        breaks = gone.count("\n")
        self.line += breaks
        self.column = len(gone) - gone.rfind("\n") - 1 if breaks else self.column + len(gone)
        self.text, self.at, self.counted, self.lines = self.text[self.at :], 0, 0, 0

    @property
    def line_here(self) -> int:
        """The line of the file in which `at` lies."""
        self.lines += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        return self.line + self.lines

    @property
    def is_one_line(self) -> bool:
        """Whether all that is held from `at` on stands in one line."""
        return "\n" not in self.text[self.at :].rstrip()

    def peek(self) -> str:
        """The next character that is no white space, or "" at the end; `at` is moved to it."""
        while True:
            found = SPACE.match(self.text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def take(self, character: str, message: str) -> None:
        """Step over the next character, which must be this one."""
        if self.peek() != character:
            raise self.broken(message, self.at)
        self.at += 1

    def decode(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        """The value at `at`, and where it ends; more is read until it is whole. Twice may be raised."""
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
                if end < len(self.text) - CUT or self.ended or isinstance(value, (str, list, dict)):
                    return value, end  # a number may go on
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - CUT
                if self.ended or not cut:
                    raise self.broken(error.msg, error.pos) from error
            except Twice:
                raise
            except (ValueError, RecursionError) as error:
                raise broken_json(error, self.name, self.line_here) from error
            if len(self.text) - self.at > texts.LIMIT:
                raise too_long("value", f"{self.name}:{self.line_here}")
            self.more()

    def row(self, place: Place) -> Any:
        """The row at `at`, `Broken` where it can be read but not used; `at` is moved behind it."""
        try:
            value, end = self.decode(UNIQUE)
        except Twice as error:
            _, end = self.decode(DECODER)
            value = Broken(key_twice(error, place))
        if not isinstance(value, Broken) and may_be_half(self.text, self.at, end):
            try:
                refuse_surrogates(value, str(place))
            except DataError as error:
                value = Broken(error)
        self.at = end
        return value

    def broken(self, message: str, at: int) -> DataError:
        error = json.JSONDecodeError(message, self.text, at)
        return broken_json(error, self.name, self.line, self.column)


def _object(window: Window, is_row: Callable[[Any], bool]) -> Iterator[Record]:
    """The row that an object is, or the rows of its one list."""
    value = _whole(window)
    if value is not None and (error := not_rows(value, window.name)):
        raise error
    if value is not None and is_row(value):
        place = Place(window.name, window.line_here)
        yield Record(window.row(place), place)
        return
    wanted = _list_inside(value, window.name) if value is not None else None
    window.take("{", "Expecting value")
    seen: list[str] = []
    while True:
        window.peek()
        key, end = window.decode(DECODER)
        if not isinstance(key, str):
            raise window.broken("Expecting property name enclosed in double quotes", window.at)
        window.at = end
        window.take(":", "Expecting ':' delimiter")
        if window.peek() == "[" and key == (wanted or key):
            seen.append(key)
            if len(seen) > 1:
                raise _not_one_list("", listed(seen), window.name)
            yield from _elements(window)
        else:
            _, window.at = window.decode(DECODER)
        if window.peek() == "}":
            window.at += 1
            if not seen:
                raise _not_one_list("", "none", window.name)
            return
        window.take(",", "Expecting ',' delimiter")


def _whole(window: Window) -> dict[str, Any] | None:
    """The object at `at`, which stays where it is; None where it is too large to be looked at first."""
    while len(window.text) < WHOLE and window.more():
        pass
    try:
        value, end = DECODER.raw_decode(window.text, window.at)
    except json.JSONDecodeError as error:
        if not window.ended:
            return None
        raise window.broken(error.msg, error.pos) from error
    except (ValueError, RecursionError) as error:
        raise broken_json(error, window.name, window.line_here) from error
    assert isinstance(value, dict)
    rest = SPACE.match(window.text, end)
    if rest is not None and window.text.startswith("{", rest.end()):
        window.at = rest.end()
        raise _behind(window, "{")
    return value


def _behind(window: Window, first: str) -> DataError:
    """What is said of the text at `at`, behind a document that began with `first`."""
    error = window.broken("Extra data", window.at)
    if window.text[window.at] != first:
        return error
    return DataError(
        "the file holds several JSON documents, one behind the other",
        where=error.where,
        found=error.found,
        expected="one document, or one row per line",
        fix=f"write each row on a line of its own: {ONE_A_LINE if first == '{' else EACH_A_LINE}",
    )


def _no_rows(window: Window) -> DataError:
    """What is said of a file that begins with neither an object nor an array: one value, or no JSON at all."""
    start = window.line_here
    try:
        value, _ = window.decode(DECODER)
    except DataError as error:
        fix = NOT_JSON if WORDS.match(window.text, window.at) else error.fix
        return DataError(error.what, where=error.where, found=error.found, expected="rows in JSON", fix=fix)
    return DataError(
        "the file holds no row",
        where=f"{window.name}:{start}",
        found=show_type(value),
        expected='an array of rows, or one row per line: {"prompt": "...", "response": "..."}',
        fix="write it as a text of such a row",
    )


def _list_inside(value: dict[str, Any], file: str) -> str:
    """The key of the one list that an object holds."""
    lists = [key for key, inner in value.items() if isinstance(inner, list)]
    if len(lists) != 1:
        raise _not_one_list(listed(value), listed(lists), file)
    return lists[0]


def _not_one_list(keys: str, lists: str, file: str) -> DataError:
    return DataError(
        "the file is an object that does not hold exactly one list of rows",
        where=file,
        found=f"keys {keys}; lists: {lists}" if keys else f"lists: {lists}",
        expected='an array of rows, or an object with one list, as {"data": [...]}',
        fix="keep only the list of rows in the file; or, if each line is a row, rename it to .jsonl",
    )


def _elements(window: Window) -> Iterator[Record]:
    """Records of the array that opens at `at`; `at` is moved behind its closing bracket."""
    while len(window.text) - window.at < AHEAD and window.is_one_line and window.more():
        pass
    on_one_line = window.is_one_line
    window.at += 1
    number, last = 0, 0
    if window.peek() == "]":
        window.at += 1
        return
    while True:
        number, line = number + 1, window.line_here
        by_number = on_one_line or line == last
        place = Place(window.name, number, "row") if by_number else Place(window.name, line)
        last = line
        yield Record(window.row(place), place)
        if window.peek() == "]":
            window.at += 1
            return
        if window.peek() != ",":
            raise window.broken("Expecting ',' delimiter", window.at)
        comma = window.at
        window.at += 1
        held = len(window.text)
        if window.peek() == "]":
            at = comma if len(window.text) == held and comma < window.at else window.at
            raise window.broken("Illegal trailing comma", at)
