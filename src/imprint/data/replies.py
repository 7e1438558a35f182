"""What makes a list of messages a demonstration, and what to do with adjacent replies."""

from __future__ import annotations

import dataclasses

from imprint.data.conversation import Conversation, Message, Place
from imprint.data.faults import bad_row, show
from imprint.errors import DataError


def check(messages: tuple[Message, ...], place: Place) -> None:
    """Raise DataError unless the messages are a demonstration that can be learned from.

    Accepted order: a system message or none, then user, assistant and tool messages in any
    order that ends with a reply. A reply that opens the conversation is context only.
    """
    prompted = answered = False
    for turn, message in enumerate(messages, 1):
        role = message.role
        if role == "assistant":
            if not message.tool_calls and _says_nothing(message.content):
                thought = " beside a reasoning" if message.reasoning else ""
                raise bad_row(
                    "the reply is empty",
                    place,
                    f"message {turn} (assistant): {show(message.content)}{thought}",
                    "a text to learn",
                    "write the reply or remove the row",
                )
            answered = prompted
            continue
        prompted = prompted or role != "system"
        if role == "system":
            if turn > 1:
                raise bad_row(
                    "a system message is not at the front",
                    place,
                    f"message {turn} is a system message",
                    "one system message or none, then user, assistant and tool messages",
                    "move it to the front or remove it",
                )
        elif role == "user" and not message.content.strip():
            raise bad_row(
                "the prompt is empty",
                place,
                f"message {turn} (user): {show(message.content)}",
                "a text to answer",
                "write the prompt or remove the row",
            )
    if not answered or messages[-1].role != "assistant":
        raise _without_reply(messages, place)


def _says_nothing(content: str) -> bool:
    """Whether a reply is empty, or nothing but a thought in tags that is empty."""
    if "</" not in content:
        return not content.strip()
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
