"""Preferences: of a chosen and a rejected reply, the chosen one is what can be learned from."""

from __future__ import annotations

import re
from typing import Any

from imprint.data.conversation import Message, Place
from imprint.data.faults import bad_row, listed, show
from imprint.data.messages import parse_messages
from imprint.data.shapes import PROMPTS, Draft, Read, Row, earlier, instructed, marked, side
from imprint.data.shapes_tools import schemas
from imprint.data.vocabulary import holds

CHOSEN_ALONE = "of a preference, the chosen side alone is trained"

_HH = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")


def chosen(row: Row, place: Place) -> list[Draft]:
    """The chosen side: the whole conversation, or the reply to a prompt in its own column."""
    value = [row["chosen"]] if is_answered(row) else row["chosen"]
    notes = [CHOSEN_ALONE] if "rejected" in row else []
    prompt = _prompt(row, place)
    messages: tuple[Message, ...] = ()
    if isinstance(value, str):
        messages = marked(value, _HH)
    elif isinstance(value, list) and value:
        messages = parse_messages(value, place, notes)
        if prompt and not any(message.role == "user" for message in messages):
            messages = (*prompt, *messages)
    if messages:
        prompt = (*earlier(row, place), *prompt)
        _refuse_another(prompt, messages, place)
    elif prompt:
        messages = (*earlier(row, place), *prompt, *side(row, "chosen", "assistant", place))
    else:
        raise bad_row(
            "the chosen reply has no prompt",
            place,
            f"columns {listed(row)}",
            "a column `prompt`, a list of messages, or a text with Human: and Assistant:",
            "add the column of the prompt",
        )
    return [Draft(messages, notes=tuple(notes))]


def _prompt(row: Row, place: Place) -> tuple[Message, ...]:
    """What the columns of the prompt say: one of them, or an instruction and its input; none where they are empty."""
    names = [name for name in PROMPTS if holds(row.get(name))]
    if names == ["instruction", "input"]:
        return instructed(row, "input", place)
    if not names:
        return ()
    if any(row[name] != row[names[0]] for name in names):
        raise bad_row(
            "the row has several prompts",
            place,
            "; ".join(f"{name}: {show(row[name])}" for name in names),
            "one prompt, or an instruction and its input",
            "keep one of these columns, or join them in one",
        )
    asked = row[names[0]]
    before = marked(asked.removesuffix("\n\nAssistant:"), _HH) if isinstance(asked, str) else ()
    return before or side(row, names[0], "user", place)


def _refuse_another(prompt: tuple[Message, ...], messages: tuple[Message, ...], place: Place) -> None:
    """DataError where the prompt of its own column says what the chosen conversation does not."""
    said = "\n".join(message.content for message in messages)
    other = next((one for one in prompt if one.content.strip() not in said), None)
    if other is not None:
        raise bad_row(
            "the prompt is not that of the chosen conversation",
            place,
            f"the prompt: {show(other.content)}; chosen: {show(messages[0].content)}",
            "one prompt: in a column of its own, or in the conversation",
            "remove the column of the prompt, or the prompt from `chosen`",
        )


# ---- the talk in one column, the replies in two others


def answered(column: str) -> Read:
    """A list of messages that ends with the user, and the chosen reply as one message (LLaMA-Factory)."""

    def read(row: Row, place: Place) -> list[Draft]:
        notes = [CHOSEN_ALONE] if "rejected" in row else []
        said = (
            *parse_messages(row[column], place, notes), *parse_messages([row["chosen"]], place, notes)
        )  # fmt: skip
        return [Draft(said, notes=tuple(notes))]

    return read


def is_answered(row: Row) -> bool:
    """Whether `chosen` is one message."""
    value: Any = row["chosen"]
    return isinstance(value, dict) and ("role" in value or "from" in value)


def preferred(row: Row, place: Place) -> list[Draft]:
    """OpenAI's preference rows: `input` holds messages and tools, `preferred_output` the reply's messages."""
    given = row["input"]
    if not isinstance(given, dict) or "messages" not in given:
        raise bad_row(
            "`input` cannot be read", place, show(given), '{"messages": [...]}', "write it in this form"
        )
    notes = [CHOSEN_ALONE] if "non_preferred_output" in row else []
    said = (
        *parse_messages(given["messages"], place, notes),
        *parse_messages(row["preferred_output"], place, notes),
    )
    tools = schemas(given.get("tools") or given.get("functions"), place)
    return [Draft(said, tools=tools or None, notes=tuple(notes))]


def is_preferred(row: Row) -> bool:
    """Whether `input` holds messages."""
    return isinstance(row["input"], dict)
