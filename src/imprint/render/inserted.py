"""What a template writes that nobody wrote: default system prompts, dates, instructions for tools.

The template itself is asked: it renders conversations of the data's kinds in which every text is a
sentinel. What is no sentinel then, and no mark around one, is its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from imprint.data.conversation import Conversation, Message
from imprint.render.template import Refused, Template
from imprint.render.tokens import Encoder
from imprint.render.wording import marks_of, own_texts

_LOOKED_AT = 2000  # conversations, to find one of each kind
_SHOWN = 160  # characters
_ENOUGH = 3  # replies: the shape of a longer conversation tells no more
_STEADY = 4  # user messages of the dialogue whose middle shows the marks


class _Kind(NamedTuple):
    """What decides which texts a template adds."""

    system: bool
    tools: bool
    reasoning: bool


class _Found(NamedTuple):
    """Where a text was seen: in the prompt of a conversation's first reply, of its last, or of its only one."""

    kind: _Kind
    reply: str  # first, last, only


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
    """The texts that the template adds to the prompts of conversations like these, each once.

    One conversation of each kind gives its shape: with and without a system message, tools, reasoning.
    """
    shapes: dict[_Kind, Conversation] = {}
    chats = (conversation for conversation in conversations if conversation.is_chat)
    for conversation in islice(chats, _LOOKED_AT):
        kind = _kind(conversation)
        if _replies(conversation) and (kind not in shapes or _tells_more(conversation, shapes[kind])):
            shapes[kind] = conversation
    seen: dict[str, set[_Found]] = {}
    asked: set[_Found] = set()
    for kind, shape in shapes.items():
        marks = _marks(kind, template, encoder)
        replies = _replies(shape)
        named = {"first": replies[0], "last": replies[-1]} if len(replies) > 1 else {"only": replies[0]}
        for name, reply in named.items():
            prompt = _Probe(template).prompt(shape.messages[:reply], bool(shape.tools))
            if prompt is None:
                continue
            found = _Found(kind, name)
            asked.add(found)
            for text in own_texts(prompt, marks, encoder.pattern):
                seen.setdefault(text, set()).add(found)
    lengths = encoder.encode(list(seen))
    return [
        Inserted(text, len(ids), _where(places, asked))
        for (text, places), ids in zip(seen.items(), lengths, strict=True)
    ]


def _kind(conversation: Conversation) -> _Kind:
    messages = conversation.messages
    reasoning = any(m.thought[0] for m in messages if m.role == "assistant")
    return _Kind(messages[0].role == "system", bool(conversation.tools), reasoning)


def _replies(conversation: Conversation) -> list[int]:
    return [i for i, m in enumerate(conversation.messages) if m.role == "assistant" and i > 0]


def _tells_more(one: Conversation, other: Conversation) -> bool:
    def shape(conversation: Conversation) -> tuple[bool, int]:
        calls = any(message.tool_calls for message in conversation.messages)
        return calls, min(len(_replies(conversation)), _ENOUGH)

    return shape(one) > shape(other)


def _where(places: set[_Found], asked: set[_Found]) -> str:
    """Where a text stands, of all prompts that were asked for."""
    seen = {place.kind for place in places}
    for replies, said in (
        (("first", "last", "only"), ""),
        (("last",), ", from the second reply on"),
        (("first", "only"), ", for the first reply only"),
    ):
        among = {place for place in asked if place.reply in replies}
        if places == {place for place in among if place.kind in seen}:
            where = _of_kinds(seen, {place.kind for place in among})
            return f"{where}{said}" if where else "to some prompts"
    return "to some prompts"


def _of_kinds(found: set[_Kind], all_kinds: set[_Kind]) -> str:
    """The prompts of some of all kinds of conversations in words; empty where there are none."""
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
    return ""


# ---- asking the template -------------------------------------------------------------------------


@dataclass
class _Probe:
    """Conversations in which every text is a sentinel; equal names and ids stay equal."""

    template: Template
    names: dict[str, str] = field(default_factory=dict)

    def sentinel(self, tool: bool = False, name: str | None = None) -> str:
        """A text of nine letters and digits (Mistral's ids take no other), new but for a known name."""
        key = f"new {len(self.names)}" if name is None else f"name {name}"
        made = f"qx7{'t' if tool else 'm'}{len(self.names):04d}z"
        return self.names.setdefault(key, made)

    def prompt(self, messages: Sequence[Message], tools: bool) -> str | None:
        """The prompt of the next reply, with a sentinel for each text; None where the template refuses it."""
        return self.render([self.message(message) for message in messages], tools)

    def render(self, messages: Sequence[Message], tools: bool) -> str | None:
        offered = [self.tool()] if tools else []
        template = self.template.for_tools(offered)
        try:
            return template.render(template.inputs(messages), offered, add_generation_prompt=True)
        except Refused:
            return None

    def message(self, message: Message) -> Message:
        reasoning, answer = message.thought if message.role == "assistant" else (None, message.content)
        content = self.sentinel() if answer.strip() else ""
        if reasoning and message.reasoning is None:
            content = f"<think>\n{self.sentinel()}\n</think>\n\n{content}"
        return Message(
            message.role,
            content,
            self.sentinel() if message.reasoning else message.reasoning,
            tuple(self.call(call) for call in message.tool_calls),
            name=self.sentinel(True, "tool") if message.name and message.role == "tool" else None,
            tool_call_id=self.sentinel(True, message.tool_call_id) if message.tool_call_id else None,
        )

    def call(self, call: dict[str, Any]) -> dict[str, Any]:
        arguments = {self.sentinel(True, "parameter"): self.sentinel(True)}
        function = {"name": self.sentinel(True, "tool"), "arguments": arguments}
        known = {"id": self.sentinel(True, call["id"])} if call.get("id") else {}
        return {**known, "type": "function", "function": function}

    def tool(self) -> dict[str, Any]:
        """The one tool on offer, which the calls call."""
        parameter = self.sentinel(True, "parameter")
        schema = {"type": "string", "description": self.sentinel(True)}
        return {
            "type": "function",
            "function": {
                "name": self.sentinel(True, "tool"),
                "description": self.sentinel(True),
                "parameters": {
                    "type": "object",
                    "properties": {parameter: schema},
                    "required": [parameter],
                },
            },
        }


def _marks(kind: _Kind, template: Template, encoder: Encoder) -> frozenset[str]:
    """What stands around each message in the middle of a long conversation of this kind."""
    exchange = [Message("user", "text"), Message("assistant", "text", "text" if kind.reasoning else None)]
    dialogue = [Message("system", "text")] * kind.system + exchange * (_STEADY - 1) + exchange[:1]
    probe = _Probe(template)
    asked = [probe.message(message) for message in dialogue]
    prompt = probe.render(asked, kind.tools)
    if prompt is None:
        return frozenset()
    _, second, third, _ = (message.content for message in asked if message.role == "user")
    return marks_of(prompt.partition(second)[2].partition(third)[0], encoder.pattern)
