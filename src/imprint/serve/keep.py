"""A good exchange, kept: appended as a row to a file of JSON lines that training can read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from imprint.data.conversation import Place, Record
from imprint.data.formats import converter
from imprint.data.write import line
from imprint.errors import DataError
from imprint.recipe import DataSource

SUFFIXES = (".jsonl", ".ndjson")


def append_row(path: Path, row: dict[str, Any]) -> int:
    """Append `row`, a conversation in the shape `messages`, to `path`; its line number, from 1.

    Nothing that is there is changed. DataError where the row is no demonstration (an empty reply),
    or the file is no file of JSON lines.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            "rows are appended to files of JSON lines only",
            where=str(path),
            expected="a name that ends in .jsonl",
            fix=f"/save {path.with_suffix('.jsonl')}",
        )
    number = _lines_of(path) + 1
    converter(DataSource(path=str(path), format="messages"))(Record(row, Place(str(path), number)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            # one write, in append mode: two sessions that save into one file do not mix their rows
            file.write(("\n" if _is_cut(path) else "").encode() + line(row).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(
            "the file cannot be written", where=str(path), found=str(error), fix="name another file"
        ) from error
    return number


def _lines_of(path: Path) -> int:
    """How many lines a file has; 0 where there is none. DataError where its last line is no JSON object."""
    if not path.exists():
        return 0
    count, last = 0, b""
    try:
        with path.open("rb") as file:
            for text in file:
                count += 1
                last = text if text.strip() else last
    except OSError as error:
        raise DataError(
            "the file cannot be read", where=str(path), found=str(error), fix="name another file"
        ) from error
    try:
        whole = not last or isinstance(json.loads(last), dict)
    except ValueError:
        whole = False
    if not whole:
        raise DataError(
            "the file is no file of JSON lines",
            where=f"{path}:{count}",
            found=last[:60].decode("utf-8", "replace"),
            expected="one JSON object a line",
            fix="name another file",
        )
    return count


def _is_cut(path: Path) -> bool:
    """Whether the last line of a file lacks its newline."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
