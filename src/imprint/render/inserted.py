"""What a template writes that nobody wrote: default system prompts, dates, instructions for tools.

The template itself is asked: it renders conversations of the data's kinds in which every text is a
sentinel. What is no sentinel then, and no mark around one, is its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any, NamedTuple

from imprint.data.conversation import Conversation, Message
from imprint.render.limits import OUT_OF_TIME
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
    try:
        seen, asked = _ask(shapes, template, encoder)
    except Refused:  # out of time: the rows will say so
        return []
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
    """Where a text stands, of all prompts that were asked for; no more than these say."""
    kinds = {place.kind for place in places}
    if places == {place for place in asked if place.kind in kinds}:
        return _of_kinds(kinds, {place.kind for place in asked})
    later = all(place.reply == "last" for place in places)
    return "to prompts behind a conversation's first" if later else "to some prompts"


def _of_kinds(found: set[_Kind], all_kinds: set[_Kind]) -> str:
    """All prompts of some kinds of conversations, in words: by what these have, or have not."""
    if found == all_kinds:
        return "to every prompt"
    facts = [(name, has) for name in _Kind._fields for has in (True, False)]
    for several in ([(fact,) for fact in facts], combinations(facts, 2)):
        for chosen in several:
            if found == {kind for kind in all_kinds if all(getattr(kind, n) is has for n, has in chosen)}:
                return f"to every prompt {_said(dict(chosen))}"
    return "to some prompts"


def _said(facts: Mapping[str, bool]) -> str:
    """`that has tools and no system message`."""
    if "reasoning" in facts:
        rest = {name: has for name, has in facts.items() if name != "reasoning"}
        return (
            (f"{_said(rest)} " if rest else "") + ("with" if facts["reasoning"] else "without") + " reasoning"
        )
    names = {"system": "a system message", "tools": "tools"}
    has = [names[name] for name, there in facts.items() if there]
    lacks = [names[name] for name, there in facts.items() if not there]
    if len(lacks) > 1:
        return f"that has neither {lacks[0]} nor {lacks[1]}"
    return "that has " + " and ".join(has + ["no " + name.removeprefix("a ") for name in lacks])


# ---- asking the template -------------------------------------------------------------------------


def _ask(
    shapes: Mapping[_Kind, Conversation], template: Template, encoder: Encoder
) -> tuple[dict[str, set[_Found]], set[_Found]]:
    """Each of the template's own texts with where it was seen, and all places where one could have been.

    Refused where the template runs out of time.
    """
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
            asked.add(_Found(kind, name))
            for text in own_texts(prompt, marks, encoder.pattern):
                seen.setdefault(text, set()).add(_Found(kind, name))
    return seen, asked


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
        except Refused as error:
            if str(error) == OUT_OF_TIME:
                raise
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
