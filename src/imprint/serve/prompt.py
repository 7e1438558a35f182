"""From a request to the ids that a model is fed: rendered and encoded as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imprint.data.conversation import Conversation, Place
from imprint.data.messages import parse_messages
from imprint.errors import DataError
from imprint.render.control import escape_control, find_control
from imprint.render.split import find_thought
from imprint.render.template import Refused, Template
from imprint.serve.hosted import Hosted
from imprint.serve.problems import Problem
from imprint.serve.schema import ChatMessage

_PLACE = Place("the request", 1)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation as the model gets it. `within`: the closing mark of a thought that it leaves open."""

    ids: list[int]
    text: str
    template: Template
    within: str = ""
    continued: bool = False


def chat_prompt(
    served: Hosted,
    checked: Sequence[ChatMessage],
    sent: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    options: Mapping[str, Any] | None = None,
    *,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool | None = None,
) -> ChatPrompt:
    """The prompt for the reply to these messages; `sent` are they as they came, whose order of keys is kept.

    Problem where the template refuses them, in its own words.
    """
    _check(checked)
    try:
        messages = parse_messages([_spoken(message) for message in sent], _PLACE)
    except DataError as error:
        raise Problem(f"{error.what}: {error.found}; expected {error.expected}", param="messages") from error
    conversation = Conversation(messages, _PLACE, tools=tuple(dict(tool) for tool in tools))
    conversation = _without_control(conversation, served)
    template = served.template(options, tools)
    if tools and not template.offers_tools:
        raise Problem("the chat template of this model has no place for tools", param="tools")
    if continue_final_message:
        text = _continued(template, conversation, add_generation_prompt)
    else:
        text = _rendered(template, conversation, add_generation_prompt is not False)
    ids = [int(i) for i in served.rendering.encoder.encode([text])[0]]
    if not ids:
        raise Problem("the chat template makes an empty prompt of these messages", param="messages")
    asked = not continue_final_message and add_generation_prompt is not False
    thought = find_thought(text) if asked else None
    within = thought.closing if thought and not thought.closed else ""
    return ChatPrompt(ids, text, template, within, bool(continue_final_message))


def _check(messages: Sequence[ChatMessage]) -> None:
    """Problem for what a message of this role cannot say."""
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        for key in ("tool_calls", "reasoning_content"):
            if getattr(message, key) and message.role != "assistant":
                raise Problem(f"`{place}`: only an assistant has {key}", param=f"{place}.{key}")
        if message.tool_call_id is not None and message.role != "tool":
            raise Problem(f"`{place}`: only a tool has tool_call_id", param=f"{place}.tool_call_id")
        if message.content is None and not (message.role == "assistant" and message.tool_calls):
            raise Problem(f"`{place}` has no content", param=f"{place}.content")


def _spoken(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message without nulls, and without the empty lists that reply objects hold."""
    return {
        key: value
        for key, value in message.items()
        if value is not None and not (key == "tool_calls" and not value)
    }


def _without_control(conversation: Conversation, served: Hosted) -> Conversation:
    if served.control_tokens == "keep":
        return conversation
    forged = find_control(conversation, served.rendering.encoder)
    if forged is None:
        return conversation
    if served.control_tokens == "escape":
        return escape_control(conversation, served.rendering.encoder)
    raise Problem(
        f"a control token of the model in the text: {forged}; it would be read as such, not as text "
        "(the server's --control-tokens decides)",
        param="tools" if forged.message < 0 else f"messages[{forged.message}].content",
        code="control_token",
    )


def _rendered(template: Template, conversation: Conversation, ask: bool) -> str:
    inputs = template.inputs(conversation.messages)
    try:
        return template.render(inputs, conversation.tools, add_generation_prompt=ask)
    except Refused as error:
        raise Problem(
            ": ".join(str(part) for part in error.args if part),
            param="messages",
            code="template_refused",
        ) from error


def _continued(template: Template, conversation: Conversation, ask: bool | None) -> str:
    """The rendering cut behind the last message's text, for the model to go on with it."""
    if ask:
        raise Problem(
            "a reply cannot both begin and go on: one of add_generation_prompt and continue_final_message",
            param="continue_final_message",
        )
    last = conversation.messages[-1]
    if last.role != "assistant" or last.tool_calls or not last.content.strip():
        raise Problem(
            "continue_final_message needs an assistant's text as the last message",
            param="continue_final_message",
        )
    text = _rendered(template, conversation, False)
    # the text as it stands, or as the template strips it
    for said in (last.content, last.content.rstrip(), last.content.strip()):
        at = text.rfind(said)
        if at >= 0:
            return text[: at + len(said)]
    raise Problem(
        "the chat template changes the last message's text: it cannot be continued",
        param="continue_final_message",
    )


def text_prompt(served: Hosted, prompt: str, add_special_tokens: bool | None) -> list[int]:
    """The ids of a text to continue: with what the tokenizer puts before a text, unless it stands there already."""
    encoder = served.rendering.encoder
    ids = encoder.encode([prompt])[0]
    start = encoder.text_start
    if add_special_tokens is not False and not np.array_equal(ids[: len(start)], start):
        ids = np.concatenate((start, ids))
    return [int(i) for i in ids]


def check_ids(served: Hosted, ids: Sequence[int], param: str) -> list[int]:
    """Problem for an id that the model does not have, and for an empty prompt."""
    most = served.rendering.encoder.num_tokens
    wrong = next((i for i in ids if i >= most), None)
    if wrong is not None:
        raise Problem(f"`{param}`: there is no token {wrong}; the last one is {most - 1}", param=param)
    if not ids:
        raise Problem(f"`{param}` is empty: a model needs at least one token", param=param)
    return list(ids)


def room_for(context: int | None, prompt: int, asked: int | None, default: int, param: str) -> int:
    """How many tokens the reply may have; Problem where prompt and reply do not fit into the model's context."""
    if context is None:
        return default if asked is None else asked
    room = context - prompt
    if room < (1 if asked is None else asked):
        wanted = f" and {asked:,} of the reply" if asked else ""
        raise Problem(
            f"this model's context is {context:,} tokens; the prompt has {prompt:,}{wanted}",
            param=param,
            code="context_length_exceeded",
        )
    return min(room, default) if asked is None else asked
