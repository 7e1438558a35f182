"""Messages as OpenAI, ShareGPT and Anthropic write them."""

import json

import pytest

from imprint.data.conversation import Message, Place, Record
from imprint.data.formats import converter
from imprint.errors import DataError
from imprint.recipe import DataSource

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
USER, REPLY = Message("user", "q"), Message("assistant", "a")


def call(name, arguments, **rest):
    return {**rest, "type": "function", "function": {"name": name, "arguments": arguments}}


def assistant(*parts, **rest):
    return {"role": "assistant", "content": list(parts), **rest}


# ---- OpenAI


@pytest.fixture
def several():
    """All conversations of a row, and what was said of it."""

    def several(row):
        notes = []
        convert = converter(DataSource(path="rows.jsonl"), warn=lambda note, place: notes.append(note))
        return convert(Record(row, Place("rows.jsonl", 7))), notes

    return several


def test_a_whole_openai_row(convert):
    """With what its fine-tuning files hold: weights, names, parallel calls, results, tools."""
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    calls = [call("add", '{"a": 1}', id="c1"), call("add", '{"a": 2}', id="c2")]
    row = {
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "q"}], "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None, "weight": 0},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
            {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "3"}]},
            {"role": "assistant", "content": "a", "weight": 1, "function_call": None, "annotations": []},
        ],
        "tools": tools,
        "parallel_tool_calls": True,
    }
    found = convert(row)
    assert found.messages == (
        Message("system", "s"),
        Message("user", "q", name="ann"),
        Message("assistant", "", tool_calls=tuple(calls), weight=0.0),
        Message("tool", "2", tool_call_id="c1"),
        Message("tool", "3", tool_call_id="c2"),
        Message("assistant", "a", weight=1.0),
    )
    assert found.tools == tuple(tools)
    bare = [{"name": "add", "parameters": {}}]
    assert convert({"messages": [U, A], "functions": bare}).tools == tuple(bare)
    assert convert({"messages": [U, A], "functions": json.dumps(bare), "tools": None}).tools == tuple(bare)


@pytest.mark.parametrize("arguments", ['{"a": 1,  "b": [null]}', {"a": 1, "b": [None]}, "{}", {}])
def test_arguments_stay_as_they_are(convert, arguments):
    found = convert([U, {"role": "assistant", "content": "", "tool_calls": [call("f", arguments)]}])
    assert found.messages[1].tool_calls == (call("f", arguments),)


def test_a_refusal_is_a_reply(convert):
    for reply in (
        {"role": "assistant", "content": None, "refusal": "a"},
        {"role": "assistant", "content": "", "refusal": "a"},
        {"role": "assistant", "content": "a", "refusal": "a"},
        {"role": "assistant", "content": "a", "refusal": ""},
        assistant({"type": "refusal", "refusal": "a"}),
        assistant({"type": "output_text", "text": "a"}),
    ):
        assert convert([U, reply]).messages == (USER, REPLY)
    with pytest.raises(DataError, match="two texts for one message") as caught:
        convert([U, {**A, "refusal": "No."}])
    assert caught.value.found == 'message 2: content: "a"; refusal: "No."'


# ---- Anthropic


def test_a_whole_anthropic_row(convert):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    row = {
        "system": [{"type": "text", "text": "Be ", "cache_control": {}}, {"type": "text", "text": "brief."}],
        "tools": [{"name": "add", "description": "Adds.", "input_schema": schema}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            assistant(
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "Wait."},
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "t2", "name": "add", "input": {}},
            ),
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "2"},
                    {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "no"}],
                     "is_error": True},
                    {"type": "text", "text": "And now?"},
                ],
            },
            {"role": "assistant", "content": "a"},
        ],
    }  # fmt: skip
    found = convert(row)
    assert found.messages == (
        Message("system", "Be brief."),
        USER,
        Message("assistant", "Wait.", "hm", (call("add", {"a": 1}, id="t1"), call("add", {}, id="t2"))),
        Message("tool", "2", tool_call_id="t1"),
        Message("tool", "no", tool_call_id="t2"),
        Message("user", "And now?"),
        REPLY,
    )
    function = {"name": "add", "description": "Adds.", "parameters": schema}
    assert found.tools == ({"type": "function", "function": function},)


def test_a_result_that_failed_is_told():
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    failed = {"type": "tool_result", "tool_use_id": "t", "content": "no", "is_error": True}
    talk = [U, assistant(use), {"role": "user", "content": [failed]}, A]
    for row in ({"messages": talk}, {"prompt": talk[:3], "completion": talk[3:]}, {"chosen": talk}):
        notes = []
        convert = converter(DataSource(path="x"), warn=lambda note, place, notes=notes: notes.append(note))
        convert(Record(row, Place("x", 1)))
        assert notes == ["the mark `is_error` of a tool result is not used: the model sees its text alone"]
        notes.clear()
        failed["is_error"] = False
        convert(Record(row, Place("x", 1)))
        assert notes == []
        failed["is_error"] = True


