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
_SHORT = 8  # characters; shorter texts stand inside many words
_TELLING = 8  # characters of a message's text by which it is known again inside a reply


class Fault(NamedTuple):
    """What a template leaves out or changes: a short, stable reason, and what was seen."""

    reason: str
    detail: str


def reply_fault(body: str, message: Message, opening: str | None = None) -> Fault | None:
    """What of the reply `message` is not in its completion, or is there beside it, if anything.

    `body` is the completion before its stop; `opening` is what the template writes between a prompt
    and a plain reply, where that is known.
    """
    reasoning, answer = message.thought
    if answer.strip() not in body:
        return Fault("the template changes the reply's text", f"{body[-80:]!r}")
    # before the answer: the answer may hold the words of the thought ("4", "Yes")
    thought = body.rpartition(answer.strip())[0] if answer.strip() else body
    if reasoning and reasoning.strip() not in thought:
        return Fault("the template drops the reply's reasoning", f"{body[:80]!r}")
    if message.tool_calls:
        return _call_fault(_own_words(body, message), message)
    if opening is not None and not reasoning:
        own = message.content.removesuffix(answer)  # an empty thought in tags
        said = _squeezed(body)
        if said not in {_squeezed(head + answer) for head in ("", own, opening, opening + own)}:
            return Fault("the template writes more than the reply", f"{body[:40]!r} … {body[-40:]!r}")
    return None


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _own_words(body: str, message: Message) -> str:
    """A completion without the reasoning and the text of its message."""
    reasoning, answer = message.thought
    head, _, tail = body.rpartition(answer.strip()) if answer.strip() else ("", "", body)
    text = f"{head}\n{tail}"
    return text.replace(reasoning.strip(), " ", 1) if reasoning else text


def _call_fault(text: str, message: Message) -> Fault | None:
    """What of the calls is not in `text`: each by its name, as often as it is called, and by its arguments."""
    if has_escapes(text) and not has_escapes(f"{message}"):
        return Fault("the template writes HTML escapes into the reply", f"{text[-80:]!r}")
    functions = [call.get("function", call) for call in message.tool_calls]
    names = [function.get("name", "") for function in functions]
    said = json.dumps([function.get("arguments") for function in functions], default=str)
    for name in dict.fromkeys(names):
        # Harmony renders the first of several calls; an argument may hold a name, too
        if _count(text, name) < names.count(name) + _count(said, name):
            return Fault("the template drops the reply's tool calls", f"{name!r}: {text[-80:]!r}")
    for function in functions:
        given = function.get("arguments")
        if isinstance(given, str) and given.strip() in text:  # as it stands, however its numbers are written
            continue
        for ways in _leaves(arguments_of(function)):
            if not any(_holds(text, way) for way in ways):
                detail = f"{function.get('name')}: {ways[0][:60]!r} is not in {text[-80:]!r}"
                return Fault("the template changes the arguments of a tool call", detail)
    return None


def has_escapes(text: str) -> bool:
    """Whether there are HTML escapes in a text: Jinja makes them of quotes where a template marks text as safe."""
    return "&" in text and _ESCAPE.search(text) is not None


def repeated_fault(body: str, conversation: Conversation, reply: int) -> Fault | None:
    """A text of a user, a system or a tool that the template repeats inside the reply, where it would be trained.

    What the row itself says in the reply or in its calls does not count.
    """
    message = conversation.messages[reply]
    rest = _own_words(body, message)
    for call in message.tool_calls:
        for ways in _leaves(arguments_of(call.get("function", call))):
            for way in ways:
                rest = rest.replace(way, " ")
    for index, earlier in enumerate(conversation.messages[:reply]):
        said = earlier.content.strip()
        telling = len(said) >= _TELLING and len(said.split()) > 1  # one word may be a mark's, or a name
        if earlier.role != "assistant" and telling and said in rest:
            detail = f"message {index + 1} ({earlier.role}) in {body[-80:]!r}"
            return Fault(f"the template repeats a {earlier.role} message inside the reply", detail)
    return None


