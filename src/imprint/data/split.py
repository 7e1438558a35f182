"""Hold out a share of the conversations, by a hash of what comes before the first trained reply."""

from __future__ import annotations

import hashlib
import json
from array import array
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


def has_trained(conversation: Conversation) -> bool:
    """Whether anything of it is trained: a reply, a document, a token with a weight."""
    if conversation.tokens is not None:
        return any(conversation.tokens.weights)
    return not conversation.is_chat or first_trained(conversation) is not None


def prompt_hash(conversation: Conversation, seed: int) -> int:
    """64 bits of SHA-256 over the seed and the exact texts before the first trained reply.

    Conversations of one group have one hash; documents and tokenised rows that of all they hold.
    """
    before = conversation.messages[: first_trained(conversation)]
    what: object = [(m.role, m.content, m.reasoning, m.tool_calls) for m in before]
    if conversation.group:
        what = {"group": conversation.group}
    elif conversation.tokens is not None:
        what = {"tokens": conversation.tokens.ids}
    digest = hashlib.sha256(json.dumps([seed, what], default=str).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def split(hashes: Sequence[int], share: float) -> tuple[array[int], array[int]]:
    """The rows of (train, validation), each in order; equal prompts are always on one side.

    `hashes` holds the `prompt_hash` of each row. The side of a prompt depends on it and the seed
    alone, so rows added later move none. Only where that would leave a side empty, the group
    nearest the border changes sides: with share > 0 and two different prompts or more, neither
    side is empty.
    """
    train, validation = array("q"), array("q")
    first, last = min(hashes, default=0), max(hashes, default=0)
    below = share * 2**64
    alone = first == last
    for row, value in enumerate(hashes):
        if alone or share == 0:
            held_out = False
        elif first >= below:
            held_out = value == first
        else:
            held_out = value < below and (last >= below or value != last)
        (validation if held_out else train).append(row)
    return train, validation
