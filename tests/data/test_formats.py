import importlib.util
import json
from pathlib import Path

import pytest

from imprint.data.conversation import Conversation, Message, Place, Record
from imprint.data.formats import FORMATS, converter, explain, is_row, merge_replies
from imprint.data.message_keys import FLAGS, WEIGHT_KEYS
from imprint.data.split import has_trained
from imprint.errors import DataError, RecipeError
from imprint.recipe import DataSource

USER, REPLY = Message("user", "q"), Message("assistant", "a")
OPENAI = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": {"x": {"default": None}}}},
    {"name": "g"},
]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("messages", {"messages": OPENAI}),
        ("messages", {"messages": json.dumps(OPENAI)}),
        ("messages", OPENAI),
        ("messages", {"messages": SHAREGPT}),
        ("messages", {"messages": OPENAI, "prompt": "other", "response": "other", "extra": [1]}),
        ("sharegpt", {"conversations": SHAREGPT}),
        ("sharegpt", {"conversations": OPENAI, "system": ""}),
        ("alpaca", {"instruction": "q", "input": "", "output": "a"}),
        ("alpaca", {"instruction": "q", "input": None, "output": "a", "history": []}),
        ("instruction_output", {"instruction": "q", "output": "a"}),
        ("prompt_response", {"prompt": "q", "response": "a"}),
        ("prompt_completion", {"prompt": "q", "completion": "a"}),
        ("prompt_completion", {"prompt": OPENAI[:1], "completion": OPENAI[1:]}),
        ("prompt_completion", {"prompt": OPENAI[:1], "completion": "a"}),
        ("question_answer", {"question": "q", "answer": "a", "source": "x", "tools": None}),
        ("dolly", {"instruction": "q", "context": "", "response": "a", "category": "open_qa"}),
        ("dolly", {"instruction": "q", "response": "a"}),
        ("conversation", {"conversation": SHAREGPT}),
        ("conversation", {"conversation": [{"input": "q", "output": "a"}]}),
        ("dialog", {"dialog": OPENAI}),
        ("dialogue", {"dialogue": OPENAI}),
        ("chat", {"chat": json.dumps(OPENAI)}),
        ("items", {"items": SHAREGPT}),
        ("data", {"data": ["q", "a"]}),
        ("sharegpt", {"conversations": ["q", "a"]}),
        ("self_instruct", {"instruction": "q", "instances": [{"input": "", "output": "a"}]}),
        ("prompt_output", {"prompt": "q", "output": "a"}),
        ("prompt_answer", {"prompt": OPENAI[:1], "answer": "a"}),
        ("question_response", {"question": "q", "response": "a", "system_prompt": ""}),
        ("query_response", {"query": "q", "response": "a"}),
        ("query_answer", {"query": "q", "answer": "a"}),
        ("input_output", {"input": "q", "output": "a"}),
        ("input_response", {"input": "q", "response": "a"}),
        ("input_target", {"task": "t", "input": "q", "target": "a"}),
        ("inputs_targets", {"inputs": "q", "targets": "a", "task": "t"}),
        ("problem_solution", {"problem": "q", "solution": "a"}),
        ("problem_answer", {"problem": "q", "answer": "a"}),
        ("user_assistant", {"user": "q", "assistant": "a"}),
        ("human_assistant", {"human": "q", "assistant": "a"}),
        ("p3", {"inputs": [1], "inputs_pretokenized": "q", "targets": [2], "targets_pretokenized": "a"}),
        ("prompt_completion", {"prompt": "q", "completion": "a<|endoftext|>", "template": "t"}),
        *(
            (f"instruction_input_{reply}", {"instruction": "q", "input": "", reply: "a"})
            for reply in ("response", "answer", "completion", "target")
        ),
        *(
            (f"instruction_{reply}", {"instruction": "q", reply: "a"})
            for reply in ("answer", "completion", "target")
        ),
        ("messages_chosen", {"messages": OPENAI[:1], "chosen": OPENAI[1], "rejected": OPENAI[1]}),
        ("sharegpt_chosen", {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]}),
        ("preferred_output", {"input": {"messages": OPENAI[:1]}, "preferred_output": OPENAI[1:]}),
        ("chosen", {"chosen": OPENAI, "rejected": OPENAI}),
        ("chosen", {"prompt": "q", "chosen": "a", "rejected": "b"}),
        ("chosen", {"prompt": "q", "chosen": OPENAI[1:], "rejected": OPENAI[1:]}),
        ("chosen", {"prompt": "q", "chosen": OPENAI, "score": 3}),
        ("chosen", {"question": "q", "chosen": "a", "rejected": "b"}),
        ("chosen", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: no"}),
        ("chosen", {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a".strip(), "rejected": "b"}),
        ("text", {"text": "### Human: q### Assistant: a"}),
    ],
)
def test_every_format_gives_the_same_conversation(convert, format, row):
    expected = Conversation((USER, REPLY), Place("rows.jsonl", 7), id="rows.jsonl:7")
    assert convert(row) == expected
    assert convert(row, format=format) == expected


def test_every_format_is_tested():
    marks = test_every_format_gives_the_same_conversation.pytestmark
    here = {args[0] for args in marks[0].args[1]}
    there = {
        "oasst",
        "oasst_messages",
        "flan_cot",
        "bfcl",
        "xlam",
        "toolalpaca",
        "tau_bench",
    }  # test_shapes, test_trees
    there |= {f"tokens_{column}" for column in ("labels", "assistant_masks", "completion_mask", "loss_mask")}
    assert here | there == {format.name for format in FORMATS}
    assert not here & there


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_the_example_of_every_format_is_of_it(format):
    place = Place("rows.jsonl", 7)
    found = explain(format.example, place)
    assert (found.format, found.ignored) == (format.name, ())
    assert is_row(format.example)
    if format.name != "oasst_messages":
        (made,) = converter(DataSource(path="x"))(Record(format.example, place))
        assert has_trained(made)
        assert merge_replies(made) is made


def test_the_page_of_the_formats_is_up_to_date():
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("write_docs", root / "tools" / "write_docs.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = (root / "docs" / "formats.md").read_text(encoding="utf-8")
    assert page == tool.formats_page(), "run: python tools/write_docs.py formats.md"
    assert all(f"| `{format.name}` |" in page for format in FORMATS)


def test_the_page_tells_the_truth_of_the_flags_of_messages(convert):
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    table = [line.strip("| ").split(" | ") for line in page.split("| key of a message |")[1].splitlines()[2:]]
    assert {cells[0].strip("`") for cells in table} == {*FLAGS, *WEIGHT_KEYS}
    for key, context, trained in table:
        key, context = key.strip("`"), json.loads(context.strip("`"))
        trained = json.loads(trained.strip("`")) if trained.startswith("`") else 0.5
        for value, weight in ((context, 0.0), (trained, 0.5 if trained == 0.5 else 1.0)):
            reply = convert([OPENAI[0], {**OPENAI[1], key: value}]).messages[1]
            assert (key, value, reply.weight) == (key, value, weight)


def test_alpaca_input_system_and_history(convert):
    row = {
        "instruction": "Sort.",
        "input": "2 1",
        "output": "1 2",
        "system": "Be brief.",
        "history": [["hi", "hello"], ["how?", "well"]],
    }
    assert [(message.role, message.content) for message in convert(row).messages] == [
        ("system", "Be brief."),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "how?"),
        ("assistant", "well"),
        ("user", "Sort.\n\n2 1"),
        ("assistant", "1 2"),
    ]


def test_earlier_turns_in_any_pair_of_columns(convert):
    for row in (
        {"query": "q", "response": "a"}, {"instruction": "q", "response": "a"}, {"instruction": "q", "answer": "a"},
        {"instruction": "q", "input": "", "target": "a"}, {"prompt": "q", "chosen": "a"},
    ):  # fmt: skip
        said = [message.content for message in convert(row | {"history": [["hi", "hello"]]}).messages]
        assert said == ["hi", "hello", "q", "a"]
        with pytest.raises(DataError, match="`history` cannot be read"):
            convert(row | {"history": "Founded in 1900."})
        for empty in ([], "", "[]", " ", None):
            assert len(convert(row | {"history": empty}).messages) == 2
        text = '[["hi", "hello"]]'  # of a table
        assert [message.content for message in convert(row | {"history": text}).messages] == said
        with pytest.raises(DataError, match="`history` is a text but not JSON"):
            convert(row | {"history": '[["hi", "hel'})


@pytest.mark.parametrize("column", ["conversations", "conversation", "dialog", "dialogue", "chat", "data"])
def test_texts_in_turn_are_a_conversation(convert, column):
    talk = convert({column: ["q", "a", "q", "b"], "source": "web"}).messages
    assert [(one.role, one.content) for one in talk] == [
        ("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", "b"),
    ]  # fmt: skip
    with pytest.raises(DataError, match="the conversation ends with the user"):
        convert({column: ["q", "a", "q"]})


def test_texts_of_a_talk_that_a_column_beside_ends_are_no_conversation(convert):
    for beside in ({"summary": "s"}, {"response": "r"}):
        with pytest.raises(DataError, match="the columns fit a format, but their values do not"):
            convert({"dialogue": ["q", "a"], **beside})
    with pytest.raises(DataError, match="the columns fit a format, but their values do not"):
        convert({"items": ["q", "a"]})  # a name of much else


def test_row_level_columns(convert):
    found = convert({"prompt": "q", "response": "a", "tools": TOOLS, "weight": 0.5, "id": 12, "system": "s"})
    assert (found.tools, found.weight, found.id) == (tuple(TOOLS), 0.5, "12")
    assert found.messages[0] == Message("system", "s")
    assert convert({"messages": OPENAI, "tools": json.dumps(TOOLS)}).tools == tuple(TOOLS)
    assert convert({"prompt": "q", "response": "a", "weight": "2"}).weight == 2.0  # from CSV
    for empty in ("", " "):
        assert convert({"prompt": "q", "response": "a", "weight": empty}).weight == 1.0
    system = [{"role": "system", "content": "s"}]
    assert convert({"messages": system + OPENAI, "system": "s"}) == convert(
        {"messages": OPENAI, "system": "s"}
    )


def test_tool_schemas_come_back_verbatim(write, records, convert):
    schemas = [
        [{"name": "f", "parameters": {"a": {"type": "string"}}}],
        [{"name": "g", "parameters": {"b": {"x": None}}}],
    ]
    rows = [{"messages": OPENAI, "tools": tools} for tools in schemas]
    for path in (write("a.jsonl", rows), write("a.json", json.dumps(rows))):
        assert [list(convert(record.value).tools) for record in records(path)] == schemas


def test_roles_have_many_names(convert):
    talk = [("developer", "s"), ("Human", "q"), ("model", "a"), ("USER", "q"), ("bot", "a")]
    found = convert([{"role": role, "content": content} for role, content in talk])
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_content_parts_and_reasoning(convert):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}, "c"]
    thought = [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "abc"}]
    expected = Message("assistant", "abc", reasoning="hm")
    for reply in (
        {"content": parts, "reasoning_content": "hm"},
        {"content": "abc", "reasoning": "hm", "thinking": None},
        {"content": "abc", "thinking": "hm"},
        {"content": thought},
    ):
        assert convert([OPENAI[0], {"role": "assistant", **reply}]).messages[1] == expected


