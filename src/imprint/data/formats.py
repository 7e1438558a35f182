"""Recognise each row by its columns and turn it into a conversation.

A format is one line of `FORMATS`. Rows of several formats may stand in one file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from imprint.data.conversation import Conversation, Message, Place, Record, Tokens
from imprint.data.faults import bad_row, from_json, show
from imprint.data.faults import number as parse_number
from imprint.data.messages import parse_messages
from imprint.data.replies import check, merge_replies
from imprint.data.text import Broken
from imprint.errors import DataError, RecipeError, nearest
from imprint.recipe import DataSource

__all__ = ["FORMATS", "Format", "converter", "is_row", "merge_replies"]

Row = dict[str, Any]
OPTIONAL = ("system", "tools", "weight", "id", "input", "history")


class Draft(NamedTuple):
    """What a format reads of one conversation; what it leaves open comes from the row's own columns."""

    messages: tuple[Message, ...]
    tools: Any = None
    id: str = ""
    group: str = ""
    tokens: Tokens | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write a demonstration: its name in recipes, the columns a row must have, its reader.

    A row of all the columns of two formats is of the one that needs more of them; a list of
    messages goes before a pair of texts.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row, Place], tuple[Message, ...] | list[Draft]]
    chat: bool = False


def _chat(column: str) -> Callable[[Row, Place], tuple[Message, ...]]:
    def read(row: Row, place: Place) -> tuple[Message, ...]:
        return parse_messages(row[column], place)

    return read


def _pair(prompt: str, reply: str) -> Callable[[Row, Place], tuple[Message, ...]]:
    """A prompt and its reply in two columns, each a text or a list of messages."""

    def read(row: Row, place: Place) -> tuple[Message, ...]:
        return _side(row, prompt, "user", place) + _side(row, reply, "assistant", place)

    return read


def _alpaca(row: Row, place: Place) -> tuple[Message, ...]:
    """Instruction and input make the prompt; `history` holds earlier [prompt, reply] pairs."""
    messages: list[Message] = []
    history = row.get("history") or []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise bad_row(
                "`history` cannot be read",
                place,
                show(history),
                "a list of [prompt, reply]",
                "write it in this form",
            )
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    if row.get("input"):
        prompt = f"{_text(row, 'instruction', place)}\n\n{_text(row, 'input', place)}"
        messages.append(Message("user", prompt))
    else:
        messages += _side(row, "instruction", "user", place)
    return (*messages, *_side(row, "output", "assistant", place))


def _side(row: Row, column: str, role: str, place: Place) -> tuple[Message, ...]:
    value = row[column]
    if type(value) is str:
        if value.strip():
            return (Message(role, value),)
    elif isinstance(value, list) and value:
        return parse_messages(value, place)
    elif value is not None and value != []:
        _text(row, column, place)
    raise bad_row(
        "the reply is empty" if role == "assistant" else "the prompt is empty",
        place,
        f"column {column}: {show(value)}",
        "a text to learn" if role == "assistant" else "a text to answer",
        f"write the {column} or remove the row",
    )


def _text(row: Row, column: str, place: Place) -> str:
    value: Any = row[column]
    if not isinstance(value, str):
        raise bad_row(
            "a column is not a text", place, f"{column}: {show(value)}", "a text", "write it in double quotes"
        )
    return value


FORMATS = (
    Format("messages", ("messages",), _chat("messages"), chat=True),
    Format("sharegpt", ("conversations",), _chat("conversations"), chat=True),
    Format("alpaca", ("instruction", "input", "output"), _alpaca),
    Format("instruction_output", ("instruction", "output"), _alpaca),
    Format("prompt_response", ("prompt", "response"), _pair("prompt", "response")),
    Format("prompt_completion", ("prompt", "completion"), _pair("prompt", "completion")),
    Format("question_answer", ("question", "answer"), _pair("question", "answer")),
)
BY_NAME = {format.name: format for format in FORMATS}
COLUMNS = tuple(dict.fromkeys(column for format in FORMATS for column in format.columns))


def is_row(value: Row) -> bool:
    """Whether an object has all the columns of some format."""
    return bool(_candidates(tuple(value), frozenset()))


