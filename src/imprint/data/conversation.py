"""Demonstrations as imprint holds them: messages, and where they came from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

_INLINE_THOUGHT = re.compile(r"\s*<(think|thinking|thought|reasoning)>(.*?)</\1>", re.DOTALL)

ROLES = ("system", "user", "assistant", "tool")
TEXT = "text"  # the role of a document's one message


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a record was read: a file and its line (JSON, CSV) or row (Parquet), both from 1."""

    file: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.unit == "line" else f"{self.file}:{self.unit} {self.line}"


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a data file, as it was parsed."""

    value: Any
    place: Place


@dataclass(frozen=True, slots=True)
class Message:
    """One utterance.

    `weight` scales the loss of a reply: None means 1, 0 means context only.
    `tool_calls` are in OpenAI's form; `name` and `tool_call_id` belong to tool results.
    """

    role: str
    content: str
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    weight: float | None = None
    name: str | None = None
    tool_call_id: str | None = None

    @property
    def thought(self) -> tuple[str | None, str]:
        """(reasoning, answer): the reasoning may stand apart, or in tags at the head of the content."""
        if self.reasoning is not None or "</" not in self.content:
            return self.reasoning, self.content
        inline = _INLINE_THOUGHT.match(self.content)
        if inline is None:
            return None, self.content
        return inline[2].strip() or None, self.content[inline.end() :]


class Tokens(NamedTuple):
    """A row that was tokenised elsewhere: n ids, and the share of each in the loss (0: context only)."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One demonstration: its messages, the tools on offer, its weight, and its place.

    `group` names what must not be torn apart by the split (the branches of one tree). A document, for
    replay, is one message of the role `text`; a row that was tokenised elsewhere has `tokens` and
    no messages.
    """

    messages: tuple[Message, ...]
    source: Place
    id: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    weight: float = 1.0
    group: str = ""
    tokens: Tokens | None = None

    @property
    def is_chat(self) -> bool:
        """Whether a template renders it; otherwise it is a document, or tokenised already."""
        return self.tokens is None and not (self.messages and self.messages[0].role == TEXT)