def test_tool_calls_and_results(convert):
    result = {"role": "tool", "content": "4", "name": "f", "tool_call_id": "c1"}
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    found = convert([OPENAI[0], call, result, OPENAI[1]]).messages
    assert found[1] == Message("assistant", "", tool_calls=(CALL,))
    assert found[2] == Message("tool", "4", name="f", tool_call_id="c1")
    flat = {"name": "f", "arguments": {"x": 1}}
    wrapped = ({"type": "function", "function": flat},)
    for row in (
        [OPENAI[0], {"role": "assistant", "content": "", "tool_calls": [flat]}, OPENAI[1]],
        [OPENAI[0], {"role": "assistant", "content": None, "function_call": flat}, OPENAI[1]],
        [
            OPENAI[0],
            {"role": "assistant", "content": [{"type": "tool_call", "value": json.dumps(flat)}]},
            OPENAI[1],
        ],
        {"conversations": [SHAREGPT[0], {"from": "function_call", "value": json.dumps(flat)}, SHAREGPT[1]]},
    ):
        assert convert(row).messages[1].tool_calls == wrapped
    orphan = convert([OPENAI[0], {"role": "observation", "content": "4"}, OPENAI[1]])
    assert orphan.messages[1].role == "tool"


def test_message_weights(convert):
    for given, weight in [
        ({"weight": 0}, 0.0),
        ({"loss_weight": 0.5}, 0.5),
        ({"train": False}, 0.0),
        ({"train": True}, 1.0),
        ({"train": True, "weight": 1}, 1.0),
        ({"weight": None}, None),
        ({}, None),
    ]:
        found = convert([{**OPENAI[0], "weight": 0}, {**OPENAI[1], **given}]).messages[1].weight
        assert found == weight
        assert type(found) is type(weight)


