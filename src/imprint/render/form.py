"""The form in which a template takes its messages: what a server gives it, and what its author had in mind."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imprint.data.conversation import Message

_LETTERS = string.digits + string.ascii_letters
# two names for the same thing: Qwen, DeepSeek and GLM read the first, Harmony the second
_REASONING_KEYS = ("reasoning_content", "thinking")
_ID = 9  # characters; Mistral's templates take no other length


@dataclass(frozen=True, slots=True)
class Form:
    """Contents as texts or as lists of typed parts; arguments of tool calls as objects or as JSON text.

    Most templates take texts and objects. Those of vision models walk over parts, and some
    (DeepSeek's) glue the arguments to a text. `probe.find_form` asks the template.
    """

    parts: bool = False
    text_arguments: bool = False


PLAIN = Form()


def as_template_input(message: Message, form: Form = PLAIN) -> dict[str, Any]:
    """The message as templates expect it: only the keys that it has."""
    content: Any = [{"type": "text", "text": message.content}] if form.parts else message.content
    out: dict[str, Any] = {"role": message.role, "content": content}
    if message.reasoning is not None:
        out |= dict.fromkeys(_REASONING_KEYS, message.reasoning)
    if message.tool_calls:
        out["tool_calls"] = [_call(call, form.text_arguments) for call in message.tool_calls]
    if message.name is not None:
        out["name"] = message.name
    if message.tool_call_id is not None:
        out["tool_call_id"] = message.tool_call_id
    return out


def as_template_inputs(messages: Sequence[Message], form: Form) -> list[dict[str, Any]]:
    """The messages as a server hands them to a template.

    A server gives every call an id, and every result the id and the name of its call: where the
    row has none, ids are made (from the call, so always the same ones), and results take theirs in order.
    """
    out = [as_template_input(message, form) for message in messages]
    open_calls: list[tuple[str, str]] = []
    for number, item in enumerate(out):
        if "tool_calls" in item:
            item["tool_calls"] = [_with_id(call, number + i) for i, call in enumerate(item["tool_calls"])]
            open_calls = [(call["id"], call.get("function", call)["name"]) for call in item["tool_calls"]]
        elif item["role"] == "tool" and open_calls:
            given = [call for call in open_calls if call[0] == item.get("tool_call_id")]
            answered = given[0] if given else open_calls[0]
            open_calls.remove(answered)
            item.setdefault("tool_call_id", answered[0])
            item.setdefault("name", answered[1])
    return out


def without_thoughts(item: Mapping[str, Any]) -> dict[str, Any]:
    """A message as a template takes it, without its reasoning and without the text beside its calls."""
    bare = {key: value for key, value in item.items() if key not in _REASONING_KEYS}
    return bare | {"content": ""} if "tool_calls" in bare else bare


def as_tools(tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The tools as a server hands them to a template: bare schemas in OpenAI's wrapper."""
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _with_id(call: Mapping[str, Any], number: int) -> dict[str, Any]:
    if call.get("id"):
        return dict(call)
    digest = hashlib.sha256(json.dumps([number, call], sort_keys=True, default=str).encode()).digest()
    value = int.from_bytes(digest[:8], "big")
    made = "".join(_LETTERS[value // len(_LETTERS) ** place % len(_LETTERS)] for place in range(_ID))
    return {**call, "id": made}


def _call(call: Mapping[str, Any], as_text: bool) -> Mapping[str, Any]:
    """The tool call with its arguments in one form: OpenAI gives JSON text, servers parse it before rendering."""
    function = call.get("function")
    if not isinstance(function, Mapping) or "arguments" not in function:
        return call
    given = function["arguments"]
    wanted = arguments_of(function)
    if as_text and not isinstance(given, str):
        wanted = json.dumps(given, ensure_ascii=False)
    elif as_text:
        wanted = given
    return call if wanted is given else {**call, "function": {**function, "arguments": wanted}}


def arguments_of(function: Mapping[str, Any]) -> Any:
    """The arguments of a call as an object, where they are one or its JSON text; else as they are."""
    given = function.get("arguments")
    if not isinstance(given, str):
        return given
    try:
        parsed = json.loads(given)
    except ValueError:
        return given
    return parsed if isinstance(parsed, dict) else given
