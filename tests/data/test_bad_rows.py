# ruff: noqa: E501  (whole messages, as they are printed)
"""The bad rows that people have, each with the whole message that it gets."""

import json

import pytest

from imprint.data.ledger import Ledger
from imprint.data.load import load
from imprint.errors import DataError
from imprint.recipe import DataSource

GOOD = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}
PAIR = {"prompt": "Why?", "response": "So."}


def talk(*messages):
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


GOLDEN = [
    # 4: a wrong column
    (
        {"mesages": GOOD["messages"]},
        """train.jsonl:2: the columns are of no known format
  found     columns mesages
  expected  messages | instruction + output | prompt + response | text | … (imprint data formats lists all)
  to fix    rename mesages to messages; or name your columns: data.0.fields.prompt=COLUMN data.0.fields.response=COLUMN
            or train without the bad rows: bad_rows=leave_out""",
    ),
    (
        {"prompt": "Why?", "respones": "So."},
        """train.jsonl:2: the columns are of no known format
  found     columns prompt, respones
  expected  messages | instruction + output | prompt + response | text | … (imprint data formats lists all)
  to fix    rename respones to response; or name your columns: data.0.fields.prompt=prompt data.0.fields.response=respones
            or train without the bad rows: bad_rows=leave_out""",
    ),
    # 5: the type changes
    (
        talk(("user", "Why?"), ("assistant", 42)),
        """train.jsonl:2: the content of a message is not a text
  found     message 2: 42, a number
  expected  a text, or a list of text parts
  to fix    write it as a text, in double quotes
            or train without the bad rows: bad_rows=leave_out""",
    ),
    (
        {"prompt": "Why?", "response": {"text": "So."}},
        """train.jsonl:2: a column is not a text
  found     response: {"text": "So."}, an object
  expected  a text
  to fix    write it in double quotes
            or train without the bad rows: bad_rows=leave_out""",
    ),
    # 6: no reply to learn
    (
        talk(("user", "Why?"), ("assistant", " \n")),
        """train.jsonl:2: the reply is empty
  found     message 2 (assistant): " \\n"
  expected  a text to learn
  to fix    write the reply or remove the row
            or train without the bad rows: bad_rows=leave_out""",
    ),
    (
        {"prompt": "Why?", "response": None},
        """train.jsonl:2: the reply is empty
  found     column response: null
  expected  a text to learn
  to fix    write the response or remove the row
            or train without the bad rows: bad_rows=leave_out""",
    ),
    # 7: it ends with the user
    (
        talk(("user", "Why?"), ("assistant", "So."), ("user", "And then?")),
        """train.jsonl:2: the conversation ends with the user
  found     message 3 (user): "And then?"
  expected  an assistant message at the end
  to fix    add the reply, or remove what follows the last one
            or train without the bad rows: bad_rows=leave_out""",
    ),
    # 8: a role that is unknown, or in the wrong place
    (
        talk(("user", "Why?"), ("asistant", "So.")),
        """train.jsonl:2: unknown role
  found     message 2: "asistant"
  expected  system, user, assistant, tool (also developer, human, prompter, gpt, model, bot, ai, chatgpt, bing, bard, function_call, tool_call, tool_calls, function, observation, function_response, tool_response, tool_result, ipython)
  to fix    write "assistant"
            or train without the bad rows: bad_rows=leave_out""",
    ),
    (
        talk(("user", "Why?"), ("system", "Be brief."), ("assistant", "So.")),
        """train.jsonl:2: a system message is not at the front
  found     message 2 is a system message
  expected  one system message or none, then user, assistant and tool messages
  to fix    move it to the front or remove it
            or train without the bad rows: bad_rows=leave_out""",
    ),
    # prompts alone, texts alone
    (
        {"prompt": "Why?", "act": "x"},
        """train.jsonl:2: the row is a prompt without a reply
  found     columns prompt, act
  expected  a column with the reply to learn
  to fix    remove the row, or name the reply's column: data.0.fields.prompt=prompt data.0.fields.response=COLUMN
            or train without the bad rows: bad_rows=leave_out""",
    ),
    (
        "Why?",
        """train.jsonl:2: the row is a text alone: a prompt without a reply
  found     "Why?"
  expected  an object such as {"prompt": "...", "response": "..."}
  to fix    write each row with named columns, the reply among them
            or train without the bad rows: bad_rows=leave_out""",
    ),
    # several formats
    (
        {**PAIR, "completion": "Thus."},
        """train.jsonl:2: the columns fit several formats
  found     columns prompt, response, completion
  expected  one of prompt_response, prompt_completion
  to fix    say which: data.0.format=prompt_response
            or train without the bad rows: bad_rows=leave_out""",
    ),
]


@pytest.mark.parametrize(("row", "message"), GOLDEN, ids=lambda value: None)
def test_the_whole_message(write, tmp_path, row, message):
    write("train.jsonl", [GOOD, row, PAIR])
    settings = {"validation": 0.0, "consecutive_replies": "merge", "seed": 0, "base": tmp_path}
    with pytest.raises(DataError) as caught:
        load([DataSource(path="train.jsonl")], bad_rows="stop", ledger=Ledger(), **settings)
    assert str(caught.value) == message
    ledger = Ledger()
    loaded = load([DataSource(path="train.jsonl")], bad_rows="leave_out", ledger=ledger, **settings)
    ledger.check()
    assert (len(loaded.train), ledger.records.num_left) == (2, 1)


def test_tool_schemas_and_arguments_come_back_as_they_were(write, tmp_path):
    """12: schemas that differ from row to row, arguments as objects and as texts, nulls within."""
    rows = []
    for number, arguments in enumerate(({"x": None, "y": [1.0, {}]}, '{"x": null,  "y": 1e2}', "{}", {})):
        call = {
            "id": f"c{number}",
            "type": "function",
            "function": {"name": f"f{number}", "arguments": arguments},
        }
        schema = {
            "name": f"f{number}",
            "parameters": {f"p{number}": {"default": None, "enum": [1, "1", None]}},
        }
        row = talk(("user", "Why?"))
        row["messages"].append({"role": "assistant", "content": "", "tool_calls": [call]})
        rows.append({**row, "tools": [schema, {"type": "function", "function": schema}]})
    write("train.jsonl", rows)
    settings = {"validation": 0.0, "consecutive_replies": "merge", "seed": 0, "base": tmp_path}
    loaded = load([DataSource(path="train.jsonl")], bad_rows="stop", ledger=Ledger(), **settings)
    for row, found in zip(rows, loaded.train, strict=True):
        assert json.dumps(list(found.tools)) == json.dumps(row["tools"])
        assert json.dumps(list(found.messages[1].tool_calls)) == json.dumps(row["messages"][1]["tool_calls"])
