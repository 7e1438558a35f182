"""How templates write what a conversation holds: the forms in which a text may stand in a rendering."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imprint.data.conversation import Message

TELLING = 4  # characters from which a text tells something wherever it stands


@dataclass(slots=True)
class Wanted:
    """A text to look for: the forms in which it may stand, the likeliest first."""

    role: str
    message_index: int
    part: str
    forms: list[str]
    free: bool = False  # stands anywhere: some templates write the system message far behind
    found: tuple[int, int] | None = None


def wanted_texts(prompt: str, messages: Sequence[Message]) -> Iterator[Wanted]:
    for index, message in enumerate(messages):
        free = message.role == "system"
        reasoning, content = message.reasoning, message.content
        if (
            message.thought[0] and content.strip() not in prompt
        ):  # the template takes a thought out of its tags
            reasoning, content = message.thought
        if reasoning and reasoning.strip():
            yield Wanted(message.role, index, "reasoning", _forms(reasoning))
        if content.strip():
            yield Wanted(message.role, index, "content", _forms(content), free)
        for call in message.tool_calls:
            function = call.get("function", call)
            yield Wanted(message.role, index, "tool_call", [str(function.get("name", ""))])
            for forms in _arguments(prompt, function.get("arguments")):
                yield Wanted(message.role, index, "tool_call", forms)


def _forms(text: str) -> list[str]:
    """A text as templates write it: as it is, stripped, as JSON."""
    stripped = text.strip()
    escaped = [json.dumps(stripped, ensure_ascii=ascii)[1:-1] for ascii in (False, True)]
    return list(dict.fromkeys(filter(None, [text, stripped, *escaped])))


def _arguments(prompt: str, arguments: Any) -> Iterator[list[str]]:
    """The forms of a call's arguments; of each value alone where they do not stand there as JSON."""
    given = arguments
    if isinstance(arguments, str):
        try:
            given = json.loads(arguments)
        except ValueError:
            given = arguments
    forms = list(
        dict.fromkeys(form for form in (arguments, *as_json_texts(given)) if isinstance(form, str) and form)
    )
    written = [form for form in forms if form in prompt]
    if written or not isinstance(given, Mapping):
        yield written or forms
    else:
        yield from ([leaf] for leaf in _leaves(list(given.values())))


def as_json_texts(value: Any) -> list[str]:
    styles: list[dict[str, Any]] = [{}, {"separators": (",", ":")}, {"indent": 4}, {"indent": 2}]
    return [
        json.dumps(value, ensure_ascii=ascii, default=str, **style)
        for style in styles
        for ascii in (False, True)
    ]


def _leaves(value: Any) -> Iterator[str]:
    """Every text and number in a JSON value, in order."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (str(key), *_leaves(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None and str(value).strip():
        yield str(value)


def words_of(function: Any) -> Iterator[str]:
    """What only this tool's definition says: the names and descriptions in it, but for tiny ones."""
    if not isinstance(function, Mapping):
        return
    for key, inner in function.items():
        if key in ("name", "description") and isinstance(inner, str):
            yield from filter(lambda text: len(text) >= TELLING, [inner])
        elif key == "properties" and isinstance(inner, Mapping):
            for name, definition in inner.items():
                yield from filter(lambda text: len(text) >= TELLING, [str(name)])
                yield from words_of(definition)
        else:
            yield from words_of(inner)
