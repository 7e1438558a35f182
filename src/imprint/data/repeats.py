"""Conversations that repeat another, and prompts that come again with another reply: exact, by digest.

Of each conversation 28 bytes are remembered: 64 bits of its prompt, 64 of all that it says, its place.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np

from imprint.data.conversation import TEXT, Conversation, Message, Place
from imprint.data.split import first_trained


@dataclass(frozen=True, slots=True)
class Repeated:
    """How many conversations repeat something, and the first of them, each with what it repeats."""

    number: int = 0
    pairs: tuple[tuple[Place, Place], ...] = ()


class Seen:
    """What was seen so far."""

    def __init__(self) -> None:
        self.prompts, self.wholes = array("Q"), array("Q")
        self.lines, self.files = array("Q"), array("I")
        self.names: dict[tuple[str, str], int] = {}

    def add(self, conversation: Conversation) -> None:
        if conversation.tokens is not None:
            prompt, rest = "", repr(conversation.tokens.ids)
        elif conversation.messages[0].role == TEXT:
            prompt, rest = "", conversation.messages[0].content
        else:
            said = [_said(message) for message in conversation.messages]
            first = first_trained(conversation) or 0
            prompt, rest = repr(said[:first]), repr(said[first:])
        if conversation.tools:
            prompt += json.dumps(conversation.tools, sort_keys=True, default=str)
        alone = prompt and not conversation.group  # the branches of a tree share prompts by their nature
        self.prompts.append(_digest(prompt) if alone else 0)
        self.wholes.append(_digest(f"{prompt}\0{rest}"))
        place = conversation.source
        self.lines.append(place.line)
        self.files.append(self.names.setdefault((place.file, place.unit), len(self.names)))

    def repeated(self) -> tuple[Repeated, Repeated]:
        """Conversations that repeat an earlier one whole, and other replies to an earlier prompt."""
        wholes, prompts = (np.frombuffer(marks, np.uint64) for marks in (self.wholes, self.prompts))
        if not len(wholes):
            return Repeated(), Repeated()
        copies = _repeats(wholes)
        other = _repeats(prompts)
        other = other[(prompts[other[:, 0]] != 0) & ~np.isin(other[:, 0], copies[:, 0])]
        return self._told(copies), self._told(other)

    def _told(self, pairs: np.ndarray[Any, Any]) -> Repeated:
        return Repeated(len(pairs), tuple((self._place(a), self._place(b)) for a, b in pairs[:5].tolist()))

    def _place(self, row: int) -> Place:
        names = list(self.names)
        file, unit = names[self.files[row]]
        return Place(file, self.lines[row], unit)


def _said(message: Message) -> tuple[Any, ...]:
    calls = json.dumps(message.tool_calls, sort_keys=True, default=str) if message.tool_calls else ""
    return message.role, message.content, message.reasoning, calls


def _digest(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def _repeats(marks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[n, 2]: each row whose mark occurred before, with the row where it occurred first, in order."""
    _, first, which = np.unique(marks, return_index=True, return_inverse=True)
    earliest = first[which]
    rows = np.flatnonzero(earliest != np.arange(len(marks)))
    return np.stack([rows, earliest[rows]], axis=1)
