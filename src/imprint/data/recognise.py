"""Which format a row is of: by its columns, by its values where these do not tell, or why it is of none."""

from __future__ import annotations

import functools
import shlex
from typing import Any, NamedTuple

from imprint.data.catalogue import COLUMNS, FORMATS, OPTIONAL, PARTS, Format
from imprint.data.conversation import Place
from imprint.data.faults import alike, bad_row, cut, listed, show
from imprint.data.parse_table import FLAN
from imprint.data.shapes import PROMPTS, Row, without_output
from imprint.data.shapes_text import LABELS
from imprint.errors import DataError

NOTHING: frozenset[str] = frozenset()


class Evidence(NamedTuple):
    """Why a row is taken for what it is.

    `format` is empty where it is of none, and `reason` then says why. `columns` decided; `read` are others
    that are used too; `ignored` are not used; `alternatives` are formats that the columns would also fit.
    """

    format: str
    reason: str
    columns: tuple[str, ...]
    read: tuple[str, ...]
    ignored: tuple[str, ...]
    alternatives: tuple[str, ...]


def explain(row: Any, place: Place, mapped: frozenset[str] = NOTHING, key: str = "data.0") -> Evidence:
    """What `recognise` finds in a row, and why; `mapped` are the parts that the recipe's `fields` name."""
    if isinstance(row, list):
        return Evidence("messages", "a list of messages without a column", (), (), (), ())
    if not isinstance(row, dict):
        return Evidence("", not_a_row(row, place).what, (), (), (), ())
    fitting = [format for group in _groups(tuple(row), mapped) for format in group]
    try:
        found = recognise(row, mapped, place, key)
    except DataError as error:
        filled = {column: value for column, value in row.items() if value is not None and value != ""}
        if not mapped and len(filled) < len(row):  # the empty columns may be those of other rows
            inner = explain(filled, place, mapped, key)
            if inner.format:
                return inner._replace(
                    ignored=tuple(column for column in row if column not in inner.columns + inner.read)
                )
        return Evidence("", error.what, (), (), tuple(row), tuple(format.name for format in fitting))
    used = {*found.columns, *found.uses, *OPTIONAL}
    others = tuple(format.name for format in fitting if format is not found)
    reason = "its columns"
    if others or found.fits is not None:
        reason = "its columns and their values"
    if mapped.issuperset(found.columns):
        reason = "the recipe's fields"
    return Evidence(
        found.name,
        reason,
        found.columns,
        tuple(column for column in row if column in used and column not in found.columns),
        tuple(column for column in row if column not in used),
        others,
    )


def is_row(value: Row) -> bool:
    """Whether an object is a row of some format, by its columns and, where it matters, their values."""
    return any(_fits(format, value) for group in _groups(tuple(value), NOTHING) for format in group)


def recognise(row: Row, mapped: frozenset[str], place: Place, key: str) -> Format:
    """The one format of a row; DataError where there is none, or several that fit as well."""
    if sure := certain(tuple(row), mapped):
        return sure
    groups = _groups(tuple(row), mapped)
    for group in groups:
        fitting = [format for format in group if _fits(format, row)]
        if len(fitting) > 1:
            fitting = _largest(fitting)
        if len(fitting) > 1:
            fitting = [format for format in fitting if _holds_texts(format, row)] or fitting
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise bad_row(
                "the columns fit several formats",
                place,
                f"columns {listed(row)}",
                f"one of {', '.join(format.name for format in fitting)}",
                f"say which: {key}.format={fitting[0].name}" + _both(fitting, key),
            )
    raise _unknown(row, groups, place, key)


def _both(fitting: list[Format], key: str) -> str:
    """How to read two prompts of one reply: one as the instruction, the other as what it is about."""
    first, second = fitting[0].columns, fitting[1].columns
    if len(first) != 2 or len(second) != 2 or first[1] != second[1]:
        return ""
    return f"\nboth, one behind the other: {as_alpaca(first[0], second[0], first[1], f'{key}.')}"


def as_alpaca(instruction: str, about: str, reply: str, key: str = "") -> str:
    """The settings by which three columns are read as Alpaca's; `key` is the source's place, with a dot."""
    parts = {"instruction": instruction, "input": about, "output": reply}
    return " ".join(f"{key}fields.{part}={shlex.quote(column)}" for part, column in parts.items())


def certain(columns: tuple[str, ...], mapped: frozenset[str]) -> Format | None:
    """The format, where columns alone tell it."""
    groups = _groups(columns, mapped)
    return groups[0][0] if len(groups) == 1 and len(groups[0]) == 1 and groups[0][0].fits is None else None


@functools.lru_cache(maxsize=1024)
def _groups(columns: tuple[str, ...], mapped: frozenset[str]) -> tuple[tuple[Format, ...], ...]:
    """The formats whose columns are all there, by rank; where one of them is certain, it alone."""
    present = set(columns)
    fitting = [format for format in FORMATS if present.issuperset(format.columns)]
    named = [
        format for format in fitting if mapped.issuperset(format.columns)
    ]  # what the user named goes first
    fitting = named or fitting
    groups = [
        tuple(format for format in fitting if format.rank == rank)
        for rank in sorted({format.rank for format in fitting})
    ]
    if groups and all(format.fits is None for format in groups[0]):
        return (tuple(_largest(groups[0])),)
    return tuple(groups)


