"""What a chat template writes around messages, learned by asking it.

Conversations of marked texts are rendered; what stands between two marks is the glue between two messages.
The glue may depend on the two roles, on whether the conversation begins with a system message, and on
whether the later message is the last: more than that is refused. Where the system message does not
stand at its own place (in the last question, for instance), it is part of a glue.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from imprint.data.conversation import Message
from imprint.render.template import Refused, Template

START, END = "start", "end"
FIRST = "first"
SYSTEM = "\0system\0"  # in a glue: the system message
ROUNDS = 3  # questions of the longest conversation that is asked for

Glue = tuple[str, ...]  # texts, and SYSTEM among them


class Untranslatable(Exception):
    """Why a template cannot be said in Go, in words."""


class Place(NamedTuple):
    """What a glue may depend on. `last`: the message behind it is the last; `led`: a system message is the first."""

    before: str
    after: str
    last: bool
    led: bool


@dataclass(frozen=True)
class Learned:
    """A template as Ollama can know it.

    `inline`: system messages stand where they are said. `refuses`: the template takes none.
    `trims` holds, for a role, how its texts lose the white space around them: strip | lstrip | rstrip; for
    FIRST it holds that of the first question behind a system message, where it is another ("" is none).
    """

    glue: Mapping[Place, Glue]
    inline: bool = True
    refuses: bool = False
    trims: Mapping[str, str] = field(default_factory=dict)


def learn(template: Template, bos: str = "") -> Learned:
    """The glue of a template. `bos` is what the tokenizer puts before every text by itself, and is left out.

    Raises Untranslatable, with the reason.
    """
    asked = [marked(rounds, led) for rounds in range(1, ROUNDS + 1) for led in (False, True)]
    rendered = [(messages, rendering(template, messages, bos)) for messages in asked]
    if all(text is None for _, text in rendered):
        raise Untranslatable("the template refuses a plain question")
    refuses = all(text is None for messages, text in rendered if _led(messages))
    seen: list[tuple[list[Message], str]] = []
    for messages, text in rendered:
        if text is not None:
            seen.append((messages, text))
        elif not (refuses and _led(messages)):
            raise Untranslatable(f"the template refuses {_told(messages)}")
    inline = all(_in_order(text, messages) for messages, text in seen if _led(messages))
    glue: dict[Place, Glue] = {}
    for messages, text in seen:
        _agree(glue, _glues(text, messages, inline))
    for messages in _unusual():
        if refuses and any(message.role == "system" for message in messages):
            continue
        more = rendering(template, messages, bos)
        if more is not None and _in_order(more, [m for m in messages if inline or m.role != "system"]):
            try:
                _agree(glue, _glues(more, messages, inline))
            except Untranslatable:  # then such a conversation is refused where it comes
                continue
    return Learned(glue, inline, refuses)


def marked(rounds: int, led: bool) -> list[Message]:
    """A conversation that ends with its `rounds`-th question; each text is a mark of its own."""
    messages = [Message("system", "Qx7s0z")] if led else []
    for number in range(rounds):
        messages += [Message("user", f"Qx7u{number}z"), Message("assistant", f"Qx7a{number}z")]
    return messages[:-1]


def _unusual() -> Iterator[list[Message]]:
    """Conversations that not every template takes: opened by a reply, a system message later, ended by a reply."""
    system, later = (Message("system", f"Qx7s{number}z") for number in range(2))
    first, second = marked(2, False)[::2]
    opening, reply = (Message("assistant", f"Qx7a{number}z") for number in (9, 0))
    for head in ([], [system]):
        yield [*head, opening, first]
        yield [*head, opening, first, reply, second]
        yield [*head, first, opening, second, reply]
        yield [*head, first, reply]
        yield [*head, first, opening, later, second]
        yield [*head, first, later, second]
        yield [*head, first, later, reply, second]
        yield [*head, first, opening, later]
    yield [system]


def rendering(template: Template, messages: Sequence[Message], bos: str = "") -> str | None:
    """The prompt for the next reply, without `bos` at its head; None where the template refuses."""
    try:
        text = template.render(template.inputs(messages), add_generation_prompt=True)
    except Refused:
        return None
    if not text.startswith(bos):
        raise Untranslatable(
            f"the tokenizer puts {bos} before every text, and the template does not begin with it: {text[:40]!r}"
        )
    return text[len(bos) :]


def _led(messages: Sequence[Message]) -> bool:
    return messages[0].role == "system"


def _in_order(text: str, messages: Sequence[Message]) -> bool:
    """Whether each text stands once, in the order of the messages."""
    at = -1
    for message in messages:
        if text.count(message.content) != 1 or text.find(message.content) < at:
            return False
        at = text.find(message.content)
    return True


def _agree(glue: dict[Place, Glue], found: Iterator[tuple[Place, Glue]]) -> None:
    """Add what was found; Untranslatable, with `glue` as it was, where it contradicts what is known."""
    new = dict(glue)
    for place, text in found:
        if new.setdefault(place, text) != text:
            raise Untranslatable(
                f"what stands between {place.before} and {place.after} changes with the rest of the conversation: "
                f"{_shown(new[place])} and {_shown(text)}"
            )
    glue |= new


def _glues(text: str, messages: Sequence[Message], inline: bool) -> Iterator[tuple[Place, Glue]]:
    led = _led(messages)
    placed = [message for message in messages if inline or message.role != "system"]
    if not inline and any(message.role == "system" for message in messages[1:]):
        raise Untranslatable("a later system message")
    if not _in_order(text, placed):
        raise Untranslatable(f"the template drops, repeats or moves messages of {_told(messages)}")
    at, before = 0, START
    for number, message in enumerate(placed):
        start = text.find(message.content)
        last = number == len(placed) - 1
        yield Place(before, message.role, last, led), _split(text[at:start], messages, inline)
        at, before = start + len(message.content), message.role
    yield Place(before, END, True, led), _split(text[at:], messages, inline)


def _split(text: str, messages: Sequence[Message], inline: bool) -> Glue:
    if inline or not _led(messages):
        return (text,) if text else ()
    parts = text.split(messages[0].content)
    whole = itertools.chain.from_iterable((SYSTEM, part) for part in parts)
    return tuple(part for part in itertools.islice(whole, 1, None) if part)


def _told(messages: Sequence[Message]) -> str:
    return "a conversation of " + ", ".join(message.role for message in messages)


def _shown(glue: Glue) -> str:
    return repr("".join("SYSTEM" if part == SYSTEM else part for part in glue))
