"""What a server does with a conversation, by transformers alone: prompts, renderings, ids and texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import jinja2

from imprint.data.conversation import Conversation, Message
from imprint.render.resolve import Rendering
from render.oracle import as_openai, openai_tools


@dataclass(frozen=True)
class Asked:
    """What a server has when it asks for a reply, and the rendering that ends with the reply."""

    ids: list[int]
    prompt: str
    full: str


def ask(conversation: Conversation, reply: int, made: Rendering, bare_history: bool = False) -> Asked:
    """The prompt for a message and the rendering with it; `bare_history`: without thoughts and texts beside calls."""
    form = made.template.form
    inputs = made.template.inputs(conversation.messages)
    messages = as_openai(conversation.messages, form.parts, form.text_arguments, inputs)[: reply + 1]
    if bare_history:
        for message in messages[:-1]:
            message.pop("reasoning_content", None)
            message.pop("thinking", None)
            message |= {"content": ""} if message.get("tool_calls") else {}
    template = made.template.for_tools(conversation.tools)
    given: dict[str, Any] = {
        **template.options,
        "chat_template": template.source,
        "tools": openai_tools(conversation.tools) or None,
    }
    apply = made.encoder.tokenizer.apply_chat_template
    ids = apply(messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False, **given)
    prompt = apply(messages[:-1], add_generation_prompt=True, tokenize=False, **given)
    return Asked(list(ids), prompt, apply(messages, tokenize=False, **given))


def ids_of(text: str, made: Rendering) -> list[int]:
    return list(made.encoder.tokenizer(text, add_special_tokens=False)["input_ids"])


def decode(ids: Iterable[int], made: Rendering) -> str:
    given = [int(i) for i in ids]
    return str(
        made.encoder.tokenizer.decode(given, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def text_of(ids: Iterable[int], made: Rendering) -> str:
    """What ids read as behind a letter: up front some tokenizers drop a space."""
    return decode([*ids_of("a", made), *ids], made)[1:]


def bare(text: str) -> str:
    """The text without white space, which templates and decoders may set otherwise."""
    return "".join(unicodedata.normalize("NFC", text).replace("▁", " ").split())


def tail_of(conversation: Conversation, made: Rendering) -> str:
    """What the template writes behind the text of a last reply, by transformers."""
    probe = replace(
        conversation, messages=(Message("user", "Zq question"), Message("assistant", "Zq answer"))
    )
    try:
        full = ask(probe, 1, made).full
    except jinja2.TemplateError:  # some are made for conversations with tools alone
        full = ask(replace(probe, tools=(_TOOL,)), 1, made).full
    return full.rpartition("Zq answer")[2]


_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "F.",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
