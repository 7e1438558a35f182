"""From what a format reads of a row to its conversations: with the columns that any row may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from imprint.data.conversation import TEXT, Conversation, Message, Place
from imprint.data.faults import as_text, bad_row, show
from imprint.data.faults import number as parse_number
from imprint.data.replies import check
from imprint.data.shapes import Draft, Row
from imprint.data.shapes_tools import schemas
from imprint.data.vocabulary import holds

Warn = Callable[[str, Place], None]


def finish(drafts: list[Draft], row: Row, place: Place, tell: Warn) -> tuple[Conversation, ...]:
    """The conversations of a row; `tell` hears what of it is not used."""
    for draft in drafts:
        for note in draft.notes:
            tell(note, place)
        for note, at in draft.notes_at:
            tell(note, at)
    return tuple(_finished(draft, row, place, number, tell) for number, draft in enumerate(drafts))


def name_of(given: Any, place: Place) -> str:
    """The name of a conversation: the row's id, or its place."""
    return str(given) if isinstance(given, (str, int)) and given != "" else str(place)


def _finished(draft: Draft, row: Row, place: Place, number: int, tell: Warn) -> Conversation:
    """The conversation of a draft, with what the row says of all its conversations."""
    messages = draft.messages
    is_chat = draft.tokens is None and not (messages and messages[0].role == TEXT)
    if is_chat:
        if messages and (system := _one_of("system", "system_prompt", row, place)):
            messages = _with_system(messages, system, place)
        for note in check(messages, place):
            tell(note, place)
    tools = draft.tools
    if tools is None and is_chat:
        tools = schemas(_one_of("tools", "functions", row, place), place)
    elif not number:
        for column in (
            ("tools", "functions") if is_chat else ("system", "system_prompt", "tools", "functions")
        ):
            if holds(row.get(column)):
                tell(f"the column `{column}` is not used: this row has no place for it", place)
    weight, name = row.get("weight"), draft.id or name_of(row.get("id"), place)
    return Conversation(
        messages,
        place,
        name if draft.id or not number else f"{name}/{number + 1}",
        tools or (),
        1.0 if weight is None or _is_blank(weight) else parse_number(weight, "weight", place),
        draft.group or str(row.get("split_group") or ""),
        draft.tokens,
    )


def _is_blank(value: Any) -> bool:
    """Whether a value is an empty cell of a table."""
    return isinstance(value, str) and not value.strip()


def _one_of(one: str, other: str, row: Row, place: Place) -> Any:
    """The value of two columns that say the same; DataError where they do not."""
    first, second = row.get(one), row.get(other)
    if holds(first) and holds(second) and first != second:
        raise bad_row(
            "two columns of one meaning differ",
            place,
            f"{one}: {show(first)}; {other}: {show(second)}",
            f"one of {one} and {other}",
            "remove the other",
        )
    return first or second


def _with_system(messages: tuple[Message, ...], system: Any, place: Place) -> tuple[Message, ...]:
    """The messages behind the row's system text, which may come in parts, unless they begin with it."""
    if isinstance(system, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in system
    ):
        system = "".join(str(part.get("text", "")) for part in system)
    if not isinstance(system, str):
        raise bad_row("a column is not a text", place, f"system: {show(system)}", "a text", as_text(system))
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