def test_orders_that_are_allowed(convert):
    a, u, s, t = OPENAI[1], OPENAI[0], {"role": "system", "content": "s"}, {"role": "tool", "content": ""}
    for talk in ([u, u, a], [a, u, a], [s, a, u, a], [s, u, t, a], [u, a, a], [u, a, u, a]):
        assert len(convert(talk).messages) == len(talk)


def message(role="assistant", **rest):
    return [OPENAI[0], {"role": role, **rest}]


BAD = [
    # replies
    ({"prompt": "q", "response": ""}, "the reply is empty", 'column response: ""', "write the response"),
    ({"prompt": "q", "response": " \n"}, "the reply is empty", r'" \n"', "remove the row"),
    ({"instruction": "q", "output": None}, "the reply is empty", "column output: null", "write the output"),
    ({"prompt": "q", "completion": []}, "the reply is empty", "[]", "write the completion"),
    (message(content="\t"), "the reply is empty", "message 2 (assistant)", "write the reply"),
    (message(content="", reasoning="hm"), "the reply is empty", "beside a reasoning", "write the reply"),
    ({"question": "  ", "answer": "a"}, "the prompt is empty", "column question", "write the question"),
    (
        [{"role": "user", "content": ""}, OPENAI[1]],
        "the prompt is empty",
        "message 1 (user)",
        "write the prompt",
    ),
    # content
    (message(), "a message has no content", "message 2", "give it a text"),
    (message(content=None), "a message has no content", "null", "remove the message"),
    (message(content=42), "the content of a message is not a text", "message 2: 42", "double quotes"),
    (
        message(content={"text": "a"}),
        "the content of a message is not a text",
        "message 2: {",
        "double quotes",
    ),
    (
        message(content=[{"type": "image_url", "image_url": "x"}]),
        "a part of a message is not a text",
        "image_url",
        "remove",
    ),
    (message(content="a", reasoning=["x"]), "the reasoning is not a text", '["x"]', "one text"),
    ({"question": "q", "answer": 42}, "a column is not a text", "answer: 42", "double quotes"),
    (
        {"question": "q", "answer": float("nan")},
        "a column is not a text",
        "answer: NaN",
        "if the cell is empty",
    ),
    ({"question": "q", "answer": b"a"}, "a column is not a text", "bytes", 'value.decode("utf-8")'),
    (message(content=b"a"), "the content of a message is not a text", "bytes", 'value.decode("utf-8")'),
    (
        {"messages": str(OPENAI)},
        "the list of messages is a text but not JSON",
        "{'role'",
        "in single quotes: write the column with json.dumps",
    ),
    ({"instruction": "q", "input": 1, "output": "a"}, "a column is not a text", "input: 1", "double quotes"),
    ({"prompt": "q", "response": "a", "system": 1}, "a column is not a text", "system: 1", "double quotes"),
    # order
    ({"messages": []}, "the list of messages is empty", "[]", "remove the row"),
    (OPENAI[:1], "there is no reply", "1 messages: user", "add the reply"),
    ([*OPENAI, OPENAI[0]], "the conversation ends with the user", 'message 3 (user): "q"', "add the reply"),
    (
        [*OPENAI, {"role": "tool", "content": "x"}],
        "the conversation ends with a tool message",
        "message 3",
        "remove what",
    ),
    (OPENAI[1:], "no reply follows a prompt", "1 messages: assistant", "add the prompt"),
    (
        [*OPENAI, {"role": "system", "content": "s"}, *OPENAI],
        "a system message is not at the front",
        "message 3",
        "front",
    ),
    # roles and shapes
    (message("asistant", content="a"), "unknown role", 'message 2: "asistant"', 'write "assistant"'),
    (message(None, content="a"), "unknown role", "message 2: null", "one of these roles"),
    (
        [{"rol": "user", "content": "q"}],
        "a message has no role",
        "message 1 has keys rol",
        "rename rol to role",
    ),
    ({"messages": ["hi"]}, "a message is not an object", 'message 1: "hi"', "with its role"),
    ({"messages": {"role": "user"}}, "the messages are not a list", "{", "write ["),
    ({"messages": "hi"}, "the list of messages is a text but not JSON", "hi", "mend"),
    ("hi", "the row is a text alone: a prompt without a reply", '"hi"', "named columns"),
    (3, "the row is not an object", "3", "named columns"),
    # tools
    (
        message(content="a", tool_calls=[{"function": "f"}]),
        "a tool call cannot be read",
        "message 2",
        "this form",
    ),
    (message(content="a", tool_calls=[3]), "a tool call cannot be read", "[3]", "this form"),
    (message("function_call", content="{"), "a tool call is a text but not JSON", "{", "mend"),
    ({"messages": OPENAI, "tools": "[{]"}, "`tools` is a text but not JSON", "[{]", "mend"),
    ({"messages": OPENAI, "tools": {"name": "f"}}, "`tools` is not a list of objects", "{", "list"),
    # weights
    ({"messages": OPENAI, "weight": -1}, "the weight is negative", "weight: -1", "remove it"),
    ({"messages": OPENAI, "weight": "high"}, "the weight is not a number", '"high"', "weight: 1"),
    ({"messages": OPENAI, "weight": True}, "the weight is not a number", "true", "weight: 1"),
    ({"messages": OPENAI, "weight": float("nan")}, "the weight is not a number", "NaN", "weight: 1"),
    ({"messages": OPENAI, "weight": float("inf")}, "the weight is not a number", "Infinity", "weight: 1"),
    (message(content="a", loss_weight=-0.5), "the weight is negative", "loss_weight: -0.5", "remove it"),
    (message(content="a", train=1), "`train` is neither true nor false", "message 2: 1", "true or false"),
    (message(content="a", train=True, weight=0), "two weights for one message", "message 2", "keep one"),
    (
        [{**OPENAI[0], "weight": 1}, OPENAI[1]],
        "a weight on a message that is not a reply",
        "message 1 (user)",
        "remove it",
    ),
    # columns
    (
        {"mesages": OPENAI},
        "the columns are of no known format",
        "columns mesages",
        "rename mesages to messages",
    ),
    ({"x": 1, "y": 2}, "the columns are of no known format", "columns x, y", "data.0.fields.prompt=COLUMN"),
    ({"prompt": "q"}, "the row is a prompt without a reply", "columns prompt", "fields.response="),
    (
        {"instruction": "q", "input": "x"},
        "the row is a prompt without a reply",
        "columns instruction",
        "remove",
    ),
    (
        {"instructor": "q", "resp": "a"},
        "the columns are of no known format",
        "instructor",
        "name your columns",
    ),
    (
        {"prompt": "q", "respnse": "a"},
        "the columns are of no known format",
        "prompt, respnse",
        "respnse to response",
    ),
    (
        {"Question": "q", "Answer": "a"},
        "the columns are of no known format",
        "Question",
        "rename Answer to answer",
    ),
    (
        {"path": "a", "yaml": "b"},
        "the columns are of no known format",
        "columns path, yaml",
        "name your columns",
    ),
    ({}, "the columns are of no known format", "columns none", "data.0.fields.prompt"),
    (
        {"prompt": "q", "response": "a", "completion": "b"},
        "the columns fit several formats",
        "response, completion",
        "data.0.format=prompt_response",
    ),
    (
        {"messages": [{"role": "system", "content": "s"}, *OPENAI], "system": "t"},
        "the row has two system texts",
        'system: "t"; message 1 (system): "s"',
        "remove the other",
    ),
    ({"instruction": "q", "output": "a", "history": 3}, "`history` cannot be read", "3", "this form"),
    (
        message(content=[{"type": {"text": "a"}}]),
        "a part of a message is not a text",
        "message 2",
        "remove the part",
    ),
    (
        {"instruction": "q", "output": "a", "history": [["x"]], "input": ""},
        "`history` cannot be read",
        '["x"]',
        "this form",
    ),
]


