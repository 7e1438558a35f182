"""The text of a data file: UTF-8 and nothing else, and what stands in for a row that is broken."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from imprint.data.encodings import guesses, wide
from imprint.errors import DataError

BOM = b"\xef\xbb\xbf"
LIMIT = 1 << 30  # bytes of one line, one JSON value, or one text file: each is held in memory
CHUNK = 1 << 20  # bytes read at a time

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
    """Raise DataError when a file's first bytes are UTF-16 or UTF-32, by their mark or by their zeros."""
    for mark, name in FOREIGN_MARKS.items():
        if head.startswith(mark):
            raise _foreign(name, f"the byte order mark {mark.hex(' ').upper()} at byte offset 0", file)
    name = _by_zeros(head[:4096])
    if name:
        found = f"a zero byte at byte offset {head.index(0)}, and one beside nearly every letter"
        raise _foreign(name, found, file)
    if not _begins_as_utf8(head[:4096]) and (name := wide(head[:4096])):
        raise _foreign(name, "no text in UTF-8, but one where two bytes are a character", file)


def _begins_as_utf8(head: bytes) -> bool:
    try:
        str(head, "utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # the last character may be cut
    return True


def _by_zeros(head: bytes) -> str:
    """The encoding in which every letter of the Latin alphabet brings zero bytes along."""
    zeros = [head[start::4].count(0) for start in range(4)]
    if sum(zeros) < 3:
        return ""
    quarter = len(head) // 4
    for name, full, last in (("UTF-32LE", (2, 3), 0), ("UTF-32BE", (0, 1), 3)):
        if all(zeros[i] >= 0.9 * quarter for i in full) and zeros[last] <= 0.1 * quarter:
            return name
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    few, many = sorted((even, odd))
    if many < 0.2 * quarter or few > 0.05 * many:
        return ""
    return "UTF-16LE" if odd > even else "UTF-16BE"


def _foreign(name: str, found: str, file: str) -> DataError:
    return DataError(
        f"the file is {name}",
        where=file,
        found=found,
        expected="UTF-8",
        fix=f"save it as UTF-8: iconv -f {name} -t UTF-8 OLD > NEW",
    )


def decode(data: bytes, file: str) -> str:
    """The text of a file in UTF-8, with or without its mark; raises DataError for other encodings."""
    try:
        return str(data.removeprefix(BOM), "utf-8")
    except UnicodeDecodeError as error:
        at = error.start + (len(BOM) if data.startswith(BOM) else 0)
        raise not_utf8(data, at, f"{file}:{1 + data.count(10, 0, at)}", at) from error


def not_utf8(data: bytes, at: int, where: str, offset: int) -> DataError:
    """What is wrong with byte `at` of `data`, which is byte `offset` of the file; names the likely encodings."""
    names = guesses(data[max(0, at - 2000) : at + 6000])
    perhaps = " or ".join(names).replace("WINDOWS-1252", "WINDOWS-1252 or Latin-1")
    fix = "save it as UTF-8" + (f": iconv -f {names[0]} -t UTF-8 OLD > NEW" if names else "")
    return DataError(
        "the text is not UTF-8",
        where=where,
        found=f"byte 0x{data[at]:02X} at byte offset {offset} "
        + (f"(perhaps {perhaps})" if names else "(of which encoding it is, it does not show)"),
        expected="UTF-8",
        fix=fix if names else "open it in the program that wrote it, and save it as UTF-8",
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


def lines(file: BinaryIO, name: str, head: bytes, *, short: bool = False) -> Iterator[bytes]:
    """The lines of a file with their ends: \\n, \\r\\n, or \\r where `head` has no other.

    `short` says that the file is too small for a line beyond LIMIT. Raises DataError for such a line.
    """
    if b"\r" in head and b"\n" not in head:
        yield from _by_return(file, name)
    elif short:
        yield from file
    else:
        number = 0
        while raw := file.readline(LIMIT + 1):
            number += 1
            if len(raw) > LIMIT:
                raise too_long("line", f"{name}:{number}")
            yield raw


def _by_return(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Lines that end in a carriage return, as old Macs wrote them."""
    rest, number = [b""], 0
    while block := file.read(CHUNK):
        *whole, last = block.split(b"\r")
        for line in whole:
            number += 1
            yield b"".join(rest) + line + b"\r"
            rest = []
        rest.append(last)
        if sum(map(len, rest)) > LIMIT:
            raise too_long("line", f"{name}:{number + 1}")
    if last := b"".join(rest):
        yield last


def too_long(unit: str, where: str) -> DataError:
    return DataError(
        f"a {unit} is too long to be read",
        where=where,
        found=f"more than {LIMIT >> 20:,} MiB without an end",
        expected="one row per line, each small enough to hold in memory",
        fix="split it",
    )


def listed(names: Iterable[str]) -> str:
    """Names as an error message can hold them, "none" for none."""
    text = ", ".join(names)
    return (text if len(text) <= 300 else text[:297] + "…") or "none"


def shown(character: str) -> str:
    """A character that cannot be seen, by name."""
    return unicodedata.name(character, f"U+{ord(character):04X}")