def test_an_empty_result(convert):
    for result in ({}, {"content": None}, {"content": ""}, {"content": []}):
        part = {"type": "tool_result", "tool_use_id": "t", **result}
        use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
        messages = [U, assistant(use), {"role": "user", "content": [part]}, A]
        assert convert(messages).messages[2] == Message("tool", "", tool_call_id="t")


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "b"}], "thinking after the text"),
        (
            [{"type": "tool_use", "name": "f", "input": {}}, {"type": "text", "text": "a"}],
            "text after a tool call",
        ),
        (
            [{"type": "tool_call", "value": '{"name": "f"}'}, {"type": "reasoning", "value": "a"}],
            "after a tool call",
        ),
    ],
)
def test_parts_in_an_order_that_no_template_has(convert, parts, found):
    with pytest.raises(DataError, match="out of order") as caught:
        convert([U, assistant(*parts)])
    assert caught.value.found.startswith("message 2: ")
    assert found in caught.value.found


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "source": {}},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "input_audio", "input_audio": {}},
        {"type": "text"},
        {"type": None},
        {},
        None,
        3,
    ],
)
def test_what_is_no_text_is_refused(convert, part):
    with pytest.raises(DataError) as caught:
        convert([{"role": "user", "content": [part]}, A])
    assert caught.value.what == "a part of a message is not a text"
    assert "message 1" in caught.value.found


# ---- ShareGPT


def test_sharegpt_with_tools(convert):
    tools = [{"name": "add", "parameters": {"type": "object"}}]
    row = {
        "system": "s",
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"from": "observation", "value": '{"sum": 2}'},
            {"from": "gpt", "value": "a", "weight": 0.5},
        ],
        "tools": json.dumps(tools),
    }
    found = convert(row)
    assert found.messages == (
        Message("system", "s"),
        USER,
        Message("assistant", "", tool_calls=(call("add", {"a": 1}),)),
        Message("tool", '{"sum": 2}'),
        Message("assistant", "a", weight=0.5),
    )
    assert found.tools == tuple(tools)
    for nothing in ("", "[]", "null", None, []):
        assert convert({**row, "tools": nothing}).tools == ()


def test_parallel_calls_in_one_text(convert):
    calls = [{"name": "f", "arguments": {}}, {"name": "g", "arguments": "{}"}]
    found = convert([U, {"role": "Tool_Calls", "content": json.dumps(calls)}])
    assert found.messages[1].tool_calls == (call("f", {}), call("g", "{}"))


@pytest.mark.parametrize("role", ["function_call", "tool_call"])
def test_a_call_that_is_no_json_is_refused(convert, role):
    with pytest.raises(DataError, match="a tool call is a text but not JSON"):
        convert([U, {"role": role, "content": "f(x)"}])


def test_texts_in_turn(convert):
    found = convert({"conversations": ["q", "a", "r", "b"], "source": "x"}).messages
    assert [(m.role, m.content) for m in found] == [
        ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")
    ]  # fmt: skip
    with pytest.raises(DataError, match="the conversation ends with the user"):
        convert({"conversations": ["q", "a", "r"]})


def test_a_thought_in_tags_and_apart(several):
    def reply(content, **rest):
        return [U, {"role": "assistant", "content": content, **rest}]

    (made,), notes = several(reply("<think>\nr\n</think>\n\na", reasoning_content="r\n"))
    assert made.messages[1] == Message("assistant", "a", "r\n")
    assert notes == ["a thought stands in the tags of a reply and in its reasoning: it is trained once"]
    parts = [{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "<think>r</think>a"}]
    assert several(reply(parts))[0][0].messages[1] == Message("assistant", "a", "r")
    for row in (
        reply("<think>r</think>a", reasoning_content="other"),
        reply(parts, reasoning="other"),
        reply([*parts[:1], {"type": "text", "text": "a"}], reasoning="other"),
        reply([parts[0] | {"thinking": "other"}, parts[1]]),
    ):
        with pytest.raises(DataError, match="a message has two different thoughts") as caught:
            several(row)
        assert "other" in caught.value.found
        assert caught.value.fix == "keep one of them"
    assert several(reply("a</b>", reasoning="r")) == several(reply("a</b>", reasoning_content="r"))


@pytest.mark.parametrize(("row", "told"), [
    ([U, {"role": "assistant", "content": "<think>r"}], "never closed"),
    ([U, {"role": "assistant", "content": "r</think>a"}], "never opened"),
    ({"prompt": "q", "response": "r</think>a", "system": "s"}, "never opened"),
    ({"conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]}, "the picture"),
])  # fmt: skip
def test_what_is_odd_in_a_row_is_told(several, row, told):
    (note,) = several(row)[1]
    assert told in note