@pytest.mark.parametrize(("row", "reason", "found", "fix"), BAD, ids=lambda value: None)
def test_bad_rows_say_where_what_and_how_to_mend(convert, row, reason, found, fix):
    with pytest.raises(DataError) as caught:
        convert(row)
    error = caught.value
    assert (error.what, error.where) == (reason, "rows.jsonl:7")
    assert found in error.found
    assert fix in error.fix
    assert error.expected


def test_unknown_role_lists_the_roles(convert):
    with pytest.raises(DataError) as caught:
        convert(message("robot", content="a"))
    assert all(
        role in caught.value.expected for role in ("system", "user", "assistant", "tool", "developer", "gpt")
    )


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"text_in": "q", "gold": "a"}, {"prompt": "text_in", "response": "gold"}),
        ({"response": "q", "prompt": "a"}, {"prompt": "response", "response": "prompt"}),
        ({"instruction": "q", "output": "no", "gold": "a"}, {"prompt": "instruction", "response": "gold"}),
        ({"instruction": "no", "output": "no", "x": "q", "y": "a"}, {"prompt": "x", "response": "y"}),
        ({"prompt": "q", "response": "no", "better": "a"}, {"response": "better"}),
        ({"prompt": "q", "completion": "a"}, {"response": "completion"}),
        ({"chat": OPENAI}, {"messages": "chat"}),
        ({"messages": "no", "x": "q", "y": "a"}, {"question": "x", "answer": "y"}),
    ],
)
def test_fields_name_the_columns(convert, row, fields):
    assert convert(row, fields=fields).messages == (USER, REPLY)


