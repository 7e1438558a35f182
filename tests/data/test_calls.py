"""Tool calls under the names that files give their parts, and results that answer them."""

import pytest

from imprint.data.conversation import Message
from imprint.errors import DataError

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
MADE = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def calling(*calls):
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


@pytest.mark.parametrize(
    "call",
    [
        {"name": "f", "arguments": {"x": 1}},
        {"name": "f", "parameters": {"x": 1}},
        {"type": "function", "function": {"name": "f", "args": {"x": 1}}},
        {"name": "f", "params": {"x": 1}, "arguments": None},
        {"name": "f", "arguments": {"x": 1}, "parameters": {"x": 1}, "type": "function"},
    ],
)
def test_arguments_under_other_names(convert, call):
    (made,) = convert([U, calling(call)]).messages[1].tool_calls
    assert made["function"]["name"] == "f"
    assert made["function"]["arguments"] == {"x": 1}
    assert made["type"] == "function"


def test_a_flat_call_keeps_its_id_where_results_look_for_it(convert):
    (made,) = convert([U, calling({"id": "c1", "name": "f", "arguments": {"x": 1}})]).messages[1].tool_calls
    assert made == {"id": "c1", **MADE}


@pytest.mark.parametrize(
    ("call", "key", "fix"),
    [
        ({"name": "f", "argumnets": {"x": 1}}, "argumnets", "rename argumnets to arguments"),
        ({"function": {"name": "f", "Arguments": "{}"}}, "Arguments", "rename Arguments to arguments"),
        ({"function": {"name": "f"}, "arguments": {"x": 1}}, "arguments", "move arguments into the object"),
        ({"name": "f", "arguments": {"x": 1}, "args": {"x": 2}}, "args", "keep one of arguments and args"),
        ({"name": "f", "args": {"x": 1}, "params": {"y": 2}}, "args", "rename args to arguments"),
        ({"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}, "parameters", "rename"),
        ({"name": "f", "description": "Adds.", "parameters": {"x": 1}}, "parameters", "rename"),
    ],
)
def test_arguments_that_would_be_lost_are_refused(convert, call, key, fix):
    with pytest.raises(DataError, match="a tool call has a key that is not read") as caught:
        convert([U, calling(call)])
    assert caught.value.found.startswith(f"message 2: {key}: ")
    assert caught.value.fix.startswith(fix)


def test_a_result_answers_a_call_that_waits_for_it(convert):
    def result(name):
        return {"role": "tool", "content": "1", "tool_call_id": name}

    one, two = {"id": "c1", **MADE}, {"id": "c2", **MADE}
    for talk in (
        [U, calling(one, two), result("c2"), result("c1"), A],
        [U, calling(one), result("c1"), calling(one), result("c1"), A],  # files that use one id again
        [U, calling(one), {"role": "tool", "content": "1"}, A],
        [U, calling(MADE), result("c1"), A],  # calls without ids
        [U, A, result("c1"), A],  # a call in the text of a reply
    ):
        assert len(convert(talk).messages) == len(talk)
    for talk, waiting in (
        ([U, calling(one), result("c9"), A], "c1"),
        ([U, calling(one), result("c1"), result("c1"), A], "none"),
        ([U, calling(one, two), result("c3"), A], "c1, c2"),
    ):
        with pytest.raises(DataError, match="a tool result answers no call") as caught:
            convert(talk)
        assert caught.value.found.endswith(f"calls without a result: {waiting}")


def test_messages_say_text_too(convert):
    talk = [{"from": "human", "text": "q"}, {"from": "gpt", "text": "a"}]
    expected = (Message("user", "q"), Message("assistant", "a"))
    for column in ("conversations", "conversation", "messages"):
        assert convert({column: talk}).messages == expected
    with pytest.raises(DataError, match="two texts for one message") as caught:
        convert([U, {**A, "text": "b"}])
    assert caught.value.fix == "keep one of them"


def test_a_call_without_arguments_may_have_an_empty_text(convert):
    for given in ("", "  "):
        (made,) = (
            convert([U, calling({"id": "c1", "name": "now", "arguments": given})]).messages[1].tool_calls
        )
        assert made == {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        ("{bad json", "the text of a tool call's arguments is a text but not JSON", "mend the text"),
        ("{'x': 1}", "the text of a tool call's arguments is a text but not JSON", "it is Python's own"),
        ('"{\\"x\\": 1}"', "the arguments of a tool call are no object", "they were written as JSON twice"),
        ("[1]", "the arguments of a tool call are no object", "write each argument under its name"),
        ("null", "the arguments of a tool call are no object", "write each argument under its name"),
        ([1], "the arguments of a tool call are no object", "write each argument under its name"),
        ('{"x": 1, "x": 2}', "a key stands twice in one object", "remove or rename one of them"),
        ('{"x": {"y": 1, "y": 2}}', "a key stands twice in one object", "remove or rename one of them"),
    ],
)
def test_arguments_that_no_server_could_read_are_refused(convert, arguments, what, fix):
    for call in ({"name": "f", "arguments": arguments}, {"function": {"name": "f", "arguments": arguments}}):
        with pytest.raises(DataError, match=what) as caught:
            convert([U, calling(call)])
        assert caught.value.where == "rows.jsonl:7"
        assert caught.value.fix.startswith(fix)


@pytest.mark.parametrize("name", ["", " "])
def test_a_call_has_a_name(convert, name):
    with pytest.raises(DataError, match="a tool call has no name"):
        convert([U, calling({"function": {"name": name, "arguments": "{}"}})])


def test_a_key_that_stands_twice_in_a_json_text_of_a_row_is_refused(convert):
    text = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "content": "b"}]'
    with pytest.raises(DataError, match="a key stands twice in one object") as caught:
        convert({"messages": text})
    assert caught.value.found.startswith('two keys "content" in the list of messages')
