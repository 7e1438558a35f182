"""What the keys of a message say beside its role and text: a weight, a name; and keys that are misspelt."""

from __future__ import annotations

import functools
from typing import Any

from imprint.data.conversation import Message, Place
from imprint.data.faults import bad_row, cut, number, show, show_type, slip
from imprint.data.vocabulary import MEDIA, SPEAKING, THOUGHTS, holds, speaks
from imprint.errors import DataError

MESSAGE_KEYS = ("role", "from", "content", "value")
TEXT_KEYS = ("content", "value", "text")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
WEIGHT_KEYS = ("weight", "loss_weight", "loss_mask", "train")
# other tools' words for `train`, each with the weight that true stands for
FLAGS = {
    "train": 1.0,
    "loss": 1.0,
    "training": 1.0,
    "trainable": 1.0,
    "train_on_turn": 1.0,
    "masked": 0.0,
    "mask": 0.0,
}
SAID_TWICE = "a thought stands in the tags of a reply and in its reasoning: it is trained once"
_EXPLAINING = {"explanation", "rationale"}  # which may be a note on the reply
# what imprint reads of a message where it is there
OPTIONAL_KEYS = (*REASONING_KEYS, *WEIGHT_KEYS, "name", "tool_calls", "tool_call_id", "function_call")


def refuse_slips(value: dict[str, Any], place: Place, turn: int) -> None:
    """DataError for a key that is misspelt, and for two different thoughts of one message."""
    for key, like in _slips(tuple(value)):
        if holds(value[key]):
            raise bad_row(
                "a message has an unknown key",
                place,
                f"message {turn}: {cut(key)}: {show(value[key])}",
                ", ".join((*MESSAGE_KEYS, *OPTIONAL_KEYS)),
                f"rename {cut(key)} to {like}, or remove it",
            )
    for key in _unread(tuple(value)):
        thought = key.lower() in THOUGHTS
        if not (speaks if thought else holds)(value[key]):
            continue
        raise bad_row(
            "a message has an unknown key" if thought else "a message holds more than text",
            place,
            f"message {turn}: {cut(key)}: {show(value[key])}",
            ", ".join((*MESSAGE_KEYS, *OPTIONAL_KEYS)),
            f"{f'rename {cut(key)} to reasoning_content' if thought else 'write it into the text'}, or remove it",
        )
    thoughts = {value[key] for key in REASONING_KEYS if isinstance(value.get(key), str) and value[key]}
    if len(thoughts) > 1:
        raise two_thoughts(", ".join(key for key in REASONING_KEYS if value.get(key)), place, turn)


def two_thoughts(found: str, place: Place, turn: int) -> DataError:
    return bad_row(
        "a message has two different thoughts",
        place,
        f"message {turn}: {found}",
        "one of reasoning_content, reasoning, thinking, or tags at the head of the text",
        "keep one of them",
    )


def without_thought(text: str, reasoning: str, place: Place, turn: int, notes: list[str]) -> str:
    """The text of a reply without the thought at its head, which its reasoning repeats; DataError for another one."""
    thought, answer = Message("assistant", text).thought
    if thought is None:
        return text
    if thought != reasoning.strip():
        raise two_thoughts(f"in tags: {show(thought)}; apart: {show(reasoning)}", place, turn)
    notes.append(SAID_TWICE)
    return answer.lstrip("\n")


@functools.lru_cache(maxsize=1024)
def _unread(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Keys of what a reader of the message would see or think, and the model would not."""
    lost = (THOUGHTS | MEDIA | {"attachments", "files"}) - {*REASONING_KEYS, *_EXPLAINING}
    return tuple(key for key in keys if key.lower() in lost and key not in REASONING_KEYS)


@functools.lru_cache(maxsize=1024)
def aside(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Keys that often hold what belongs to a conversation, and that are told, for there may be no fault in them."""
    read = {*MESSAGE_KEYS, *TEXT_KEYS, *OPTIONAL_KEYS, *THOUGHTS, "attachments"} - _EXPLAINING
    return tuple(key for key in keys if key.lower() in SPEAKING and key.lower() not in read)


@functools.lru_cache(maxsize=1024)
def _slips(keys: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The keys that are nearly one that is read and is not there, each with that one."""
    known = {*MESSAGE_KEYS, *TEXT_KEYS, *OPTIONAL_KEYS, *FLAGS, "refusal"}
    said = () if any(key in keys for key in TEXT_KEYS) else ("content", "value")
    missing = [key for key in (*OPTIONAL_KEYS, *said) if key not in keys]
    return tuple((key, like) for key in keys if key not in known and (like := slip(key, missing)))


def label(value: Any, key: str, place: Place, turn: int) -> str | None:
    """A name or an id, which some files write as a number."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise bad_row(
            f"`{key}` is not a text",
            place,
            f"message {turn}: {key}: {show_type(value)}",
            "a text",
            "write it in double quotes, or remove it",
        )
    return str(value)


def loss_weight(value: dict[str, Any], role: str, place: Place, turn: int) -> float | None:
    """The loss weight that a message asks for; None where it does not say."""
    given = {key: value[key] for key in (*WEIGHT_KEYS, *FLAGS) if value.get(key) is not None}
    if not given:
        return None
    weights = set()
    for key, item in given.items():
        if key not in FLAGS:
            weights.add(number(item, key, place))
        elif not isinstance(item, bool):
            raise bad_row(
                f"`{key}` is neither true nor false",
                place,
                f"message {turn}: {show(item)}",
                "true or false",
                "write true or false, or a number as `weight`",
            )
        elif role == "assistant" or item or FLAGS[key]:  # what is not masked is not for that a reply
            weights.add(FLAGS[key] if item else 1.0 - FLAGS[key])
    if len(weights) > 1 or (role != "assistant" and weights - {0.0}):
        raise bad_row(
            "two weights for one message"
            if len(weights) > 1
            else "a weight on a message that is not a reply",
            place,
            f"message {turn} ({role}): {show(given)}",
            "one weight" if len(weights) > 1 else "weight 0 or none: only replies are trained",
            "keep one of them" if len(weights) > 1 else "remove it",
        )
    return weights.pop() if weights else None