def test_fields_reach_weight_and_id(convert):
    row = {"prompt": "q", "response": "a", "score": 3, "key": "k"}
    found = convert(row, fields={"weight": "score", "id": "key"})
    assert (found.weight, found.id) == (3.0, "k")


def test_a_field_that_is_not_there_names_the_nearest_column(convert):
    with pytest.raises(DataError, match="is missing") as caught:
        convert({"question_text": "q", "gold": "a"}, fields={"prompt": "question_txt", "response": "gold"})
    assert "question_text, gold" in caught.value.found
    assert caught.value.fix == "data.0.fields.prompt=question_text"


def test_a_bad_row_is_told_with_the_users_columns(convert):
    with pytest.raises(DataError, match="the reply is empty") as caught:
        convert({"ask": "q", "gold": ""}, fields={"prompt": "ask", "response": "gold"})
    assert "by data.0.fields, prompt = ask, response = gold" in caught.value.found


def test_unknown_names_in_the_recipe_are_errors():
    with pytest.raises(RecipeError) as caught:
        converter(DataSource(path="x", format="sharegtp"), "data.3")
    assert caught.value.where == "data.3.format"
    assert caught.value.fix == "data.3.format=sharegpt"
    with pytest.raises(RecipeError) as caught:
        converter(DataSource(path="x", fields={"promt": "a"}), "data.3")
    assert caught.value.where == "data.3.fields.promt"
    assert caught.value.fix == "data.3.fields.prompt=a"


