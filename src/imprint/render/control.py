"""Control tokens that stand in the data's own text: `<|im_start|>` typed by a user, or `<s>` from a web page.

A tokenizer makes control tokens of them, in training as on a server: text that forges the end of a
message, or another one's role.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from imprint.data.conversation import Conversation, Message
from imprint.render.form import arguments_of
from imprint.render.tokens import Encoder


class Forged(NamedTuple):
    """A control token in the text of a message; message -1 stands for the list of tools."""

    message: int
    role: str
    token: str

    def __str__(self) -> str:
        where = "the tools" if self.message < 0 else f"message {self.message + 1} ({self.role})"
        return f"{self.token} in {where}"


def find_control(conversation: Conversation, encoder: Encoder) -> Forged | None:
    """The first control token that the data itself brings, if any."""
    search = encoder.find_control
    for text in _strings(conversation.tools) if conversation.tools else ():
        if found := search(text):
            return Forged(-1, "", found.group())
    for index, message in enumerate(conversation.messages):
        for text in _texts(message):
            if found := search(text):
                return Forged(index, message.role, found.group())
    return None


def escape_control(conversation: Conversation, encoder: Encoder) -> Conversation:
    """The same conversation, each control token with a space behind its first character.

    That is seen by a reader, reads the same, and is ordinary text to every tokenizer.
    """

    def escaped(text: str) -> str:
        while encoder.find_control(text):  # one may stand inside another: <<s>s>
            text = text if encoder.control.search(text) else encoder.normalised(text)
            text = encoder.control.sub(lambda found: f"{found.group()[0]} {found.group()[1:]}", text)
        return text

    messages = tuple(_escaped_message(message, escaped) for message in conversation.messages)
    return dataclasses.replace(conversation, messages=messages, tools=_map(conversation.tools, escaped))


def _texts(message: Message) -> Iterator[str]:
    yield message.content
    if message.reasoning:
        yield message.reasoning
    if message.name:
        yield message.name
    if message.tool_calls:
        yield from _strings(tuple(map(_parsed, message.tool_calls)))


def _parsed(call: dict[str, Any]) -> dict[str, Any]:
    """A call with its arguments as an object: in JSON text, a control token may be spelt in escapes."""
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    return {**call, "function": {**function, "arguments": arguments_of(function)}}


def _escaped_message(message: Message, escaped: Callable[[str], str]) -> Message:
    return dataclasses.replace(
        message,
        content=escaped(message.content),
        reasoning=_map(message.reasoning, escaped),
        name=_map(message.name, escaped),
        tool_calls=tuple(_map(_parsed(call), escaped) for call in message.tool_calls),
    )


def _strings(value: Any) -> Iterator[str]:
    """Every text in a JSON-like value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _map(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON-like value with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map(key, change): _map(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(item, change) for item in value)
    return value
