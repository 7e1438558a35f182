"""Tool calls as OpenAI, ShareGPT and others write them, in OpenAI's form."""

from __future__ import annotations

from typing import Any

from imprint.data.conversation import Place
from imprint.data.faults import bad_row, cut, from_json, show, slip
from imprint.data.text import refuse_surrogates
from imprint.data.vocabulary import holds

Call = dict[str, Any]
SYNONYMS = ("parameters", "args", "params", "input", "kwargs")  # for `arguments`
_BESIDE = {"id", "type", "index"}  # what a call may say beside its function


def tool_calls(values: Any, place: Place, turn: int) -> tuple[Call, ...]:
    """Tool calls in OpenAI's form; arguments stay as they were given, under whichever of their names.

    DataError for a call without a name, and for arguments that are neither an object nor the JSON text of one.
    """
    if values is None:
        return ()
    values = [values] if isinstance(values, dict) else values
    if not isinstance(values, list) or not all(map(_is_call, values)):
        raise bad_row(
            "a tool call cannot be read",
            place,
            f"message {turn}: {show(values)}",
            'a list of {"type": "function", "function": {"name": ..., "arguments": ...}}',
            "write the calls in this form",
        )
    return tuple(_checked(_call(call, place, turn), place, turn) for call in values)


def _checked(call: Call, place: Place, turn: int) -> Call:
    """The call with arguments that a server could read: an object or its JSON text; "" is written {}."""
    function = call["function"]
    if not function["name"].strip():
        raise bad_row(
            "a tool call has no name",
            place,
            f"message {turn}: {show(call)}",
            "the name of the function that is called",
            "write the name, or remove the call",
        )
    given = function.get("arguments")
    if given is None or isinstance(given, dict):
        return call
    if isinstance(given, str) and not given.strip():  # as servers write a call without arguments
        return {**call, "function": {**function, "arguments": "{}"}}
    arguments = from_json(given, "the text of a tool call's arguments", place)
    if not isinstance(arguments, dict):
        twice = isinstance(given, str) and isinstance(arguments, str)
        raise bad_row(
            "the arguments of a tool call are no object",
            place,
            f"message {turn}: arguments: {show(given)}",
            'an object, {"x": 1}, or its JSON text',
            "they were written as JSON twice: json.loads(arguments) undoes it once"
            if twice
            else "write each argument under its name; {} where there are none",
        )
    if isinstance(given, str) and "\\ud" in given.lower():  # escaped once more than the row's own texts
        refuse_surrogates(arguments, str(place))
    return call


def _is_call(value: Any) -> bool:
    function = value.get("function", value) if isinstance(value, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _call(call: Call, place: Place, turn: int) -> Call:
    """One call; where its name and arguments are not in an object `function`, they are put there."""
    if "function" in call:
        function = _with_arguments(call["function"], place, turn)
        for key in ("arguments", *SYNONYMS):
            if holds(call.get(key)) and call[key] != function.get("arguments"):
                raise _unread(key, call, f"move {key} into the object `function`", place, turn)
        return call if function is call["function"] else {**call, "function": function}
    function = _with_arguments(call, place, turn)
    outer: Call = {key: function[key] for key in ("id", "index") if key in function}
    inner = {key: value for key, value in function.items() if key not in _BESIDE}
    return {**outer, "type": "function", "function": inner}


def _with_arguments(function: Call, place: Place, turn: int) -> Call:
    """The function of a call with its arguments under `arguments`; DataError for arguments that would be lost."""
    if len(function) == 2 and "arguments" in function:  # most calls
        return function
    given = [key for key in SYNONYMS if holds(function.get(key))]
    if holds(function.get("arguments")):
        lost = next((key for key in given if function[key] != function["arguments"]), None)
        if lost:
            raise _unread(lost, function, f"keep one of arguments and {lost}", place, turn)
        return function
    if len(given) == 1 and function.keys() - _BESIDE <= {"name", "arguments", given[0]}:
        value = function[given[0]]
        if isinstance(value, (dict, str)) and not (isinstance(value, dict) and "properties" in value):
            return {
                "arguments" if key == given[0] else key: inner
                for key, inner in function.items()
                if key != "arguments"
            }
    for key in function:
        if key in given or (key != "arguments" and holds(function[key]) and slip(key, ("arguments",))):
            raise _unread(key, function, f"rename {cut(key)} to arguments, or remove it", place, turn)
    return function


def _unread(key: str, call: Call, fix: str, place: Place, turn: int) -> Exception:
    return bad_row(
        "a tool call has a key that is not read",
        place,
        f"message {turn}: {cut(key)}: {show(call[key])}",
        '{"name": ..., "arguments": {...}}',
        fix,
    )
