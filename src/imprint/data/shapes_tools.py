"""Rows of the collections that teach calling tools: BFCL, xLAM, tau-bench.

Schemas come back as the row gives them, but for Anthropic's, which are written as OpenAI's.
"""

from __future__ import annotations

import re
from typing import Any

from imprint.data.conversation import Message, Place
from imprint.data.faults import bad_row, cut, from_json, listed, show
from imprint.data.messages import parse_messages
from imprint.data.shapes import Draft, Row, side, text
from imprint.errors import DataError

LOST_CALLS = "what follows the first tool call that the text does not show is left out"

_SPEAKER = re.compile(r"(?:^|\n)(?=(?:user|assistant|tool|system): )")


def call(name: str, arguments: Any) -> Row:
    """A tool call in OpenAI's form."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def schemas(value: Any, place: Place) -> tuple[Row, ...]:
    """The tools on offer: a list of schemas or its JSON text, as given; those with `input_schema` as OpenAI's."""
    if not value:
        return ()
    tools = from_json(value, "`tools`", place)
    if tools is None:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise bad_row(
            "`tools` is not a list of objects", place, show(value), "[{...}]", "write a list of schemas"
        )
    return tuple(_from_anthropic(tool) if "input_schema" in tool else tool for tool in tools)


def _from_anthropic(tool: Row) -> Row:
    function = {"parameters" if key == "input_schema" else key: value for key, value in tool.items()}
    return {
        "type": "function",
        "function": {key: function[key] for key in function if key != "cache_control"},
    }


# ---- BFCL


def is_bfcl(row: Row) -> bool:
    return isinstance(row["question"], list)


def bfcl(row: Row, place: Place) -> list[Draft]:
    """A question with functions, and its ground truth: of each argument the first value that is accepted."""
    question = row["question"]
    if not isinstance(question, list) or len(question) != 1 or not isinstance(question[0], list):
        several = isinstance(question, list) and len(question) > 1
        raise bad_row(
            "the task has several turns: its answer is a program, not a reply"
            if several
            else "`question` cannot be read",
            place,
            f"{len(question)} turns in `question`" if several else show(question),
            "[[{message}, ...]]: one turn",
            "leave the file out" if several else "write it in this form",
        )
    if "ground_truth" not in row:
        raise _no_truth(row, place)
    truth = row["ground_truth"]
    functions = schemas(row["function"], place)
    required = {str(tool.get("name")): _required(tool) for tool in functions}
    if not isinstance(truth, list) or not truth or not all(map(_is_truth, truth)):
        raise _bad_truth(truth, place)
    calls = tuple(
        call(name, _accepted(arguments, required.get(name, ()), place))
        for one in truth
        for name, arguments in one.items()
    )
    unknown = [one["function"]["name"] for one in calls if one["function"]["name"] not in required]
    if unknown:
        raise bad_row(
            "the ground truth calls a function that is not offered",
            place,
            cut(unknown[0]),
            f"one of {listed(required)}",
            "mend the name",
        )
    return [
        Draft(
            (*parse_messages(question[0], place), Message("assistant", "", tool_calls=calls)), tools=functions
        )
    ]


def _no_truth(row: Row, place: Place) -> DataError:
    if "irrelevance" in str(row.get("id")):
        return bad_row(
            "no tool fits the question, and the row gives no reply",
            place,
            f"id {row['id']}, without a ground truth",
            "a reply that says so",
            "write replies, or leave the file out",
        )
    return bad_row(
        "the row has no ground truth",
        place,
        f"columns {listed(row)}",
        "a column `ground_truth`, or beside the file NAME a file NAME_answers or possible_answer/NAME with this id",
        "put the file of answers there",
    )


def _is_truth(one: Any) -> bool:
    return isinstance(one, dict) and all(isinstance(arguments, dict) for arguments in one.values())


def _bad_truth(truth: Any, place: Place) -> DataError:
    return bad_row(
        "the ground truth cannot be read",
        place,
        show(truth),
        "[{NAME: {ARGUMENT: [accepted, ...]}}]",
        "mend it",
    )


def _required(tool: Row) -> tuple[str, ...]:
    parameters = tool.get("parameters")
    names = parameters.get("required") if isinstance(parameters, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _accepted(arguments: Row, required: tuple[str, ...], place: Place) -> Row:
    """Of each argument the first accepted value; "" first says that the argument may be left out."""
    chosen: Row = {}
    for name, values in arguments.items():
        if not isinstance(values, list) or not values:
            raise _bad_truth({name: values}, place)
        if name in required:
            values = [value for value in values if value != ""] or values
        elif values[0] == "":
            continue
        chosen[name] = _inner(values[0], place)
    return chosen


def _inner(value: Any, place: Place) -> Any:
    """Accepted values stand inside objects too."""
    if isinstance(value, dict):
        return _accepted(value, (), place)
    return [_inner(item, place) for item in value] if isinstance(value, list) else value


# ---- xLAM


def xlam(row: Row, place: Place) -> list[Draft]:
    """A query with tools, answered by calls; both may be JSON texts."""
    answers = from_json(row["answers"], "`answers`", place)
    if not isinstance(answers, list) or not answers:
        raise bad_row(
            "the reply is empty", place, f"column answers: {show(answers)}", "calls", "remove the row"
        )
    said = {"role": "assistant", "content": "", "tool_calls": answers}
    return [Draft((*side(row, "query", "user", place), *parse_messages([said], place)))]


# ---- tau-bench


def tau_bench(row: Row, place: Place) -> list[Draft]:
    """The display text of a chat. It does not show the tool calls: what follows the first one is left out.

    A tool call is displayed as `None`, or as the text beside it; what a model would see after it cannot
    be known.
    """
    shown = text(row, "messages_display", place)
    said = [part.partition(": ") for part in _SPEAKER.split(shown) if part.strip()]
    messages: list[Message] = []
    for at, (role, _, words) in enumerate(said):
        role, follows = role.strip(), said[at + 1][0].strip() if at + 1 < len(said) else ""
        if role == "assistant" and (words.strip() == "None" or follows == "tool"):
            break
        messages += parse_messages([{"role": role, "content": words.strip()}], place)
    lost = len(messages) < len(said)
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages and lost:
        raise bad_row(
            "the first reply is a tool call that the text does not show",
            place,
            show(shown[-200:]),
            "messages with their tool_calls",
            "give the full trajectories instead of the display text",
        )
    return [Draft(tuple(messages), notes=(LOST_CALLS,) if lost else ())]
