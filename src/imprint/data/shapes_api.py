"""ToolAlpaca: instructions for an API, the calls that are right, and the API's OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

from imprint.data.conversation import Message, Place
from imprint.data.faults import bad_row, from_json, show
from imprint.data.shapes import Draft, Row
from imprint.data.shapes_tools import call

NOT_EXACT = "an instruction without exactly one golden call whose arguments are JSON is left out"
_VERBS = ("get", "put", "post", "delete", "patch", "head", "options")


def toolalpaca(row: Row, place: Place) -> list[Draft]:
    """The instructions that one exact call answers; schemas from the OpenAPI document of the row."""
    instructions, golden = row["Instructions"], row["Golden_Answers"]
    document = from_json(row["Documentation"], "`Documentation`", place)
    if not (isinstance(instructions, list) and isinstance(golden, list) and len(instructions) == len(golden)):
        raise bad_row(
            "instructions and golden answers do not match",
            place,
            f"{show(instructions)}; {show(golden)}",
            "two lists of one length",
            "mend the row",
        )
    tools = _operations(document, place)
    drafts = []
    for instruction, actions in zip(instructions, golden, strict=True):
        made = _exact(actions, tools)
        if made is not None and isinstance(instruction, str) and instruction.strip():
            messages = (Message("user", instruction), Message("assistant", "", tool_calls=(made,)))
            drafts.append(Draft(messages, tools=tuple(tools.values())))
    if not drafts:
        raise bad_row(
            "no golden call is given exactly",
            place,
            show(golden),
            "one call with JSON arguments",
            "remove the row",
        )
    if len(drafts) < len(instructions):
        drafts[0] = drafts[0]._replace(notes=(NOT_EXACT,) * (len(instructions) - len(drafts)))
    return drafts


def _exact(actions: Any, tools: dict[str, Row]) -> Row | None:
    """The call of a list of one action, if tool, arguments and their names are those of the document."""
    if not isinstance(actions, list) or len(actions) != 1 or not isinstance(actions[0], dict):
        return None  # of several, the later ones depend on what the earlier ones return
    name, given = actions[0].get("Action"), actions[0].get("Action_Input")
    if not isinstance(name, str) or name not in tools or not isinstance(given, str):
        return None
    try:
        arguments = json.loads(given)
    except (ValueError, RecursionError):  # a placeholder such as ${ip from getDetails}
        return None
    known = tools[name]["function"]["parameters"]["properties"]
    if (
        not isinstance(arguments, dict)
        or not known.keys() >= arguments.keys()
        or any("${" in text for text in _texts(arguments))
    ):
        return None
    return call(name, arguments)


def _texts(value: Any) -> list[str]:
    """The texts in a value, at any depth."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _texts(one)]


def _operations(document: Any, place: Place) -> dict[str, Row]:
    """The operations of an OpenAPI document as tools, by name."""
    tools: dict[str, Row] = {}
    try:
        for verbs in document["paths"].values():
            for verb, operation in verbs.items():
                if verb in _VERBS:
                    tools[operation["operationId"]] = _operation(document, operation)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise bad_row(
            "`Documentation` is no OpenAPI document",
            place,
            f"{type(error).__name__}: {error}",
            "paths with operations, each with an operationId",
            "mend the document",
        ) from error
    return tools


def _operation(document: Row, operation: Row) -> Row:
    properties: Row = {}
    required: list[str] = []
    for parameter in operation.get("parameters", []):
        schema = dict(_resolved(document, parameter.get("schema", {})))
        if parameter.get("description"):
            schema["description"] = parameter["description"]
        properties[parameter["name"]] = schema
        required += [parameter["name"]] if parameter.get("required") else []
    content = operation.get("requestBody", {}).get("content", {})
    body = _resolved(document, content.get("application/json", {}).get("schema", {}))
    properties |= body.get("properties", {})
    required += body.get("required", [])
    function: Row = {"name": operation["operationId"]}
    if about := operation.get("description") or operation.get("summary"):
        function["description"] = about
    function["parameters"] = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": function}


def _resolved(document: Row, schema: Row) -> Row:
    for _ in range(8):
        if "$ref" not in schema:
            break
        found: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        schema = found
    return schema