def _largest(formats: list[Format] | tuple[Format, ...]) -> list[Format]:
    """Without those that need only a part of what another needs, or have its reply and fewer columns."""
    return [
        format for format in formats if not any(_within(format.columns, other.columns) for other in formats)
    ]


def _within(few: tuple[str, ...], many: tuple[str, ...]) -> bool:
    return len(few) < len(many) and (set(few) < set(many) or few[-1] == many[-1])


def _fits(format: Format, row: Row) -> bool:
    return format.fits is None or format.fits(row)


def _holds_texts(format: Format, row: Row) -> bool:
    """Whether the columns of a format hold what can be said: texts or lists of messages."""
    return all(
        isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], dict))
        for value in map(row.__getitem__, format.columns)
    )


def not_a_row(value: Any, place: Place) -> DataError:
    """The error for a row that is no object."""
    if isinstance(value, str):
        return bad_row(
            "the row is a text alone: a prompt without a reply",
            place,
            show(value),
            'an object such as {"prompt": "...", "response": "..."}',
            "write each row with named columns, the reply among them",
        )
    return bad_row("the row is not an object", place, show(value), "{...}", "write it with named columns")


def _unknown(row: Row, groups: tuple[tuple[Format, ...], ...], place: Place, key: str) -> DataError:
    """Why a row is of no format: its values, a reply that is missing, names that are unlike any."""
    columns = f"columns {listed(row) or 'none'}"
    fields = f"{key}.fields.prompt=COLUMN {key}.fields.response=COLUMN"
    if special := _special(row, columns, place, key):
        return special
    if groups:
        format = groups[-1][-1]
        return bad_row(
            "the columns fit a format, but their values do not",
            place,
            "; ".join(f"{column}: {show(row[column])}" for column in format.columns),
            f"{format.name}: {format.becomes}",
            f"mend the values, or name your columns: {fields}",
        )
    likes = _renames(tuple(row))
    renames = "; ".join(f"rename {cut(column)} to {like}" for column, like in likes)
    prompt = next((name for name in (*PROMPTS, "inputs", "problem") if name in row), None)
    if prompt is not None and not likes:
        return bad_row(
            "the row is a prompt without a reply",
            place,
            columns,
            "a column with the reply to learn",
            f"remove the row, or name the reply's column: {key}.fields.prompt={prompt} {key}.fields.response=COLUMN",
        )
    if len(row) == 2 and all(isinstance(value, str) for value in row.values()):
        first, second = (shlex.quote(cut(column)) for column in row)
        fields = f"{key}.fields.prompt={first} {key}.fields.response={second}"
    named = f"name your columns: {fields}"
    return bad_row(
        "the columns are of no known format",
        place,
        columns,
        "messages | instruction + output | prompt + response | text | … (imprint data formats lists all)",
        f"{renames}; or {named}" if renames else named,
    )


@functools.lru_cache(maxsize=1024)
def _renames(columns: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """New names for columns with which they would be of a format."""
    likes = {column: like for column in columns if column not in PARTS and (like := alike(column, COLUMNS))}
    targets = list(likes.values())
    likes = {
        column: like for column, like in likes.items() if like not in columns and targets.count(like) == 1
    }
    fitting = [
        format
        for format in FORMATS
        if format.fits in (None, without_output)
        and {likes.get(column, column) for column in columns}.issuperset(format.columns)
    ]
    needed = set(_largest(fitting)[0].columns) if fitting else set()
    return tuple((column, like) for column, like in likes.items() if like in needed)


def _special(row: Row, columns: str, place: Place, key: str) -> DataError | None:
    """The rows that are known, and known not to be demonstrations as they stand."""
    if "involved_classes" in row and "question" in row:
        return bad_row(
            "the task has several turns: its answer is a program, not a reply",
            place,
            columns,
            "one turn, its functions and the calls that are right",
            "leave the file out",
        )
    if "ground_truth" in row and not any(name in row for name in PROMPTS):
        return bad_row(
            "the row is a ground truth without its question",
            place,
            columns,
            "the file of the questions; its answers are found beside it",
            "give the file of the questions alone",
        )
    if row and all(column.isdecimal() for column in row):
        return bad_row(
            "the columns have no names",
            place,
            f"{len(row)} columns: " + ", ".join(show(value) for value in list(row.values())[:4]),
            "a header",
            f"add a header, or say which column is which: {key}.fields.prompt=0 {key}.fields.response=1"
            + (f"\nof FLAN's ({', '.join(FLAN)}): {key}.format=flan_cot" if len(row) == 3 else ""),
        )
    if "input_ids" in row:
        return bad_row(
            "the row does not say which ids are learned",
            place,
            columns,
            "input_ids and labels (-100 for context), assistant_masks or completion_mask",
            "add the column, or give the texts instead",
        )
    if isinstance(row.get("text"), str) and len(row) < 12:
        label = next((name for name in LABELS if name in row), None)
        if label is not None:
            return bad_row(
                "the row is a text with a label or a reply beside it",
                place,
                columns,
                "a reply, or a text alone",
                f"if the label is the reply: {key}.fields.prompt=text {key}.fields.response={label};"
                f" if the text is a document: {key}.format=text",
            )
        return bad_row(
            "the text is a conversation that was rendered already",
            place,
            show(row["text"]),
            "the messages themselves, or a document",
            f"give the rows from which it was made; or train all of it as a document: {key}.format=text",
        )
    return None
