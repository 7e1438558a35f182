"""Rows that were left out, as JSON lines: what `--left-out FILE` writes, and how such a file is read again.

A line is one record: {"place", "level", "reason", "detail", "row"}, and "also" where more than one thing
of it is left out. Whoever mends the `row` gives the file as data: each line then stands for its row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from imprint.data.conversation import Place, Record
from imprint.data.faults import bad_row, show
from imprint.data.text import Broken

LEVELS = ("record", "conversation", "reply")
_KEYS = {"place", "level", "reason", "detail", "row"}


def unwrapped(records: Iterator[Record]) -> Iterator[Record]:
    """The records, those that are lines of a `--left-out` file as the rows that they hold."""
    for record in records:
        row = record.value
        if type(row) is dict and "row" in row and is_left_out(row):
            record = Record(_row(row["row"], record.place), record.place)
        yield record


def is_left_out(row: dict[str, Any]) -> bool:
    """Whether an object is a line that `--left-out` wrote."""
    return row.keys() - {"also"} == _KEYS and row["level"] in LEVELS


def _row(given: Any, place: Place) -> Any:
    """A row that could not be parsed stands as the text of its line, to be mended where it stands."""
    if not isinstance(given, str) or not given.lstrip().startswith(("{", "[")):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        return Broken(
            bad_row(
                "the row that was left out is still not valid JSON",
                place,
                f"{error}: {show(given)}",
                "a row that is mended",
                "write the row itself, as {...}, in place of its text",
            )
        )