def context_fault(
    prompt: str, conversation: Conversation, since: int, until: int, template: Template
) -> Fault | None:
    """What of the messages up to `until`, and of the tools, is not in the prompt, if anything.

    Tools and calls are asked for once: `since` is the first message that was not looked at before.
    Of earlier replies only the calls are asked for: many templates drop their thoughts, and mean to.
    """
    if since == 0 and conversation.tools:
        names = [str(tool.get("function", tool).get("name", "")) for tool in conversation.tools]
        missing = next((name for name in names if name not in prompt), None)
        if missing is not None or not template.offers_tools:
            detail = f"{missing or names[0]!r} is not on offer in the prompt"
            return Fault("the template has no place for tools", detail)
    at = 0  # behind the user's or the tool's message before: what is said comes in its order
    for index, message in enumerate(conversation.messages[:until]):
        if message.role in ("user", "tool"):
            found = _find(prompt, message.content.strip(), at)
            at = found if found is not None else at
        elif message.role == "system":
            found = _find(prompt, message.content.strip(), 0)
        else:
            missing = _missing_call(prompt, message) if index >= since else None
            if missing is not None:
                return Fault("the template drops an earlier tool call", f"{missing!r}, message {index + 1}")
            continue
        if found is None:
            detail = f"message {index + 1} ({message.role}): {message.content.strip()[:60]!r}"
            return Fault(f"the template drops or changes a {message.role} message", detail)
    return None


def _missing_call(prompt: str, message: Message) -> str | None:
    """The name of a call of this message that the prompt does not hold."""
    names = (str(call.get("function", call).get("name", "")) for call in message.tool_calls)
    return next((name for name in names if not _count(prompt, name)), None)


def _find(text: str, part: str, start: int) -> int | None:
    """Where `part` ends in `text`, from `start` on, in whichever way it is written; None where it is not."""
    if 0 < len(part) < _SHORT:  # not inside a word: `is` stands in every `assistant`
        edges = rf"(?<!\w){re.escape(part)}|{re.escape(part)}(?!\w)"
        found = re.compile(edges).search(text, start)
        at = found.start() if found else -1
    else:
        at = text.find(part, start)
    if at >= 0:
        return at + len(part)
    for way in _escaped(part):
        at = text.find(way, start)
        if at >= 0:
            return at + len(way)
    return start if _holds_rewritten(text, part) else None


def _count(text: str, part: str) -> int:
    """How often `part` stands in `text`, not inside longer words."""
    if not part:
        return len(text)
    before = r"(?<!\w)" if part[0].isalnum() else ""
    behind = r"(?!\w)" if part[-1].isalnum() else ""
    return len(re.findall(f"{before}{re.escape(part)}{behind}", text))


def _holds(text: str, part: str) -> bool:
    """Whether `part` stands in `text`: as it is, escaped in JSON, or, as JSON itself, written anew."""
    return part in text or any(way in text for way in _escaped(part)) or _holds_rewritten(text, part)


def _escaped(part: str) -> set[str]:
    """Other ways to write a text inside quotes."""
    ways = {json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1], repr(part)[1:-1]}
    return ways - {part}


def _holds_rewritten(text: str, part: str) -> bool:
    return part[:1] in ("{", "[") and _bare(part) in _bare(text)


def _bare(text: str) -> str:
    """JSON text without what may differ between two ways to write it: white space, quotes, escapes."""
    return "".join(char for char in text if not char.isspace() and char not in "\"'\\")


def _leaves(value: Any) -> Iterator[tuple[str, ...]]:
    """The keys and the values in a call's arguments, each in the ways in which it may be written."""
    if isinstance(value, str):
        yield (value.strip(),)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield (str(key),)
            yield from _leaves(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _leaves(item)
    elif value is None:
        yield "null", "None", "none"
    elif isinstance(value, bool):
        yield ("true", "True") if value else ("false", "False")
    elif isinstance(value, float):
        yield json.dumps(value), f"{value:g}", f"{value:f}"
    else:
        yield (str(value),)
