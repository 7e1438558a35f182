"""JSON lines in, records out.

Every row is parsed on its own, never through a table: a table would give each row the keys of
all others, as nulls. A row that cannot be parsed, in a file that can be read on, becomes a
record whose value is `Broken`; where nothing after it can be trusted, `DataError` is raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from imprint.data.conversation import Place, Record
from imprint.data.layout import ONE_A_LINE, holds_rows, list_of_rows, not_rows
from imprint.data.text import BOM, Broken, not_utf8, refuse_surrogates, shown
from imprint.data.unique import UNIQUE, Twice
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
# What stands at the place of an error, where it tells more than the error does.
_TELLTALE = (
    ("//", "remove the comment: JSON has none"),
    ("/*", "remove the comment: JSON has none"),
    ("#", "remove the comment: JSON has none"),
    (
        "'",
        "this is how Python prints a row, not JSON: write it with json.dumps, or its texts in double quotes",
    ),
    ("True", "write true, in lower case"),
    ("False", "write false, in lower case"),
    ("None", "write null"),
    ("nan", "write NaN or, better, null"),
    (
        "\ufeff",
        "remove the byte order mark, left where files were joined: perl -pe 's/^\\xEF\\xBB\\xBF//' OLD > NEW",
    ),
)
NOT_JSON = "if the file is a table, name it .csv, or .tsv with tabs; if it is one text, name it .txt"
WORDS = re.compile(r"\s*(?!true|false|null|True|False|None|NaN|nan|Infinity)[^\W\d_]")  # so begins no JSON
LINE_ENDS = frozenset(("", "\n", "\r\n", "\r"))


def json_lines(lines: Iterable[bytes], file: str) -> Iterator[Record]:
    """One record per line that is not blank; a line that is no JSON, or no row, gives a `Broken` record."""
    records = _records(lines, file)
    first = next(records, None)
    if first is None:
        return
    error = not_rows(first.value, str(first.place))
    if error is None:
        yield first
    elif (second := next(records, None)) is not None:  # no table is cut into lines: it is a row
        yield first
        yield second
    else:
        yield Record(Broken(error), first.place)
    yield from records


def _records(lines: Iterable[bytes], file: str) -> Iterator[Record]:
    # the decoder in C, without the copies that `decode` makes
    scan: Callable[[str, int], tuple[Any, int]] = UNIQUE.scan_once  # type: ignore[attr-defined]
    offset = 0
    for number, raw in enumerate(lines, 1):
        place = Place(file, number)
        try:
            text = str(raw, "utf-8")
            value, end = scan(text, 0)
            if text[end:] in LINE_ENDS and not may_be_half(text, 0, end):
                offset += len(raw)
                if type(value) is list and holds_rows(value):
                    value = Broken(list_of_rows(value, str(place)))
                yield Record(value, place)
                continue
        except (ValueError, RecursionError, StopIteration):
            pass  # read again, slowly, to say what is wrong
        if number == 1 and raw.startswith(BOM):
            raw, offset = raw[len(BOM) :], len(BOM)
        if raw and not raw.isspace():
            yield Record(_slowly(raw, place, offset), place)
        offset += len(raw)


def may_be_half(text: str, start: int, end: int) -> bool:
    """Whether JSON may hold an escaped half of a surrogate pair between two places."""
    at = text.find("\\", start, end)
    for _ in range(8):  # to look for one character is many times as fast as to look for three
        if at < 0:
            return False
        if text.startswith(("ud", "uD"), at + 1):
            return True
        at = text.find("\\", at + 2, end)
    return at >= 0 and (text.find("\\ud", at, end) >= 0 or text.find("\\uD", at, end) >= 0)


def _slowly(raw: bytes, place: Place, offset: int) -> Any:
    """The value of a line, or `Broken` with what is wrong with it."""
    try:
        text = str(raw, "utf-8").rstrip()  # else a text that is cut off seems to hold a line break
        value = UNIQUE.decode(text)
        if may_be_half(text, 0, len(text)):
            refuse_surrogates(value, str(place))
        if type(value) is list and holds_rows(value):
            return Broken(list_of_rows(value, str(place)))
        return value
    except Twice as error:
        return Broken(key_twice(error, place))
    except UnicodeDecodeError as error:
        return Broken(not_utf8(error.object, error.start, str(place), offset + error.start))
    except (ValueError, RecursionError) as error:
        return Broken(broken_json(error, place.file, place.line, lines=True))
    except DataError as error:
        return Broken(error)


def broken_json(error: Exception, file: str, line: int, column: int = 0, *, lines: bool = False) -> DataError:
    """What is wrong with JSON; `line` is where the decoded text starts in the file, behind `column` characters.

    `lines` says that the text is one line of many, so that a row may go on in the next.
    """
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
    start = error.colno + (column if error.lineno == 1 else 0)
    before, after = error.doc[max(0, error.pos - 20) : error.pos], error.doc[error.pos : error.pos + 20]
    excerpt = (before.rpartition("\n")[2] + after.partition("\n")[0]).strip() or (before + after).strip()
    ends = error.pos >= len(error.doc.rstrip())
    fix = "close what is open; if the file was cut off, fetch it again" if ends else _fix(error)
    if lines and not ends and error.msg == "Expecting value" and WORDS.match(error.doc):
        fix = NOT_JSON
    if ends and lines and error.doc.endswith(("{", "[", ",", ":")):
        fix = f"if the row goes on in the next line: {ONE_A_LINE}\nif the file was cut off, fetch it again"
    return DataError(
        "not valid JSON",
        where=f"{file}:{number}:{start}",
        found=f"{error.msg}, {'at the end of' if ends else 'at'}: {excerpt!r}",
        fix=fix,
    )


def _fix(error: json.JSONDecodeError) -> str:
    behind = error.doc[error.pos : error.pos + 8].lstrip()
    if error.msg.startswith("Invalid control character"):
        if error.doc[error.pos] not in "\n\r\t":
            return f"remove the character {shown(error.doc[error.pos])}"
    elif error.msg.startswith("Extra data") and error.doc[error.pos :].strip() == ",":
        return "remove the comma behind the row"
    elif not error.msg.startswith(("Unterminated", "Invalid")):
        for start, fix in _TELLTALE:
            if behind.startswith(start):
                return fix
    return next(
        (fix for start, fix in JSON_FIXES.items() if error.msg.startswith(start)), "mend the JSON here"
    )


def key_twice(error: Twice, place: Place) -> DataError:
    return DataError(
        "a key stands twice in one object",
        where=str(place),
        found=f"two keys {str(error)[:200]!r}",
        expected="each key once",
        fix="remove or rename one of them",
    )