def test_a_forced_format_needs_its_columns(convert):
    with pytest.raises(DataError, match="not of the format question_answer") as caught:
        convert({"question": "q", "anser": "a"}, format="question_answer")
    assert "rename anser to answer" in caught.value.fix
    both = {"messages": "x", "prompt": "q", "response": "a"}
    assert convert(both, format="prompt_response").messages == (USER, REPLY)


def test_in_a_table_that_mixes_shapes_empty_columns_are_absent():
    """CSV has no nulls, and Parquet gives every row the columns of all."""
    convert = converter(DataSource(path="rows.csv"))
    columns = ("instruction", "input", "output", "messages", "text")
    chat = json.dumps([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}])
    for given, roles in (
        ({"instruction": "Name it.", "input": "x", "output": "y"}, ["user", "assistant"]),
        ({"messages": chat}, ["user", "assistant"]),
        ({"text": "A book."}, ["text"]),
    ):
        for nothing in ("", None):
            row = dict.fromkeys(columns, nothing) | given
            (made,) = convert(Record(row, Place("rows.csv", 2)))
            assert [message.role for message in made.messages] == roles
    with pytest.raises(DataError, match="the reply is empty"):  # of one format alone it stays what it is
        convert(Record({"instruction": "Name it.", "input": "x", "output": ""}, Place("rows.csv", 2)))


@pytest.mark.parametrize("column", ["image", "images", "audios", "Video"])
def test_a_row_with_a_picture_is_refused(column):
    convert = converter(DataSource(path="rows.jsonl"))
    row = {"prompt": "<image> What is this?", "response": "A walrus.", column: ["walrus.jpg"]}
    with pytest.raises(DataError, match="the row holds more than text"):
        convert(Record(row, Place("rows.jsonl", 1)))
    (made,) = convert(Record(row | {column: []}, Place("rows.jsonl", 1)))  # of a table, none here
    assert made.messages[-1].content == "A walrus."
