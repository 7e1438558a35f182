"""Rows of every format with something replaced: a conversation, or one error with place and remedy; never a crash."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from typing import Any

import pytest

from imprint.data.catalogue import FORMATS, PARTS
from imprint.data.conversation import Place, Record
from imprint.data.formats import converter, explain, is_row
from imprint.data.gather import _built
from imprint.errors import DataError
from imprint.recipe import DataSource

VALUES = (
    None, True, False, 0, -1, 3, 2.5, float("nan"), float("inf"), 10**30, "", " ", "x", "\n\nHuman: q\n\nAssistant: a",
    "[", "[{}]", '{"name": "f"}', "<|endoftext|>", "<|im_start|>", [], {}, [[]], [{}], [None], ["x"], ["x", "y"], [3],
    {"role": "user"}, {"role": "assistant", "content": "a"}, [{"from": "gpt", "value": "a"}], {"type": "tool_result"},
    [{"type": "tool_use"}], [{"type": "text", "text": 3}], {"replies": [3]}, {"input": 1, "output": []}, {"a": [""]},
)  # fmt: skip
EXTRA = (
    {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "r"}]}]},
                  {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"},
                                                    {"type": "tool_use", "id": "i", "name": "f", "input": {}}]}],
     "system": [{"type": "text", "text": "s"}], "tools": [{"name": "f", "input_schema": {}}]},
    {"instruction": "q", "input": "i", "output": "a", "history": [["x", "y"]], "text": "t", "weight": 1, "id": 3},
    {"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b", "system_prompt": "s"},
)  # fmt: skip


def mutated(row: Any, draw: random.Random) -> Any:
    """A copy with one value, at any depth, replaced, removed or added."""
    row = copy.deepcopy(row)
    spots: list[tuple[Any, Any]] = []
    waiting = [row]
    while waiting:
        value = waiting.pop()
        keys = list(value) if isinstance(value, dict) else range(len(value))
        spots += [(value, key) for key in keys]
        waiting += [value[key] for key in keys if isinstance(value[key], (dict, list))]
    holder, key = draw.choice(spots)
    deed = draw.random()
    if deed < 0.7:
        holder[key] = draw.choice(VALUES)
    elif deed < 0.85:
        del holder[key]
    elif isinstance(holder, dict):
        holder[draw.choice(PARTS)] = draw.choice(VALUES)
    else:
        holder.insert(0, draw.choice(VALUES))
    return row


def check(row: Any, place: Place) -> None:
    notes: list[str] = []
    forced = random.Random(str(row)).choice(("auto", "auto", *(format.name for format in FORMATS)))
    convert = converter(DataSource(path="x", format=forced), warn=lambda note, place: notes.append(note))
    found = explain(row, place)
    try:
        made = convert(Record(row, place))
    except DataError as error:
        bad = error
    else:
        bad = None
    if bad is not None:
        assert bad.where == str(place), row
        assert all((bad.found, bad.expected, bad.fix)), (row, bad)
        return
    assert forced != "auto" or found.format, row
    for one in made:
        assert one.source == place
        assert one.tokens is not None or one.messages
        assert all(isinstance(message.content, str) and message.role for message in one.messages), row
        assert isinstance(one.id, str)
        json.dumps([message.tool_calls for message in one.messages])
    if isinstance(row, dict):
        is_row(row)


def run(seed: int, count: int) -> None:
    draw = random.Random(seed)
    rows = [*(format.example for format in FORMATS), *EXTRA]
    for number in range(count):
        row = draw.choice(rows)
        for _ in range(draw.choice((1, 1, 2, 4))):
            row = mutated(row, draw) if row else row
        check(row, Place("x", number + 1))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_rows(seed):
    run(seed, 800)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_mutated_rows(seed):
    run(seed, 1000)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_messages_of_trees(seed):
    """However the ids are wired, each row gives one record."""
    draw = random.Random(seed)
    for _ in range(300):
        count = draw.randrange(1, 9)
        rows = [
            ({"message_id": draw.randrange(count), "parent_id": draw.choice([None, "", *range(count)]), "text": "x",
              "role": draw.choice(("prompter", "assistant"))}, Place("x", line))
            for line in range(1, count + 1)
        ]  # fmt: skip
        records = list(_built(rows))
        assert [record.place.line for record in records] == list(range(1, count + 1))
        for record in records:
            with contextlib.suppress(DataError):
                converter(DataSource(path="x"))(record)
