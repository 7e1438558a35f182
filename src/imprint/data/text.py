"""The text of a data file: UTF-8 and nothing else, and what stands in for a row that is broken."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from imprint.errors import DataError

BOM = b"\xef\xbb\xbf"
# UTF-32 first: its little-endian mark begins with that of UTF-16
FOREIGN_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True, slots=True)
class Broken:
    """Stands in a record for a row that could not be parsed; the rows after it can."""

    error: DataError


def refuse_foreign(head: bytes, file: str) -> None:
    """Raise DataError when the file opens with the byte order mark of another encoding than UTF-8."""
    for mark, name in FOREIGN_MARKS.items():
        if head.startswith(mark):
            raise DataError(
                f"the file is {name}",
                where=file,
                found=f"the byte order mark {mark.hex(' ').upper()} at byte offset 0",
                expected="UTF-8",
                fix=f"save it as UTF-8: iconv -f {name} -t UTF-8 OLD > NEW",
            )


def decode(data: bytes, file: str) -> str:
    """The text of a file in UTF-8, with or without its mark; raises DataError for other encodings."""
    try:
        return str(data.removeprefix(BOM), "utf-8")
    except UnicodeDecodeError as error:
        at = error.start + (len(BOM) if data.startswith(BOM) else 0)
        raise not_utf8(data[at], f"{file}:{1 + data.count(10, 0, at)}", at) from error


def not_utf8(byte: int, where: str, offset: int) -> DataError:
    return DataError(
        "the text is not UTF-8",
        where=where,
        found=f"byte 0x{byte:02X} at byte offset {offset} (perhaps Windows-1252 or Latin-1)",
        expected="UTF-8",
        fix="save it as UTF-8: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW",
    )


def refuse_surrogates(value: Any, where: str) -> None:
    """Raise DataError for half a surrogate pair: JSON can escape it, but no tokenizer can encode it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "the text holds half a character",
            where=where,
            found=f"the escape \\u{ord(error.object[error.start]):04x} without its other half",
            expected="both halves of a surrogate pair",
            fix="remove the escape, or write the character itself",
        ) from error
