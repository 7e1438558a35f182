"""Whether a rendering holds what the row says: a template may swallow a thought, a call, a message, in silence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from imprint.data.conversation import Conversation, Message
from imprint.render.form import arguments_of
from imprint.render.template import Template

_ESCAPE = re.compile(r"&(?:#34|#39|quot|lt|gt|amp);")


class Fault(NamedTuple):
    """What a template leaves out or changes: a short, stable reason, and what was seen."""

    reason: str
    detail: str


def reply_fault(completion: str, message: Message) -> Fault | None:
    """What of the reply `message` is not in its completion, if anything."""
    reasoning, answer = message.thought
    if answer.strip() not in completion:
        return Fault("the template changes the reply's text", f"{completion[-80:]!r}")
    # before the answer: the answer may hold the words of the thought ("4", "Yes")
    thought = completion.rpartition(answer.strip())[0] if answer.strip() else completion
    if reasoning and reasoning.strip() not in thought:
        return Fault("the template drops the reply's reasoning", f"{completion[:80]!r}")
    names = [call.get("function", call).get("name", "") for call in message.tool_calls]
    if message.tool_calls and has_escapes(completion) and not has_escapes(f"{message}"):
        return Fault("the template writes HTML escapes into the reply", f"{completion[-80:]!r}")
    for call in message.tool_calls:
        function = call.get("function", call)
        name = function.get("name", "")
        if completion.count(name) < names.count(name):  # Harmony renders the first of several calls
            return Fault("the template drops the reply's tool calls", f"{name!r}: {completion[-80:]!r}")
        for text in _leaves(arguments_of(function)):
            if not _holds(completion, text):
                detail = f"{name}: {text[:60]!r} is not in {completion[-80:]!r}"
                return Fault("the template changes the arguments of a tool call", detail)
    return None


def has_escapes(text: str) -> bool:
    """Whether there are HTML escapes in a text: Jinja makes them of quotes where a template marks text as safe."""
    return "&" in text and _ESCAPE.search(text) is not None


def context_fault(
    prompt: str, conversation: Conversation, since: int, until: int, template: Template
) -> Fault | None:
    """What of the messages `since` to `until`, and of the tools, is not in the prompt, if anything.

    Earlier replies are not asked for: many templates drop their thoughts, and mean to.
    """
    if since == 0 and conversation.tools:
        names = [str(tool.get("function", tool).get("name", "")) for tool in conversation.tools]
        missing = next((name for name in names if name not in prompt), None)
        if missing is not None or not template.offers_tools:
            detail = f"{missing or names[0]!r} is not on offer in the prompt"
            return Fault("the template has no place for tools", detail)
    for index in range(since, until):
        message = conversation.messages[index]
        if message.role != "assistant" and not _holds(prompt, message.content.strip()):
            detail = f"message {index + 1} ({message.role}): {message.content.strip()[:60]!r}"
            return Fault(f"the template drops or changes a {message.role} message", detail)
    return None


def _holds(text: str, part: str) -> bool:
    """Whether `part` stands in `text`: as it is, escaped in JSON, or, as JSON itself, written anew."""
    if part in text:
        return True
    if json.dumps(part, ensure_ascii=False)[1:-1] in text or json.dumps(part)[1:-1] in text:
        return True
    if repr(part)[1:-1] in text:
        return True
    return part[:1] in "{[" and _bare(part) in _bare(text)


def _bare(text: str) -> str:
    """JSON text without what may differ between two ways to write it: white space, quotes, escapes."""
    return "".join(char for char in text if not char.isspace() and char not in "\"'\\")


def _leaves(value: Any) -> Iterator[str]:
    """The keys, texts and whole numbers in a call's arguments; other values are written in too many ways."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _leaves(item)
