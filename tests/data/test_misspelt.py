"""A column or key with one wrong letter is never lost without a word: the row is refused, or a warning names it."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from imprint.data.catalogue import FORMATS
from imprint.data.conversation import Place, Record
from imprint.data.formats import converter
from imprint.errors import DataError
from imprint.recipe import DataSource

PLACE = Place("rows.jsonl", 1)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
RICH = {
    "messages": [
        {"role": "user", "content": "Add one.", "name": "Ann"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I add.",
            "tool_calls": [CALL],
            "weight": 0.5,
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"},
        {"role": "assistant", "content": "Two.", "train": True},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Three.", "train": False},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Four.", "loss_weight": 0.25},
    ],
    "tools": [TOOL],
    "system": "Be brief.",
    "weight": 0.5,
}
BY_NAME = {format.name: format.example for format in FORMATS}
OPTIONAL = {"system": "Be brief.", "tools": [TOOL], "weight": 0.5}
ROWS: dict[str, dict[str, Any]] = {
    **{name: example for name, example in BY_NAME.items() if isinstance(example, dict)},
    **{f"{name} and more": BY_NAME[name] | OPTIONAL for name in ("messages", "sharegpt", "alpaca", "dolly")},
    "prompt_response and more": BY_NAME["prompt_response"] | OPTIONAL,
    "alpaca with a history": BY_NAME["alpaca"] | {"history": [["a", "b"]]},
    "a system text in a turn": {"conversation": [{"system": "Be brief.", "input": "q", "output": "a"}]},
    "rich messages": RICH,
}  # fmt: skip


def said(row: Any) -> tuple[str, list[str]]:
    """What the conversations of a row say, and the warnings; DataError where it is refused."""
    warnings: list[str] = []
    made = converter(DataSource(path="rows.jsonl"), "data.0", lambda text, _: warnings.append(text))(
        Record(row, PLACE)
    )
    bare = [dataclasses.asdict(dataclasses.replace(one, id="", group="")) for one in made]
    return json.dumps(bare, sort_keys=True, default=str), warnings


def misspelt(key: str) -> set[str]:
    """The key with a letter dropped, doubled, swapped with the next, or all in other cases."""
    made = {key.upper(), key.title()}
    for at in range(len(key)):
        before, here, behind = key[:at], key[at], key[at + 1 :]
        made |= {before + behind, before + here + here + behind, before + behind[:1] + here + behind[1:]}
    return made - {key, ""}


def objects(row: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The row and each of its messages, with the way to it."""
    yield (), row
    for column in ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "items"):
        for number, message in enumerate(row.get(column) or ()):
            if isinstance(message, dict):
                yield (column, number), message


@pytest.mark.parametrize("name", ROWS)
def test_a_wrong_letter_is_told(name):
    row = ROWS[name]
    try:
        right, _ = said(row)
    except DataError:
        pytest.skip("the example is one message of a tree: it is nothing alone")
    silent = []
    for way, original in objects(row):
        for key in original.keys() - {"name"}:  # short, near to many others, and no text of its own
            for wrong in misspelt(key) - set(original):
                other = copy.deepcopy(row)
                one: Any = other
                for step in way:
                    one = one[step]
                items = [(wrong if old == key else old, value) for old, value in one.items()]
                one.clear()
                one.update(items)
                try:
                    found, warnings = said(other)
                except DataError:
                    continue
                if found != right and not any(wrong in warning for warning in warnings):
                    silent.append(f"{'.'.join(map(str, (*way, key)))} → {wrong}")
    assert not silent, f"{len(silent)}: {', '.join(silent[:40])}"
