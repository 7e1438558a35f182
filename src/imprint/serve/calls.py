"""Tool calls in what a model writes: in the form in which its template writes them, learned by asking it.

Three forms stand for those of all templates that were looked at (docs/decisions/0031):
an object with a name and arguments (Hermes, Qwen, Llama 3, Mistral v3, Command-R), a name before an object
(Mistral v11, DeepSeek, Harmony), and a name before keys and values in tags (Qwen3-Coder, GLM, Seed).
"""

from __future__ import annotations

import ast
import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from imprint.data.conversation import Message
from imprint.render.probe import completion_of
from imprint.render.split import without_stop
from imprint.render.template import PROBE_TOOLS, Template
from imprint.render.tokens import Encoder

_NAME = PROBE_TOOLS[0]["function"]["name"]
_TEXT, _NUMBER = "Qx7 value", 7341
_ARGUMENTS = {"qx7_city": _TEXT, "qx7_count": _NUMBER}
_IS_NAME = re.compile(r"[\w.\-]+")
_LETTERS = string.ascii_letters + string.digits
_JSON = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Called:
    """A call as a client gets it; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class CallForm(Protocol):
    """How calls are written. `lead` begins the first of them; "" where only the reply's whole text tells."""

    @property
    def lead(self) -> str: ...

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[Called]]:
        """(the text beside the calls, the calls); the whole text and none where a call is malformed."""


def learn_calls(template: Template, encoder: Encoder, think: str = "", answer: str = "") -> CallForm | None:
    """How this template writes calls; None where it writes none, or in a way that is not understood.

    `think` and `answer` are the marks around a thought.
    """
    template = template.for_tools(PROBE_TOOLS)
    one = _written(template, encoder, 1, think, answer)
    if one is None:
        return None
    two = _written(template, encoder, 2, think, answer)
    return _learn_objects(one) or _learn_named(one, two) or _learn_tagged(one)


def _written(template: Template, encoder: Encoder, count: int, think: str, answer: str) -> str | None:
    """What the template writes for so many calls, without the stop and without the thought before them."""
    calls = tuple(
        {"id": f"probe000{i}", "type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}
        for i in range(count)
    )
    for reasoning in (None, "Qx7 reasoning") if answer else (None,):
        reply = Message("assistant", "", reasoning=reasoning, tool_calls=calls)
        completion = completion_of(template, encoder, reply, PROBE_TOOLS)
        if completion is not None:
            body = without_stop(completion, template, encoder)
            thinks = reasoning or (think and body.lstrip().startswith(think))
            return body.partition(answer)[2] if thinks and answer in body else body
    return None


# ---- {"name": …, "arguments": {…}} --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Objects:
    """Each call, or a list of them, is JSON behind `lead` and before `close`."""

    lead: str
    close: str
    inner: str  # the key that holds name and arguments, where one does
    name: str
    arguments: str

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[Called]]:
        beside: list[str] = []
        calls: list[Called] = []
        at = 0
        while (found := text.find(self.lead, at) if self.lead else _not_blank(text, at)) >= 0:
            beside.append(text[at:found])
            values, at = _json_values(text, found + len(self.lead), () if self.lead else (";", ","))
            made = [self._call(value) for value in values]
            if not made or not all(made) or (not self.lead and not _offered(made, tools)):
                return text, []
            calls += [call for call in made if call]
            at = _skip(text, at, self.close)
        return "".join([*beside, text[at:]]).strip(), calls

    def _call(self, value: Any) -> Called | None:
        inside = value.get(self.inner) if isinstance(value, dict) and self.inner else value
        if not isinstance(inside, dict) or not isinstance(inside.get(self.name), str):
            return None
        given = value.get("id")
        return _called(inside[self.name], inside.get(self.arguments, {}), given)


def _learn_objects(text: str) -> Objects | None:
    for found in re.finditer(r"\{", text):
        try:
            value, end = _JSON.raw_decode(text, found.start())
        except ValueError:
            continue
        for inner, inside in (("", value), *((k, v) for k, v in value.items() if isinstance(v, dict))):
            name = next((key for key, item in inside.items() if item == _NAME), None)
            arguments = next(
                (key for key, item in inside.items() if _as_object(item) == _ARGUMENTS and key != name), None
            )
            if name and arguments:
                lead, close = text[: found.start()].strip(), text[end:].strip()
                if lead.endswith("[") and close.startswith("]"):
                    lead, close = lead[:-1].rstrip(), close[1:].lstrip()
                return Objects(lead, close, inner, name, arguments)
    return None


def _json_values(text: str, at: int, between: Sequence[str]) -> tuple[list[Any], int]:
    """The JSON values that stand at a place, one or several, those of lists singly; (none, `at`) for no JSON."""
    values: list[Any] = []
    while True:
        start = _not_blank(text, at)
        try:
            value, at = _JSON.raw_decode(text, start)
        except (ValueError, RecursionError):
            return ([], at) if start < 0 or not values else (values, at)
        values += value if isinstance(value, list) else [value]
        then = _not_blank(text, at)
        if then < 0 or text[then] not in (*between, "{"):
            return values, at
        at = then + (text[then] != "{")