def converter(source: DataSource, key: str = "data.0") -> Callable[[Record], tuple[Conversation, ...]]:
    """What turns a record of `source` into its conversations, one or more, or raises DataError for a bad row.

    `key` is the source's place in the recipe, for the remedies. Raises RecipeError when
    `source.format` or a part in `source.fields` does not exist.
    """
    fields = source.fields
    known = tuple(dict.fromkeys((*COLUMNS, *OPTIONAL)))
    for word, names, where in [
        *([] if source.format == "auto" else [(source.format, ("auto", *BY_NAME), f"{key}.format")]),
        *((part, known, f"{key}.fields") for part in fields),
    ]:
        if word not in names:
            raise RecipeError(
                "there is no format of this name"
                if where.endswith("format")
                else "fields names an unknown part",
                where=where,
                found=repr(word),
                expected=", ".join(names),
                fix=f"{where}={like}" if (like := nearest(word, names)) else "take one of these",
            )
    forced = BY_NAME.get(source.format)
    mapped = frozenset(fields)

    def convert(record: Record) -> tuple[Conversation, ...]:
        row, place = record.value, record.place
        if isinstance(row, Broken):
            raise row.error
        if isinstance(row, list) and not fields:
            row = {forced.columns[0] if forced and forced.chat else "messages": row}
        elif not isinstance(row, dict):
            raise bad_row(
                "the row is not an object", place, show(row), "{...}", "write it with named columns"
            )
        elif fields:
            row = _renamed(row, fields, place, key)
        try:
            return _conversations(row, place, forced or _recognise(row, mapped, place, key))
        except DataError as error:
            if not fields:
                raise
            yours = ", ".join(f"{part} = {column}" for part, column in fields.items())
            found = f"{error.found}\nwhere, by {key}.fields, {yours}"
            raise DataError(
                error.what, where=error.where, found=found, expected=error.expected, fix=error.fix
            ) from None

    return convert


def _conversations(row: Row, place: Place, format: Format) -> tuple[Conversation, ...]:
    for column in format.columns:
        if column not in row and column != "input":
            raise bad_row(
                f"the row is not of the format {format.name}",
                place,
                f"columns {', '.join(row)}",
                ", ".join(format.columns),
                f"rename {like} to {column}"
                if (like := nearest(column, row))
                else f"add the column {column}",
            )
    read = format.read(row, place)
    drafts = read if isinstance(read, list) else [Draft(read)]
    return tuple(_finished(draft, row, place, number) for number, draft in enumerate(drafts))


def _finished(draft: Draft, row: Row, place: Place, number: int) -> Conversation:
    """The conversation of a draft, with what the row says of all its conversations."""
    messages = draft.messages
    if (
        (system := row.get("system"))
        and draft.tokens is None
        and messages[:1] != (Message("system", system),)
    ):
        messages = (Message("system", _text(row, "system", place)), *messages)
    conversation = Conversation(messages, place, tokens=draft.tokens)
    if conversation.is_chat:
        check(messages, place)
    weight, given = row.get("weight"), draft.id or row.get("id")
    name = str(given) if isinstance(given, (str, int)) and given != "" else str(place)
    return dataclasses.replace(
        conversation,
        id=name if draft.id or not number else f"{name}/{number + 1}",
        tools=_tools(row.get("tools") if draft.tools is None else draft.tools, place),
        weight=1.0 if weight is None else parse_number(weight, "weight", place),
        group=draft.group,
    )


def _tools(value: Any, place: Place) -> tuple[Row, ...]:
    """The tools on offer exactly as the row gives them: a list of schemas, or its JSON text."""
    if not value:
        return ()
    tools = from_json(value, "`tools`", place)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise bad_row(
            "`tools` is not a list of objects", place, show(value), "[{...}]", "write a list of schemas"
        )
    return tuple(tools)


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
                f"no {column!r} among the columns {', '.join(row)}",
                f"a column {column!r}, which {key}.fields maps to {part}",
                f"{key}.fields.{part}={like or 'COLUMN'}",
            )
        renamed[part] = row[column]
    return renamed


@functools.lru_cache(maxsize=1024)
def _candidates(columns: tuple[str, ...], mapped: frozenset[str]) -> tuple[Format, ...]:
    """The formats that a row of these columns fits best: one, none, or several that tie."""
    present = set(columns)
    fitting = [format for format in FORMATS if present.issuperset(format.columns)]
    named = [
        format for format in fitting if mapped.issuperset(format.columns)
    ]  # what the user named goes first
    fitting = named or [format for format in fitting if format.chat] or fitting
    return tuple(
        format for format in fitting if not any(set(format.columns) < set(other.columns) for other in fitting)
    )


def _recognise(row: Row, mapped: frozenset[str], place: Place, key: str) -> Format:
    fitting = _candidates(tuple(row), mapped)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise bad_row(
            "the columns fit several formats",
            place,
            f"columns {', '.join(row)}",
            f"one of {', '.join(format.name for format in fitting)}",
            f"say which: {key}.format={fitting[0].name}",
        )
    likes = [(column, like) for column in row if column not in COLUMNS and (like := nearest(column, COLUMNS))]
    renames = "; ".join(f"rename {column} to {like}" for column, like in likes)
    named = f"name your columns: {key}.fields.prompt=COLUMN {key}.fields.response=COLUMN"
    raise bad_row(
        "the columns are of no known format",
        place,
        f"columns {', '.join(row) or 'none'}",
        " | ".join(" + ".join(format.columns) for format in FORMATS),
        f"{renames}; or {named}" if renames else named,
    )
