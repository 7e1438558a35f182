"""One conversation's messages, as OpenAI, ShareGPT and Anthropic write them.

{role, content} or {from, value}; the content a text or typed parts; tool results may stand inside user messages.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from imprint.data.calls import tool_calls
from imprint.data.conversation import ROLES, Message, Place
from imprint.data.faults import alike, as_text, bad_row, cut, from_json, listed, show, show_type
from imprint.data.message_keys import (
    MESSAGE_KEYS,
    REASONING_KEYS,
    TEXT_KEYS,
    aside,
    label,
    loss_weight,
    refuse_slips,
    two_thoughts,
    without_thought,
)
from imprint.data.vocabulary import speaks
from imprint.errors import nearest

ALIASES = {role: role for role in ROLES} | {
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool_calls": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "ipython": "tool",
}
CALL_ROLES = {"function_call", "tool_call", "tool_calls"}
PLAIN = {name: role for name, role in ALIASES.items() if name not in CALL_ROLES}
TEXTS = {"text", "input_text", "output_text", "refusal"}  # types of parts that the reader of a chat sees
THOUGHTS = {"reasoning", "thinking"}
CALLS = {"tool_call", "tool_use"}
FAILED = "the mark `is_error` of a tool result is not used: the model sees its text alone"


def parse_messages(values: Any, place: Place, notes: list[str] | None = None) -> tuple[Message, ...]:
    """The messages of a list of {role, content} or {from, value} objects, or of its JSON text.

    `notes` takes what is said of keys that are not used.
    """
    if isinstance(values, str):  # CSV and some Parquet files hold lists as text
        values = from_json(values, "the list of messages", place)
    if not isinstance(values, list):
        raise bad_row(
            "the messages are not a list", place, show(values), "a list of messages", "write [{...}, {...}]"
        )
    messages: list[Message] = []
    for turn, value in enumerate(values, 1):
        if type(value) is dict and len(value) == 2:  # most messages are a role and a text
            given, content = value.get("role"), value.get("content")
            if given is None:
                given, content = value.get("from"), value.get("value")
            if type(given) is str and type(content) is str and (role := PLAIN.get(given)):
                messages.append(Message(role, content))
                continue
        messages += _message(value, place, turn, [] if notes is None else notes)
    return tuple(messages)


def _message(value: Any, place: Place, turn: int, notes: list[str]) -> list[Message]:
    """One message; more where tool results stand inside it."""
    if not isinstance(value, dict):
        raise bad_row(
            "a message is not an object",
            place,
            f"message {turn}: {show(value)}",
            'an object such as {"role": "user", "content": "..."}',
            "write the message with its role",
        )
    given = _given_role(value, place, turn)
    role = _role(given, place, turn)
    content = _said(value, place, turn)
    if role == "assistant" and value.get("refusal"):
        content = _refused(content, value["refusal"], place, turn)
    refuse_slips(value, place, turn)
    notes += [
        f"the key `{key}` of a message is not used" for key in aside(tuple(value)) if speaks(value[key])
    ]
    if role == "user" and isinstance(content, list) and any(map(_is_result, content)):
        return _with_results(content, place, turn, notes)
    calls = tool_calls(value.get("tool_calls"), place, turn)
    if "function_call" in value and value["function_call"] is not None:
        calls += tool_calls([value["function_call"]], place, turn)
    if str(given).strip().lower() in CALL_ROLES:
        calls += tool_calls(from_json(content, "a tool call", place), place, turn)
        content = ""
    parts = _content(content, bool(calls), place, turn)
    beside = next((value[key] for key in REASONING_KEYS if value.get(key)), None)
    if parts.reasoning and isinstance(beside, str) and beside != parts.reasoning:
        raise two_thoughts(f"in parts: {show(parts.reasoning)}; apart: {show(beside)}", place, turn)
    reasoning = parts.reasoning or beside
    if not (reasoning is None or isinstance(reasoning, str)):
        raise bad_row(
            "the reasoning is not a text",
            place,
            f"message {turn}: {show(reasoning)}",
            "a text",
            "write it as one text",
        )
    text = parts.text
    if role == "assistant" and reasoning and "</" in text:
        text = without_thought(text, reasoning, place, turn, notes)
    weight = loss_weight(value, role, place, turn)
    name, call_id = (label(value.get(key), key, place, turn) for key in ("name", "tool_call_id"))
    return [Message(role, text, reasoning, calls + parts.calls, weight, name, call_id)]


def _is_result(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "tool_result"


def _with_results(content: list[Any], place: Place, turn: int, notes: list[str]) -> list[Message]:
    """The user's part-wise message as tool messages and what the user says beside them, in their order."""
    messages: list[Message] = []
    for is_result, parts in itertools.groupby(content, _is_result):
        if is_result:
            for part in parts:
                inner = part.get("content", "")
                text = _content([] if inner is None else inner, False, place, turn).text
                call_id = label(part.get("tool_use_id"), "tool_use_id", place, turn)
                messages.append(Message("tool", text, tool_call_id=call_id))
                if part.get("is_error") is True:
                    notes.append(FAILED)
        else:
            messages.append(Message("user", _content(list(parts), False, place, turn).text))
    return messages


