"""Columns that nothing reads: in how many rows each of them holds something."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Mapping

from imprint.data.catalogue import BY_NAME, OPTIONAL, Format
from imprint.data.conversation import Place, Record
from imprint.data.faults import cut
from imprint.data.recognise import certain, recognise
from imprint.data.shapes import Row
from imprint.data.shapes_tree import Member, Tree
from imprint.data.slips import holds
from imprint.errors import DataError
from imprint.recipe import DataSource

MOST = 20  # columns that are named
KEPT = 1000  # columns that are counted: where every row has keys of its own, memory stays bounded


class Unused:
    """Counts, row by row, the columns that hold something and are no part of what is trained."""

    def __init__(self) -> None:
        self.rows = 0
        self.columns: Counter[str] = Counter()

    def add(self, format: Format | None, row: Row | None) -> None:
        """A row that was read in a format; None for what has no columns of its own."""
        self.rows += 1
        if format is None or row is None:
            return
        for column in _beside(format, tuple(row)):
            if holds(row[column]) and (column in self.columns or len(self.columns) < KEPT):
                self.columns[column] += 1

    def words(self) -> str:
        """The columns by how many rows they hold something in, the most frequent first; "" where there are none."""
        told: list[str] = []
        for count, group in itertools.groupby(self.columns.most_common(MOST), key=lambda item: item[1]):
            names = ", ".join(
                f"`{cut(column, 40)}`" if column.strip() else "the column without a name"
                for column, _ in group
            )
            share = "all" if count == self.rows else f"{count:,} of"
            told.append(f"{names} in {share} {self.rows:,} rows" if self.rows > 1 else names)
        if (more := len(self.columns) - MOST) > 0:
            least = " at least" if len(self.columns) == KEPT else ""
            told.append(f"and {more} {'others' if more > 1 else 'other'}{least}")
        return "; ".join(told)

    def to_json(self) -> Mapping[str, int]:
        return dict(self.columns.most_common())


@functools.lru_cache(maxsize=4096)
def _beside(format: Format, columns: tuple[str, ...]) -> tuple[str, ...]:
    used = {*format.columns, *format.uses, *OPTIONAL}
    return tuple(column for column in columns if column not in used)


def format_of(record: Record, source: DataSource, key: str) -> tuple[Format | None, Row | None]:
    """The format of a record that was read, and its row with the names by which this was recognised.

    A tree, and a list without columns, have no row; a list has no format either: it is messages.
    """
    row = record.value
    if isinstance(row, (Tree, Member)):
        return BY_NAME.get(row.of if isinstance(row, Member) else "oasst_messages"), None
    forced = BY_NAME.get(source.format)
    if not isinstance(row, dict):
        return forced, None
    if forced:
        return forced, _renamed(row, source) if source.fields else row
    row = as_read(row, source, record.place, key)
    return recognise(row, frozenset(source.fields), record.place, key), row


def as_read(row: Row, source: DataSource, place: Place, key: str) -> Row:
    """A row that was read, with the names and columns by which its format was recognised."""
    if source.fields:
        return _renamed(row, source)
    sure = certain(tuple(row), frozenset())
    if sure is not None and holds(row[sure.columns[-1]]):
        return row
    filled = {column: value for column, value in row.items() if value is not None and value != ""}
    if len(filled) == len(row):
        return row
    try:  # as the formats do: with its empty columns, or where that fails, without
        recognise(row, frozenset(), place, key).read(row, place)
    except DataError:
        return filled
    return row


def _renamed(row: Row, source: DataSource) -> Row:
    taken = set(source.fields.values())
    kept = {column: value for column, value in row.items() if column not in taken}
    return kept | {part: row[column] for part, column in source.fields.items()}
