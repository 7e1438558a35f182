"""Turn each row, whatever its format, into its conversations.

The formats are the lines of `catalogue.FORMATS`; rows of several may stand in one file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from imprint.data.aside import account, labels, missed, refuse_unwanted, set_aside
from imprint.data.catalogue import BY_NAME, COLUMNS, FORMATS, OPTIONAL, PARTS, Format
from imprint.data.conversation import TEXT, Conversation, Message, Place, Record
from imprint.data.faults import alike, bad_row, cut, listed, show
from imprint.data.finish import Warn, finish, name_of
from imprint.data.recognise import Evidence, certain, explain, is_row, not_a_row, recognise
from imprint.data.replies import check, merge_replies
from imprint.data.shapes import Draft, Row
from imprint.data.shapes_tree import Member, Tree, trees
from imprint.data.slips import is_meant, slips
from imprint.data.text import Broken
from imprint.data.vocabulary import MEDIA, holds
from imprint.errors import DataError, RecipeError, nearest
from imprint.recipe import DataSource

__all__ = [
    "COLUMNS", "FORMATS", "OPTIONAL", "Draft", "Evidence", "Format", "converter", "explain", "is_row", "merge_replies"
]  # fmt: skip


def converter(
    source: DataSource, key: str = "data.0", warn: Warn | None = None
) -> Callable[[Record], tuple[Conversation, ...]]:
    """What turns a record of `source` into its conversations, or raises DataError for a bad row.

    `key` is the source's place in the recipe, for the remedies; `warn` is told what of a row is not
    used. A record that is part of a tree at another place gives none. Raises RecipeError when
    `source.format` or a part in `source.fields` does not exist.
    """
    _refuse_unknown_names(source, key)
    tell: Warn = warn or (lambda text, place: None)
    return _Converter(source, key, BY_NAME.get(source.format), frozenset(source.fields), tell).convert


@dataclass(frozen=True, slots=True)
class _Converter:
    """What is settled once for all rows of a source: the format if the recipe says it, and the parts it names."""

    source: DataSource
    key: str
    forced: Format | None
    mapped: frozenset[str]
    tell: Warn

    def convert(self, record: Record) -> tuple[Conversation, ...]:
        """The conversations of any record."""
        row, place = record.value, record.place
        if type(row) is dict:
            simple = None if self.forced or self.mapped else _simple(tuple(row))
            if simple is not None:  # most rows
                try:
                    return self._finished(simple.read(row, place), row, place)
                except DataError as error:
                    return self._read_filled(row, place, error)
        else:
            if isinstance(row, Broken):
                raise row.error
            if isinstance(row, Member):
                return ()
            if isinstance(row, Tree):
                return finish(
                    trees(row.row, place, self.source.branches, row.removed), row.row, place, self.tell
                )
            if not isinstance(row, list) or self.mapped:
                raise not_a_row(row, place)
            row = {self.forced.columns[0] if self.forced and self.forced.chat else "messages": row}
        return self._read_mapped(row, place) if self.mapped else self._read_any(row, place)

    def _read_mapped(self, row: Row, place: Place) -> tuple[Conversation, ...]:
        fields = self.source.fields
        row = _renamed(row, fields, place, self.key)
        try:
            return self._read(row, place)
        except DataError as error:
            raise _with_fields(error, fields, self.key) from None

    def _read_any(self, row: Row, place: Place) -> tuple[Conversation, ...]:
        try:
            return self._read(row, place)
        except DataError as error:
            return self._read_filled(row, place, error)

    def _read_filled(self, row: Row, place: Place, error: DataError) -> tuple[Conversation, ...]:
        """A bad row without its empty columns: in a table that mixes shapes, those of the others are empty."""
        filled = {column: value for column, value in row.items() if value is not None and value != ""}
        if self.forced or len(filled) == len(row) or not _is_another(filled, row, place, self.key):
            raise error
        return self._read(filled, place)

    def _read(self, row: Row, place: Place) -> tuple[Conversation, ...]:
        if self.forced:
            _refuse_missing(row, self.forced, place)
        columns = tuple(row)
        format, plain, media = _plan(columns, self.mapped)
        for column in media:
            if holds(row[column]):
                raise _with_media(column, row, place)
        format = self.forced or format or recognise(row, self.mapped, place, self.key)
        beside = _beside(format, columns)
        for label in beside.labels:
            refuse_unwanted(label, row, format, place)
        for column, like, sure in beside.slips:
            if holds(row[column]):
                # by `fields` the user says which column is which
                if (sure or is_meant(row[column], like)) and not self.mapped:
                    raise _misspelt(column, like, row, format, place, self.key)
                self.tell(f"the column `{cut(column)}` is not used: is it `{like}`?", place)
        found = trees(row, place, self.source.branches) if format.read is trees else format.read(row, place)
        if beside.aside:
            self._account(beside.aside, row, format, found, place)
        if plain:
            return self._finished(found, row, place)
        return finish(found if isinstance(found, list) else [Draft(found)], row, place, self.tell)

    def _finished(
        self, found: list[Draft] | tuple[Message, ...], row: Row, place: Place
    ) -> tuple[Conversation, ...]:
        """The conversations of a row whose columns say nothing of them but their id."""
        if type(found) is list:
            return finish(found, row, place, self.tell)
        assert type(found) is tuple
        if not found or found[0].role != TEXT:
            for note in check(found, place):
                self.tell(note, place)
        given = row.get("id")
        return (Conversation(found, place, str(place) if given is None else name_of(given, place)),)

    def _account(
        self,
        columns: tuple[str, ...],
        row: Row,
        format: Format,
        found: list[Draft] | tuple[Message, ...],
        place: Place,
    ) -> None:
        """Say what of a row is not used; refuse it where that is its prompt, unless the user said what to read."""
        settled = bool(self.forced) or self.mapped.issuperset(format.columns)

        def refuse(column: str) -> None:
            if not settled:
                raise missed(column, row, format, place, self.key, self.source.fields)

        account(columns, row, format, found, refuse, lambda text: self.tell(text, place), self.source.fields)


def _with_media(column: str, row: Row, place: Place) -> DataError:
    return bad_row(
        "the row holds more than text",
        place,
        f"{cut(column)}: {show(row[column])}",
        "a row of texts: imprint trains on text",
        "remove the row; or, if its texts stand alone, the column",
    )


def _is_another(filled: Row, row: Row, place: Place, key: str) -> bool:
    """Whether a row without its empty columns is of a format, and with them of another or of none."""
    try:
        found = recognise(filled, frozenset(), place, key)
    except DataError:
        return False
    try:
        return recognise(row, frozenset(), place, key) is not found
    except DataError:
        return True


@functools.lru_cache(maxsize=1024)
def _plan(columns: tuple[str, ...], mapped: frozenset[str]) -> tuple[Format | None, bool, tuple[str, ...]]:
    """What columns alone tell: the format if they do; whether none speaks of any conversation; pictures and sounds."""
    plain = not any(column in OPTIONAL and column != "id" for column in columns)
    return certain(columns, mapped), plain, tuple(column for column in columns if column.lower() in MEDIA)


@functools.lru_cache(maxsize=1024)
def _simple(columns: tuple[str, ...]) -> Format | None:
    """The format of rows that need nothing but its reader: their columns tell it, and no other one counts."""
    format, plain, media = _plan(columns, frozenset())
    if format is None or format.read is trees or media or not plain or any(_beside(format, columns)):
        return None
    return format


class _Beside(NamedTuple):
    """The columns of a row that its format does not read, by what may have to be said of them."""

    slips: tuple[tuple[str, str, bool], ...]
    aside: tuple[str, ...]
    labels: tuple[str, ...]


@functools.lru_cache(maxsize=1024)
def _beside(format: Format, columns: tuple[str, ...]) -> _Beside:
    labelled = tuple(label for label in labels(format) if label in columns)
    return _Beside(slips(format, columns), set_aside(format, columns), labelled)


def _misspelt(column: str, like: str, row: Row, format: Format, place: Place, key: str) -> DataError:
    return bad_row(
        "a column is not used: its name is nearly that of one that would be",
        place,
        f"{cut(column)}: {show(row[column])}",
        f"a column `{like}` ({format.name} reads it), or none of nearly this name",
        f"rename {cut(column)} to {like}, or say so: {key}.fields.{like}={cut(column)}",
    )


def _with_fields(error: DataError, fields: dict[str, str], key: str) -> DataError:
    """The error with the names that the user gave to the columns."""
    yours = ", ".join(f"{part} = {column}" for part, column in fields.items())
    found = f"{error.found}\nwhere, by {key}.fields, {yours}"
    return DataError(error.what, where=error.where, found=found, expected=error.expected, fix=error.fix)


def _refuse_unknown_names(source: DataSource, key: str) -> None:
    """RecipeError for a format or a part that does not exist."""
    asked = [(part, PARTS, f"{key}.fields.", f"={column}") for part, column in source.fields.items()]
    for word, names, before, behind in [(source.format, ("auto", *BY_NAME), f"{key}.format=", ""), *asked]:
        if word not in names:
            like = nearest(word, names)
            raise RecipeError(
                "fields names an unknown part" if behind else "there is no format of this name",
                where=f"{before}{word}" if behind else before.removesuffix("="),
                found=repr(word),
                expected=", ".join(names),
                fix=f"{before}{like}{behind}" if like else "take one of these",
            )


def _refuse_missing(row: Row, format: Format, place: Place) -> None:
    for column in format.columns:
        if column not in row and (format.name, column) != ("alpaca", "input"):
            raise bad_row(
                f"the row is not of the format {format.name}",
                place,
                f"columns {listed(row)}",
                ", ".join(format.columns),
                f"rename {cut(like)} to {column}"
                if (like := alike(column, [name for name in row if name not in format.columns]))
                else f"add the column {column}",
            )


def _renamed(row: Row, fields: dict[str, str], place: Place, key: str) -> Row:
    """The row with the user's columns under the names of their parts."""
    taken = set(fields.values())
    renamed = {column: value for column, value in row.items() if column not in taken}
    for part, column in fields.items():
        if column not in row:
            like = nearest(column, row)
            raise bad_row(
                "a column named in `fields` is missing",
                place,
                f"no {column!r} among the columns {listed(row)}",
                f"a column {column!r}, which {key}.fields maps to {part}",
                f"{key}.fields.{part}={like or 'COLUMN'}",
            )
        renamed[part] = row[column]
    return renamed
