"""A conversation as a row of a format: the way back from what `formats` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from imprint.data.catalogue import FORMATS, PAIR
from imprint.data.conversation import Conversation, Message, Place, Record
from imprint.data.formats import converter
from imprint.errors import DataError, RecipeError, nearest
from imprint.recipe import DataSource

Row = dict[str, Any]
PAIRS = {
    one.name: one.columns
    for one in FORMATS
    if one.rank == PAIR and len(one.columns) == 2 and one.name == "_".join(one.columns)
}
_PARTS = tuple(field.name for field in fields(Message))
_FROM = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
_NAMES = {
    "tool_call_id": "the id of a tool's call",
    "name": "a name",
    "weight": "a weight",
}


class CannotHold(Exception):
    """A row of this format has no place for something; the message names it."""


def row_writer(name: str) -> Callable[[Conversation], Row]:
    """What writes a conversation as a row of a format so that reading it gives the conversation back.

    Every row is read again before it is given. DataError names what would be lost; RecipeError where
    imprint does not write the format.
    """
    write = WRITERS.get(name)
    if write is None:
        raise RecipeError(
            "imprint does not write this format",
            where=f"--to {name}",
            expected=", ".join(WRITERS),
            fix=f"--to {nearest(name, WRITERS) or 'messages'}",
        )
    read = converter(DataSource(path="what is written"))

    def written(conversation: Conversation) -> Row:
        place = conversation.source
        try:
            row = write(conversation) | _extras(conversation)
        except CannotHold as error:
            raise _cannot(name, str(error), place) from None
        try:
            back = read(Record(row, place))
        except DataError as error:
            raise _cannot(
                name, f"a text that would be read as something else ({error.what})", place
            ) from error
        if len(back) != 1 or (lost := difference(conversation, back[0])):
            raise _cannot(
                name, lost if len(back) == 1 else "a text that would be read as something else", place
            )
        return row

    return written


def _cannot(name: str, lost: str, place: Place) -> DataError:
    return DataError(
        f"a row of {name} cannot hold {lost}",
        where=str(place),
        found=lost,
        expected=f"a conversation that {name} holds whole",
        fix="write --to messages, which holds everything"
        if name != "messages"
        else "mend the text or remove the row",
    )


def difference(one: Conversation, other: Conversation) -> str:
    """What two conversations differ in, but for their places, and for ids that only repeat these; "" for nothing."""
    if len(one.messages) != len(other.messages):
        return "its messages one by one"
    for mine, theirs in zip(one.messages, other.messages, strict=True):
        for name in _PARTS if mine != theirs else ():
            if getattr(mine, name) != getattr(theirs, name):
                if name == "tool_calls":
                    return _of_calls(mine.tool_calls, theirs.tool_calls)
                return _NAMES.get(name, f"the {name}")
    for part, name in (("tools", "tools"), ("weight", "a weight"), ("group", "a group"), ("tokens", "ids")):
        if getattr(one, part) != getattr(other, part):
            return name
    return "" if own_id(one) == own_id(other) else "an id"


def _of_calls(mine: Sequence[Row], theirs: Sequence[Row]) -> str:
    """What two lists of tool calls differ in."""
    if len(mine) != len(theirs):
        return "tool calls"
    lost: dict[str, None] = {}
    for one, other in zip(mine, theirs, strict=True):
        here, there = one.get("function", {}), other.get("function", {})
        if one.get("id") != other.get("id"):
            lost["the id of a tool call"] = None
        if here.get("arguments") != there.get("arguments"):
            as_text = isinstance(here.get("arguments"), str)
            lost["a tool call's arguments" + (" as text" if as_text else "")] = None
        if here | {"arguments": 0} != there | {"arguments": 0}:
            lost["a tool call's name, or what stands beside it"] = None
    return " and ".join(lost) or "what stands beside a tool call"


def own_id(conversation: Conversation) -> str:
    """The id that the data gave; empty where it is only the place."""
    place = str(conversation.source)
    return "" if conversation.id == place or conversation.id.startswith(f"{place}/") else conversation.id


def _extras(conversation: Conversation) -> Row:
    """The columns that a row of any format may have."""
    row: Row = {}
    if name := own_id(conversation):
        row["id"] = name
    if conversation.weight != 1:
        row["weight"] = conversation.weight
    if conversation.group:
        row["split_group"] = conversation.group
    return row


def _messages(conversation: Conversation) -> Row:
    """Everything: messages as OpenAI writes them; a document as text, ids as ids."""
    if conversation.tokens is not None:
        return _tokens(conversation)
    if not conversation.is_chat:
        return _text(conversation)
    row: Row = {"messages": [_message(message) for message in conversation.messages]}
    return row | ({"tools": list(conversation.tools)} if conversation.tools else {})


def _message(message: Message) -> Row:
    given: Row = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        given["reasoning_content"] = message.reasoning
    if message.tool_calls:
        given["tool_calls"] = list(message.tool_calls)
    for name in ("weight", "name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            given[name] = value
    return given


def _tokens(conversation: Conversation) -> Row:
    if conversation.tokens is None:
        raise CannotHold("a conversation of texts")
    ids, weights = conversation.tokens
    if not set(weights) <= {0.0, 1.0}:
        raise CannotHold("weights of ids other than 0 and 1")
    return {"input_ids": list(ids), "labels": [i if w else -100 for i, w in zip(ids, weights, strict=True)]}


def _text(conversation: Conversation) -> Row:
    if conversation.tokens is not None or conversation.is_chat:
        raise CannotHold("a conversation: a document is one text")
    return {"text": conversation.messages[0].content}


def _sharegpt(conversation: Conversation) -> Row:
    _chat_only(conversation)
    turns: list[Row] = []
    for message in conversation.messages:
        if not message.tool_calls:
            turns.append({"from": _FROM[message.role], "value": message.content})
            continue
        if message.content:
            raise CannotHold("a text and tool calls in one reply")
        functions = [call.get("function") for call in message.tool_calls]
        value = functions[0] if len(functions) == 1 else functions
        turns.append({"from": "function_call", "value": json.dumps(value, ensure_ascii=False)})
    row: Row = {"conversations": turns}
    if conversation.tools:
        row["tools"] = json.dumps(conversation.tools, ensure_ascii=False)
    return row


def _alpaca(conversation: Conversation) -> Row:
    system, turns = _turns(conversation)
    *earlier, (prompt, reply) = turns
    row: Row = {"instruction": prompt, "input": "", "output": reply}
    return row | ({"history": [list(pair) for pair in earlier]} if earlier else {}) | system


def _dolly(conversation: Conversation) -> Row:
    system, prompt, reply = _single(conversation)
    return {"instruction": prompt, "context": "", "response": reply} | system


def _pair(columns: tuple[str, ...]) -> Callable[[Conversation], Row]:
    def write(conversation: Conversation) -> Row:
        system, prompt, reply = _single(conversation)
        return dict(zip(columns, (prompt, reply), strict=True)) | system

    return write


def _single(conversation: Conversation) -> tuple[Row, str, str]:
    system, turns = _turns(conversation)
    if len(turns) > 1:
        raise CannotHold("more than one reply")
    return system, *turns[0]


def _turns(conversation: Conversation) -> tuple[Row, list[tuple[str, str]]]:
    """The system text as a column of its own, and prompts with their replies."""
    _chat_only(conversation)
    messages = list(conversation.messages)
    system: Row = {"system": messages.pop(0).content} if messages[0].role == "system" else {}
    if conversation.tools or any(message.role == "tool" or message.tool_calls for message in messages):
        raise CannotHold("tools")
    if any(message.reasoning is not None for message in messages):
        raise CannotHold("the reasoning")
    if any(message.role != ("user", "assistant")[at % 2] for at, message in enumerate(messages)):
        raise CannotHold("messages that do not alternate between user and assistant")
    texts = [message.content for message in messages]
    return system, list(zip(texts[::2], texts[1::2], strict=True))


def _chat_only(conversation: Conversation) -> None:
    if not conversation.is_chat:
        raise CannotHold("ids" if conversation.tokens is not None else "a document")


WRITERS: dict[str, Callable[[Conversation], Row]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "dolly": _dolly,
    **{name: _pair(columns) for name, columns in PAIRS.items()},
    "text": _text,
    "tokens_labels": _tokens,
}