def _said(value: dict[str, Any], place: Place, turn: int) -> Any:
    """The content of a message, under one of its names."""
    said: Any = None
    for key in TEXT_KEYS:
        other = value.get(key)
        if said is None:
            first, said = key, other
        elif isinstance(other, (str, list)) and other != said:
            raise _two_texts(turn, place, first, said, key, other)
    return said


def _refused(content: Any, refusal: Any, place: Place, turn: int) -> Any:
    """OpenAI's `refusal` stands for the content, which is then null or empty."""
    if content is None or content in ("", []) or content == refusal:
        return refusal
    raise _two_texts(turn, place, "content", content, "refusal", refusal)


def _two_texts(turn: int, place: Place, one: str, said: Any, two: str, other: Any) -> Exception:
    return bad_row(
        "two texts for one message",
        place,
        f"message {turn}: {one}: {show(said)}; {two}: {show(other)}",
        f"one of {one} and {two}",
        "keep one of them",
    )


class Parts(NamedTuple):
    """What the `content` of a message holds."""

    text: str
    reasoning: str | None = None
    calls: tuple[dict[str, Any], ...] = ()


def _content(content: Any, has_calls: bool, place: Place, turn: int) -> Parts:
    """Of a text, or of a list of parts: {type, text} (OpenAI) or {type, value}."""
    if isinstance(content, str):
        return Parts(content)
    if content is None and has_calls:
        return Parts("")
    if content is None:
        raise bad_row(
            "a message has no content",
            place,
            f"message {turn}: content is null or missing",
            "a text",
            "give it a text or remove the message",
        )
    if not isinstance(content, list):
        raise bad_row(
            "the content of a message is not a text",
            place,
            f"message {turn}: {show_type(content)}",
            "a text, or a list of text parts",
            as_text(content, "write it as a text, in double quotes"),
        )
    texts: list[str] = []
    thoughts: list[str] = []
    calls: tuple[dict[str, Any], ...] = ()
    for part in content:
        kind, inner = _part(part)
        if (kind in TEXTS and calls) or (kind in THOUGHTS and (texts or calls)):
            raise bad_row(
                "the parts of a message are out of order",
                place,
                f"message {turn}: {kind} after {'a tool call' if calls else 'the text'}",
                "thought, text, tool calls: the order in which a model produces them",
                "split the message in two, or reorder its parts",
            )
        if kind in CALLS:
            calls += tool_calls(from_json(inner, "a tool call", place), place, turn)
        elif kind in THOUGHTS and isinstance(inner, str):
            thoughts.append(inner)
        elif (kind in TEXTS or kind == "tool_result") and isinstance(inner, str):
            texts.append(inner)
        else:
            raise bad_row(
                "a part of a message is not a text",
                place,
                f"message {turn}: {show(part)}",
                'parts {"type": "text", "text": "..."}; imprint trains on text',
                "remove the part or leave the row out",
            )
    return Parts("".join(texts), "".join(thoughts) or None, calls)


def _part(part: Any) -> tuple[str, Any]:
    """The type of a part and what it holds: under its type's name, `text`, `value` or `content`."""
    if not isinstance(part, dict):
        return "text", part
    kind = part.get("type", "text")
    if not isinstance(kind, str):
        return "", part
    if kind == "tool_use":
        function = {"name": part.get("name"), "arguments": part.get("input")}
        call = {"type": "function", "function": function}
        return kind, {"id": part["id"], **call} if part.get("id") else call
    return kind, next((part[key] for key in (kind, "text", "value", "content") if key in part), None)


def _role(given: Any, place: Place, turn: int) -> str:
    role = ALIASES.get(given) if isinstance(given, str) else None
    if role is None and isinstance(given, str):
        role = ALIASES.get(given.strip().lower())
    if role is None:
        like = nearest(given, ALIASES) if isinstance(given, str) else None
        raise bad_row(
            "unknown role",
            place,
            f"message {turn}: {show(given)}",
            f"{', '.join(ROLES)} (also {', '.join(name for name in ALIASES if name not in ROLES)})",
            f'write "{like}"' if like else "write one of these roles",
        )
    return role


def _given_role(value: dict[str, Any], place: Place, turn: int) -> Any:
    """What a message says of its role, under either of its names."""
    role, other = value.get("role"), value.get("from")
    if isinstance(role, str) and isinstance(other, str):
        one, two = (ALIASES.get(name.strip().lower()) for name in (role, other))
        if one and two and one != two:
            raise bad_row(
                "two roles for one message",
                place,
                f"message {turn}: role: {show(role)}; from: {show(other)}",
                "one of role and from",
                "keep one of them",
            )
    if "role" in value or "from" in value:
        return other if role is None else role
    pairs = [(key, like) for key in value if (like := alike(key, MESSAGE_KEYS))]
    raise bad_row(
        "a message has no role",
        place,
        f"message {turn} has keys {listed(value) or 'none'}",
        '"role" and "content", or "from" and "value"',
        "; ".join(f"rename {cut(key)} to {like}" for key, like in pairs if key != like) or "add its role",
    )
