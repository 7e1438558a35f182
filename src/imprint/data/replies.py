"""What makes a list of messages a demonstration, and what to do with adjacent replies."""

from __future__ import annotations

import dataclasses
import re

from imprint.data.conversation import Conversation, Message, Place
from imprint.data.faults import bad_row, listed, show
from imprint.errors import DataError

UNCLOSED = "a thought in a reply is opened and never closed: <think> without </think>"
UNOPENED = "a thought in a reply is closed and was never opened: </think> without <think>"
PICTURE = "a mark such as <image> stands in a prompt: imprint trains on text, the picture is not there"

_OPENS = re.compile(r"\s*<(think|thinking|thought|reasoning)>")
_CLOSES = re.compile(r"</(think|thinking|thought|reasoning)>")
_MARKS = ("image", "video", "audio")


def check(messages: tuple[Message, ...], place: Place) -> list[str]:
    """What is odd in a demonstration and may yet be meant; DataError where nothing can be learned from it.

    Accepted order: a system message or none, then user, assistant and tool messages in any
    order that ends with a reply. A reply that opens the conversation is context only. A tool result
    that names a call answers an earlier one, where the calls have ids.
    """
    prompted = answered = False
    odd: list[str] = []
    waiting: set[str] | None = None  # ids of calls without a result; None until a call has one
    for turn, message in enumerate(messages, 1):
        role, content = message.role, message.content
        if role == "assistant":
            tagged = "<" in content
            if tagged and message.weight != 0:
                odd += _odd_thought(content)
            nothing = _says_nothing(content) if tagged else not content or content.isspace()
            if nothing and not message.tool_calls:
                raise _empty(message, turn, place)
            answered = prompted
            if message.tool_calls:
                waiting = _called(message, waiting)
        elif role == "user":
            prompted = True
            if "<" in content:
                odd += _odd_prompt(content)
            if not content or content.isspace():
                raise _empty(message, turn, place)
        elif role == "tool":
            prompted = True
            if waiting is not None and message.tool_call_id is not None:
                if message.tool_call_id not in waiting:
                    raise _no_call(message, turn, waiting, place)
                waiting.discard(message.tool_call_id)
        elif role == "system" and turn > 1:
            raise bad_row(
                "a system message is not at the front",
                place,
                f"message {turn} is a system message",
                "one system message or none, then user, assistant and tool messages",
                "move it to the front or remove it",
            )
    if not answered or messages[-1].role != "assistant":
        raise _without_reply(messages, place)
    return odd


def _empty(message: Message, turn: int, place: Place) -> DataError:
    reply = message.role == "assistant"
    thought = " beside a reasoning" if reply and message.reasoning else ""
    return bad_row(
        "the reply is empty" if reply else "the prompt is empty",
        place,
        f"message {turn} ({message.role}): {show(message.content)}{thought}",
        "a text to learn" if reply else "a text to answer",
        f"write the {'reply' if reply else 'prompt'} or remove the row",
    )


def _odd_thought(content: str) -> list[str]:
    """What is wrong with the tags of a thought in a reply: at its head, and wherever one is closed."""
    opened = _OPENS.match(content)
    if opened:
        return [] if f"</{opened[1]}>" in content else [UNCLOSED]
    closed = _CLOSES.search(content) if "</" in content else None
    return [UNOPENED] if closed and f"<{closed[1]}>" not in content[: closed.start()] else []


def _odd_prompt(content: str) -> list[str]:
    """Whether a prompt has the mark of a picture: <image> anywhere, the others at its head or end, as HTML has them."""
    for name in _MARKS:
        mark = f"<{name}>"
        if mark not in content or f"</{name}>" in content:
            continue
        if name == "image" or content.lstrip().startswith(mark) or content.rstrip().endswith(mark):
            return [PICTURE]
    return []


def _called(message: Message, waiting: set[str] | None) -> set[str] | None:
    """The ids that wait for a result, with those of a message's calls."""
    ids = {str(call["id"]) for call in message.tool_calls if call.get("id") not in (None, "")}
    return (waiting or set()) | ids if ids else waiting


def _no_call(message: Message, turn: int, waiting: set[str], place: Place) -> DataError:
    return bad_row(
        "a tool result answers no call",
        place,
        f"message {turn} (tool): tool_call_id: {show(message.tool_call_id)}; "
        f"calls without a result: {listed(sorted(waiting)) or 'none'}",
        "the id of an earlier call that has no result yet",
        "mend the id, or remove it",
    )


def _says_nothing(content: str) -> bool:
    """Whether a reply is empty, or nothing but a thought in tags that is empty."""
    reasoning, answer = Message("assistant", content).thought
    return reasoning is None and not answer.strip()


def _without_reply(messages: tuple[Message, ...], place: Place) -> DataError:
    roles = [message.role for message in messages]
    if not roles:
        return bad_row(
            "the list of messages is empty", place, "[]", "a user message and a reply", "remove the row"
        )
    if "assistant" not in roles:
        return bad_row(
            "there is no reply",
            place,
            f"{len(roles)} messages: {', '.join(roles[:6])}",
            "at least one assistant message",
            "add the reply or remove the row",
        )
    if roles[-1] != "assistant":
        end = "the user" if roles[-1] == "user" else f"a {roles[-1]} message"
        return bad_row(
            f"the conversation ends with {end}",
            place,
            f"message {len(roles)} ({roles[-1]}): {show(messages[-1].content)}",
            "an assistant message at the end",
            "add the reply, or remove what follows the last one",
        )
    return bad_row(
        "no reply follows a prompt",
        place,
        f"{len(roles)} messages: {', '.join(roles[:6])}",
        "a user message before the reply",
        "add the prompt or remove the row",
    )


def merge_replies(conversation: Conversation) -> Conversation | str:
    """The conversation with adjacent replies joined by a blank line, or the reason why it cannot be.

    Without adjacent replies it is returned as it is.
    """
    messages = conversation.messages
    if not has_adjacent_replies(conversation):
        return conversation
    merged = [messages[0]]
    for message in messages[1:]:
        if message.role == merged[-1].role == "assistant":
            joined = _joined(merged[-1], message)
            if isinstance(joined, str):
                return joined
            merged[-1] = joined
        else:
            merged.append(message)
    return dataclasses.replace(conversation, messages=tuple(merged))


def has_adjacent_replies(conversation: Conversation) -> bool:
    """Whether an assistant message follows another."""
    previous = ""
    for message in conversation.messages:
        if message.role == "assistant" == previous:
            return True
        previous = message.role
    return False


def _joined(first: Message, second: Message) -> Message | str:
    """Two adjacent replies as one. What a model produces comes in the order thought, text, calls."""
    weights = [1.0 if message.weight is None else message.weight for message in (first, second)]
    if weights[0] != weights[1]:
        return "adjacent replies have different weights"
    if first.tool_calls and (second.content.strip() or not second.tool_calls):
        return "a reply follows a tool call that has no result"
    if second.reasoning:
        return "the second of two adjacent replies has its own reasoning"
    if first.name != second.name:
        return "adjacent replies have different names"
    content = "\n\n".join(message.content for message in (first, second) if message.content.strip())
    return dataclasses.replace(first, content=content, tool_calls=first.tool_calls + second.tool_calls)
