"""Turn each row, whatever its format, into its conversations.

The formats are the lines of `catalogue.FORMATS`; rows of several may stand in one file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from imprint.data.catalogue import BY_NAME, CHAT, COLUMNS, FORMATS, OPTIONAL, PARTS, Format
from imprint.data.conversation import TEXT, Conversation, Message, Place, Record
from imprint.data.faults import bad_row, cut, listed, show
from imprint.data.faults import number as parse_number
from imprint.data.recognise import (
    BESIDE,
    Evidence,
    certain,
    explain,
    is_row,
    not_a_row,
    recognise,
)
from imprint.data.replies import check, merge_replies
from imprint.data.shapes import Draft, Row
from imprint.data.shapes_tools import schemas
from imprint.data.shapes_tree import Member, Tree, trees
from imprint.data.slips import holds, slips
from imprint.data.text import Broken
from imprint.errors import DataError, RecipeError, nearest
from imprint.recipe import DataSource

__all__ = [
    "COLUMNS", "FORMATS", "OPTIONAL", "Draft", "Evidence", "Format", "converter", "explain", "is_row", "merge_replies"
]  # fmt: skip

Warn = Callable[[str, Place], None]
MEDIA = {"image", "images", "audio", "audios", "video", "videos"}


def converter(
    source: DataSource, key: str = "data.0", warn: Warn | None = None
) -> Callable[[Record], tuple[Conversation, ...]]:
    """What turns a record of `source` into its conversations, or raises DataError for a bad row.

    `key` is the source's place in the recipe, for the remedies; `warn` is told what of a row is not
    used. A record that is part of a tree at another place gives none. Raises RecipeError when
    `source.format` or a part in `source.fields` does not exist.
    """
    _refuse_unknown_names(source, key)
    fields = source.fields
    forced = BY_NAME.get(source.format)
    mapped = frozenset(fields)
    reader = functools.partial(trees, branches=source.branches)
    tell: Warn = warn or (lambda text, place: None)

    def convert(record: Record) -> tuple[Conversation, ...]:
        row, place = record.value, record.place
        if type(row) is not dict:
            if isinstance(row, Broken):
                raise row.error
            if isinstance(row, Member):
                return ()
            if isinstance(row, Tree):
                return _finish(reader(row.row, place), row.row, place, warn)
            if not isinstance(row, list) or fields:
                raise not_a_row(row, place)
            row = {forced.columns[0] if forced and forced.chat else "messages": row}
        return read_mapped(row, place) if fields else read_any(row, place)

    def read_mapped(row: Row, place: Place) -> tuple[Conversation, ...]:
        row = _renamed(row, fields, place, key)
        try:
            return read(row, place)
        except DataError as error:
            raise _with_fields(error, fields, key) from None

    def read_any(row: Row, place: Place) -> tuple[Conversation, ...]:
        try:
            return read(row, place)
        except DataError:
            # in a table that mixes shapes, the columns of the others are empty
            filled = {column: value for column, value in row.items() if value is not None and value != ""}
            if forced or fields or len(filled) == len(row) or not _is_another(filled, row, place, key):
                raise
            return read(filled, place)

    def read(row: Row, place: Place) -> tuple[Conversation, ...]:
        if forced:
            _refuse_missing(row, forced, place)
        columns = tuple(row)
        for column in _media(columns):
            if holds(row[column]):
                raise _with_media(column, row, place)
        format, plain, aside = _plan(columns, mapped)
        format = forced or format or recognise(row, mapped, place, key)
        for column, like, sure in slips(format, columns):
            if holds(row[column]):
                if sure and not mapped:  # by `fields` the user says which column is which
                    raise _misspelt(column, like, row, format, place, key)
                tell(f"the column `{cut(column)}` is not used: is it `{like}`?", place)
        found = reader(row, place) if format.read is trees else format.read(row, place)
        for column in aside:
            if column not in format.columns + format.uses and row[column] and format.rank != CHAT:
                tell(f"the column `{column}` is not used: it is no part of {format.name}", place)
        if plain and type(found) is tuple:  # most rows
            if not found or found[0].role != TEXT:
                check(found, place)
            return (Conversation(found, place, _name(row.get("id"), place)),)
        return _finish(found if isinstance(found, list) else [Draft(found)], row, place, warn)

    return convert


@functools.lru_cache(maxsize=1024)
def _media(columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(column for column in columns if column.lower() in MEDIA)


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
    """What columns alone tell: the format if they do; whether none speaks of the conversation; what may go unused."""
    plain = not any(column in OPTIONAL and column != "id" for column in columns)
    return certain(columns, mapped), plain, tuple(column for column in columns if column in BESIDE)


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
                if (like := nearest(column, row))
                else f"add the column {column}",
            )


def _finish(drafts: list[Draft], row: Row, place: Place, warn: Warn | None) -> tuple[Conversation, ...]:
    if warn is not None:
        for draft in drafts:
            for note in draft.notes:
                warn(note, place)
    return tuple(_finished(draft, row, place, number) for number, draft in enumerate(drafts))


def _finished(draft: Draft, row: Row, place: Place, number: int) -> Conversation:
    """The conversation of a draft, with what the row says of all its conversations."""
    messages = draft.messages
    if messages and messages[0].role != TEXT:
        if system := row.get("system") or row.get("system_prompt"):
            messages = _with_system(messages, system, place)
        check(messages, place)
    elif draft.tokens is None and not messages:
        check(messages, place)
    weight, name = row.get("weight"), draft.id or _name(row.get("id"), place)
    tools = draft.tools
    if tools is None:
        tools = schemas(given, place) if (given := row.get("tools") or row.get("functions")) else ()
    return Conversation(
        messages,
        place,
        name if draft.id or not number else f"{name}/{number + 1}",
        tools,
        1.0 if weight is None else parse_number(weight, "weight", place),
        draft.group or str(row.get("split_group") or ""),
        draft.tokens,
    )


def _name(given: Any, place: Place) -> str:
    return str(given) if isinstance(given, (str, int)) and given != "" else str(place)


def _with_system(messages: tuple[Message, ...], system: Any, place: Place) -> tuple[Message, ...]:
    """The messages behind the row's system text, which may come in parts, unless they begin with it."""
    if isinstance(system, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in system
    ):
        system = "".join(str(part.get("text", "")) for part in system)
    if not isinstance(system, str):
        raise bad_row(
            "a column is not a text", place, f"system: {show(system)}", "a text", "write it in double quotes"
        )
    if not system.strip() or (messages[0].role == "system" and messages[0].content == system):
        return messages
    if messages[0].role == "system":
        raise bad_row(
            "the row has two system texts",
            place,
            f"system: {show(system)}; message 1 (system): {show(messages[0].content)}",
            "one of them",
            "remove the other",
        )
    return (Message("system", system), *messages)


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
