"""Standard input as a file: kept on disk before anything is read from it, so it must come to an end."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from imprint.data.open import PIPED
from imprint.data.spool import Scratch
from imprint.data.text import CHUNK
from imprint.errors import DataError

MOST = 64 * 10**9  # bytes that are taken from it
LEFT_FREE = 10**9  # bytes of the disk that they must leave


def standard_input() -> Path:
    """Standard input as a file: it can be read once only, so it is kept until this process ends."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DataError(
            "standard input reaches one process, and this run has several",
            where="data=-",
            fix="write the rows into a file: cat > rows.jsonl, and give data=rows.jsonl",
        )
    waits = sys.stdin is None or sys.stdin.isatty()
    if waits or not spooled()[1].stat().st_size:
        raise DataError(
            "nothing comes in on standard input",
            where="data=-",
            found="a terminal" if waits else "0 bytes",
            expected="JSON lines or a table; to resume a run, the same that it began with",
            fix="pipe them in: COMMAND < rows.jsonl",
        )
    return spooled()[1]


@functools.cache
def spooled() -> tuple[Scratch, Path]:
    """The file that holds all of standard input, and what keeps it; DataError where it does not end."""
    scratch = Scratch()
    path = scratch.path / f"standard-input{PIPED}"
    size = 0
    with path.open("wb") as file:
        for block in _blocks():
            room = shutil.disk_usage(scratch.path).free
            if size + len(block) > MOST or len(block) + LEFT_FREE > room:
                raise _no_end(size, room, scratch.path)
            size += file.write(block)  # of a buffered file: all of it
    return scratch, path


def _no_end(size: int, room: int, folder: Path) -> DataError:
    return DataError(
        "standard input does not end, or holds more than can be kept",
        where="data=-",
        found=f"{size / 1e9:,.1f} GB without an end; {room / 1e9:,.1f} GB are free in {folder.parent}",
        expected=f"rows that come to an end: they are kept on disk first, at most {MOST / 1e9:,.1f} GB, and "
        f"{LEFT_FREE / 1e9:,.1f} GB stay free",
        fix="take as many as you train on: COMMAND | head -n 1000000; or give TMPDIR=FOLDER on a larger disk",
    )


def _blocks() -> Iterator[bytes]:
    stream = getattr(sys.stdin, "buffer", None)
    while stream is not None and (block := stream.read(CHUNK)):
        yield block
