"""Hold out a share of the conversations, by a hash of what comes before the first trained reply."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from imprint.data.conversation import Conversation


def first_trained(conversation: Conversation) -> int | None:
    """Index of the first reply that is trained; None where no reply is.

    A reply of weight 0 is context only, and so is one with no user or tool message before it.
    """
    prompted = False
    for index, message in enumerate(conversation.messages):
        if message.role in ("user", "tool"):
            prompted = True
        elif message.role == "assistant" and prompted and message.weight != 0:
            return index
    return None


def prompt_hash(conversation: Conversation, seed: int) -> int:
    """64 bits of SHA-256 over the seed and the exact texts before the first trained reply."""
    before = conversation.messages[: first_trained(conversation)]
    texts = [(m.role, m.content, m.reasoning, m.tool_calls) for m in before]
    digest = hashlib.sha256(json.dumps([seed, texts], default=str).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def split(
    conversations: Sequence[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(train, validation), each in the given order; equal prompts are always on one side.

    The side of a prompt depends on it and the seed alone, so rows added later move none. Only
    where that would leave a side empty, the group nearest the border changes sides: with
    share > 0 and two different prompts or more, neither side is empty.
    """
    if share == 0 or not conversations:
        return list(conversations), []
    hashes = [prompt_hash(conversation, seed) for conversation in conversations]
    groups = set(hashes)
    held_out = {value for value in groups if value < share * 2**64}
    if len(groups) == 1:
        held_out = set()
    elif not held_out:
        held_out = {min(groups)}
    elif held_out == groups:
        held_out.remove(max(groups))
    train: list[Conversation] = []
    validation: list[Conversation] = []
    for conversation, value in zip(conversations, hashes, strict=True):
        (validation if value in held_out else train).append(conversation)
    return train, validation