# ---- name{…} ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Named:
    """Each call is a name behind `lead`, and an object of arguments behind `middle`."""

    lead: str
    middle: str
    again: str  # what stands between one call's arguments and the next one's name
    close: str

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[Called]]:
        calls: list[Called] = []
        begin = text.find(self.lead)
        if begin < 0:
            return text, []
        at = begin + len(self.lead)
        while True:
            start = _not_blank(text, at)
            named = _IS_NAME.match(text, start) if start >= 0 else None
            if named is None:
                return text, []
            at = _skip(text, named.end(), self.middle)
            try:
                given, at = _JSON.raw_decode(text, max(_not_blank(text, at), 0))
            except (ValueError, RecursionError):
                return text, []
            call = _called(named.group(), given)
            if call is None:
                return text, []
            calls.append(call)
            after = _skip(text, at, self.again)
            if not self.again or after == at or _not_blank(text, after) < 0:
                at = _skip(text, at, self.close)
                return (text[:begin] + text[at:]).strip(), calls
            at = after


def _learn_named(one: str, two: str | None) -> Named | None:
    name = one.find(_NAME)
    for found in re.finditer(r"\{", one[name:]):
        try:
            value, end = _JSON.raw_decode(one, name + found.start())
        except ValueError:
            continue
        if name < 0 or value != _ARGUMENTS:
            return None
        lead, middle = one[:name].strip(), one[name + len(_NAME) : name + found.start()].strip()
        written = one[name + found.start() : end]
        again = ""
        if two is not None and two.count(written) == 2:
            again = two.split(written)[1].partition(_NAME)[0].strip()
        return Named(lead, middle, again, one[end:].strip()) if lead else None
    return None


# ---- <function=name><parameter=key>value</parameter></function> -----------------------------------


@dataclass(frozen=True, slots=True)
class Tagged:
    """Each call is a name behind `lead`, then keys and values, each between its own marks."""

    lead: str
    name_end: str
    key_start: str
    key_end: str
    value_end: str
    close: str

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[Called]]:
        beside: list[str] = []
        calls: list[Called] = []
        at = 0
        while (found := text.find(self.lead, at)) >= 0:
            beside.append(text[at:found])
            named = _IS_NAME.match(text, max(_not_blank(text, found + len(self.lead)), 0))
            if named is None:
                return text, []
            at = _skip(text, named.end(), self.name_end)
            given: dict[str, Any] = {}
            while (key := _skip(text, at, self.key_start)) > at:
                end = text.find(self.key_end, key)
                close = text.find(self.value_end, end + len(self.key_end)) if end >= 0 else -1
                if close < 0:
                    return text, []
                value = text[end + len(self.key_end) : close].removeprefix("\n").removesuffix("\n")
                label = text[key:end].strip()
                given[label] = _typed(value, named.group(), label, tools)
                at = close + len(self.value_end)
            after = _skip(text, at, self.close)
            if self.close and after == at:
                return text, []
            at = after
            call = _called(named.group(), given)
            calls += [call] if call else []
        return "".join([*beside, text[at:]]).strip(), calls


def _learn_tagged(text: str) -> Tagged | None:
    parts = [_NAME, "qx7_city", _TEXT, "qx7_count", str(_NUMBER)]
    gaps, at = [], 0
    for part in parts:
        found = text.find(part, at)
        if found < 0:
            return None
        gaps.append(text[at:found])
        at = found + len(part)
    lead, first, key_end, between, key_end_again = (gap.strip() for gap in gaps)
    if key_end != key_end_again:
        return None
    shared = _common_end(first, between)
    key_start = shared.lstrip()
    value_end = between[: len(between) - len(shared)].strip()
    close = text[at:].strip()
    if not (lead and key_start and key_end and value_end and close.startswith(value_end)):
        return None
    return Tagged(
        lead,
        first[: len(first) - len(shared)].strip(),
        key_start,
        key_end,
        value_end,
        close[len(value_end) :].strip(),
    )


def _common_end(one: str, two: str) -> str:
    size = 0
    while size < min(len(one), len(two)) and one[-1 - size] == two[-1 - size]:
        size += 1
    return one[len(one) - size :]


def _typed(value: str, name: str, key: str, tools: Sequence[Mapping[str, Any]]) -> Any:
    """A value that is written without quotes: a text where the tool asks for one, else JSON where it is some."""
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name:
            properties = (function.get("parameters") or {}).get("properties")
            wanted = properties.get(key) if isinstance(properties, dict) else None
            if isinstance(wanted, dict) and wanted.get("type") == "string":
                return value
    for read in (json.loads, ast.literal_eval):  # Seed writes lists and objects as Python does
        try:
            found = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if read is json.loads or isinstance(found, list | dict):
            return found
    return value


# ---- what they share ----------------------------------------------------------------------------


def _called(name: str, arguments: Any, given: Any = None) -> Called | None:
    """A call; None where its arguments are no object. Its id has the one length that all templates take."""
    found = _as_object(arguments)
    if found is None or not name.strip():
        return None
    made = given if isinstance(given, str) and given else "".join(secrets.choice(_LETTERS) for _ in range(9))
    return Called(made, name, json.dumps(found, ensure_ascii=False))


def _as_object(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _offered(calls: Sequence[Called | None], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are tools that the client has: plain JSON may be the answer itself."""
    names = {tool.get("function", tool).get("name") for tool in tools}
    return all(call and call.name in names for call in calls)


def _not_blank(text: str, at: int) -> int:
    """The first place from `at` on that is not white space; -1 where there is none."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at if at < len(text) else -1


def _skip(text: str, at: int, mark: str) -> int:
    """The place behind `mark`, where it stands at `at` (white space aside); else `at`."""
    start = _not_blank(text, at)
    return start + len(mark) if mark and start >= 0 and text.startswith(mark, start) else at
