"""What a template writes that nobody wrote: default system prompts, dates, instructions for tools."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from imprint.data.conversation import Conversation
from imprint.render.spans import TEMPLATE, attribute
from imprint.render.template import Refused, Template
from imprint.render.tokens import Encoder

_LOOKED_AT = 2000  # conversations, to find one of each kind
_ROLE = re.compile(r"(system|developer|user|assistant|model)\s*[:\n]\s*")  # in front of a message's text
_FEWEST_WORDS = 4  # shorter texts are marks: `### Instruction:`
_SHOWN = 160  # characters


class _Kind(NamedTuple):
    """What decides which texts a template adds."""

    system: bool
    tools: bool
    reasoning: bool


class Inserted(NamedTuple):
    """A text that stands in prompts and in no row, its length in tokens, and where it stands."""

    text: str
    tokens: int
    where: str

    def __str__(self) -> str:
        text = " ".join(self.text.split())
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        count = "1 token" if self.tokens == 1 else f"{self.tokens:,} tokens"
        return f"the template adds {count} {self.where}: {shown!r}"


def inserted_texts(
    conversations: Iterable[Conversation], template: Template, encoder: Encoder
) -> list[Inserted]:
    """The texts that the template adds to the prompts of these conversations, each once.

    One conversation of each kind is asked: with and without a system message, tools, reasoning.
    """
    seen: dict[str, set[_Kind]] = {}
    kinds: dict[_Kind, Conversation] = {}
    chats = (conversation for conversation in conversations if conversation.is_chat)
    for conversation in islice(chats, _LOOKED_AT):
        kinds.setdefault(_kind(conversation), conversation)
    for kind, conversation in kinds.items():
        for text in _added(conversation, template, encoder):
            seen.setdefault(text, set()).add(kind)
    lengths = encoder.encode(list(seen))
    return [
        Inserted(text, len(ids), _where(found, set(kinds)))
        for (text, found), ids in zip(seen.items(), lengths, strict=True)
    ]


def _kind(conversation: Conversation) -> _Kind:
    messages = conversation.messages
    reasoning = any(m.thought[0] for m in messages if m.role == "assistant")
    return _Kind(messages[0].role == "system", bool(conversation.tools), reasoning)


def _where(found: set[_Kind], all_kinds: set[_Kind]) -> str:
    if found == all_kinds:
        return "to every prompt"
    for name, plain, without in (
        ("system", "that has a system message", "that has no system message"),
        ("tools", "that has tools", "that has no tools"),
        ("reasoning", "with reasoning", "without reasoning"),
    ):
        if found == {kind for kind in all_kinds if getattr(kind, name)}:
            return f"to every prompt {plain}"
        if found == {kind for kind in all_kinds if not getattr(kind, name)}:
            return f"to every prompt {without}"
    if found == {kind for kind in all_kinds if not kind.system and not kind.tools}:
        return "to every prompt that has neither a system message nor tools"
    return "to some prompts"


def _added(conversation: Conversation, template: Template, encoder: Encoder) -> Iterator[str]:
    """The template's own texts in the prompt of a conversation's first reply, without its marks."""
    template = template.for_tools(conversation.tools)
    first = next((i for i, m in enumerate(conversation.messages) if m.role == "assistant" and i > 0), None)
    messages = conversation.messages[:first]
    try:
        prompt = template.render(template.inputs(messages), conversation.tools, add_generation_prompt=True)
    except Refused:
        return
    for span in attribute(prompt, messages, conversation.tools):
        if span.role != TEMPLATE:
            continue
        for text in encoder.pattern.split(prompt[span.start : span.end]):
            text = _ROLE.sub("", text.strip())
            if len(text.split()) >= _FEWEST_WORDS:
                yield text
