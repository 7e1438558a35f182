"""Formats whose rows are more than a list of messages or a pair of texts."""

import json

import pytest

from imprint.data.conversation import TEXT, Message, Place, Record, Tokens
from imprint.data.formats import converter
from imprint.errors import DataError
from imprint.recipe import DataSource

USER, REPLY = Message("user", "q"), Message("assistant", "a")
ADD = {
    "name": "add",
    "parameters": {"type": "dict", "required": ["a"], "properties": {"a": {"type": "integer"}}},
}


@pytest.fixture
def several():
    """All conversations of a row, and what was said about what is not used."""

    def several(row, **source):
        notes = []
        convert = converter(
            DataSource(path="rows.jsonl", **source), warn=lambda note, place: notes.append(note)
        )
        return convert(Record(row, Place("rows.jsonl", 7))), notes

    return several


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def reason(several, row, **source):
    with pytest.raises(DataError) as caught:
        several(row, **source)
    error = caught.value
    assert error.where == "rows.jsonl:7"
    assert error.found
    assert error.expected
    assert error.fix
    return error.what


# ---- instructions


def test_dolly_puts_the_context_behind_the_instruction(convert):
    row = {"instruction": "Who?", "context": "Emma is by Jane.", "response": "Jane.", "category": "closed_qa"}
    assert convert(row).messages == (
        Message("user", "Who?\n\nEmma is by Jane."),
        Message("assistant", "Jane."),
    )


def test_an_instruction_or_its_input_alone_is_the_prompt(convert):
    for row, reply in (({"input": "x", "output": "y"}, "y"), ({"context": "x", "response": "y"}, "y")):
        second = next(iter(row))
        for nothing in ("", " \n"):
            assert [m.content for m in convert({"instruction": nothing, **row}).messages] == ["x", reply]
            assert convert({"instruction": "q", **row, second: nothing}).messages[0].content == "q"
            with pytest.raises(DataError, match="the prompt is empty"):
                convert({"instruction": nothing, **row, second: ""})
        with pytest.raises(DataError, match="a column is not a text"):
            convert({"instruction": "q", **row, second: 0})


def test_self_instruct_instances_are_conversations_of_one_group(several):
    instances = [{"input": "", "output": "a"}, {"input": "x", "output": "b"}]
    row = {"id": "seed_1", "instruction": "q", "instances": instances, "is_classification": False}
    first, second = several(row)[0]
    assert first.messages == (USER, REPLY)
    assert second.messages == (Message("user", "q\n\nx"), Message("assistant", "b"))
    assert (first.id, second.id) == ("seed_1", "seed_1/2")
    assert first.group == second.group != ""
    assert several({**row, "instances": instances[:1]})[0][0].group == ""  # alone, its prompt is enough


@pytest.mark.parametrize("instances", [[], "x", [1], [{"input": ""}], [{"input": "", "output": ""}]])
def test_bad_instances(several, instances):
    told = reason(several, {"instruction": "q", "instances": instances})
    assert told in ("`instances` cannot be read", "the reply is empty")


def test_a_bad_instance_of_several_is_named(several):
    good = {"input": "x", "output": "a"}
    for bad, found, fix in (
        ({"input": "y", "output": ""}, "column output", "write the output or remove this instance"),
        ({"input": "y", "output": 3}, "output: 3, a number", "write it in double quotes"),
        ({"input": "y"}, '{"input": "y"}', "write them in this form or remove the row"),
    ):
        with pytest.raises(DataError) as caught:
            several({"instruction": "q", "instances": [good, good, bad, good]})
        assert caught.value.found.startswith(f"instance 3 of 4: {found}")
        assert caught.value.fix == fix


def test_flan_s_rationale_comes_before_its_answer(convert):
    expected = (
        Message("user", "Is it?\nOptions:\n- yes"),
        Message("assistant", "Ice\nis cold. The answer is yes."),
    )
    cells = ("Is it?\\nOptions:\\n- yes", "yes", "Ice\\nis cold.")
    assert convert(dict(zip(("question", "answer", "rationale"), cells, strict=True))).messages == expected
    named = {"a": cells[0], "b": cells[1], "c": cells[2]}
    fields = {"question": "a", "answer": "b", "rationale": "c"}
    assert convert(named, fields=fields).messages == expected
    assert convert({**named, "c": " "}, fields=fields).messages[1].content == "yes"  # nothing is invented


def test_other_tables_without_a_header_are_refused(several, convert):
    assert reason(several, {"0": "q", "1": "a"}) == "the columns have no names"
    assert convert({"0": "q", "1": "a"}, fields={"prompt": "0", "response": "1"}).messages == (USER, REPLY)


def test_a_rendered_text_beside_an_alpaca_row_is_said_to_be_unused(several):
    row = {"instruction": "q", "input": "", "output": "a", "text": "### Instruction: q ### Response: a"}
    (made,), notes = several(row)
    assert made.messages == (USER, REPLY)
    assert notes == ["the column `text` is not used: it is no part of alpaca"]


def test_a_stop_mark_is_taken_off_the_end_only(several):
    (made,), notes = several({"prompt": "q", "completion": "a <|endoftext|> b<|endoftext|>"})
    assert made.messages[1].content == "a <|endoftext|> b"
    assert notes == ["<|endoftext|> at the end of a reply is taken off: it is a stop, not text"]
    assert reason(several, {"prompt": "q", "completion": "<|endoftext|>"}) == "the reply is empty"


def test_a_column_that_belongs_to_the_prompt_is_not_left_out_silently(several):
    assert several({"question": "q", "answer": "a", "choices": ["x"], "context": ""})[1] == [
        "the column `choices` is not used: it is no part of question_answer"
    ]
    assert several({"question": "q", "answer": "a", "subject": "x"})[1] == []


def test_the_text_of_an_instance_that_is_not_used_is_told(several):
    instance = {"instruction_with_input": "q x", "input": "x", "constraints": "No y.", "output": "a"}
    (made,), notes = several({"instruction": "q", "instances": [instance]})
    assert made.messages == (Message("user", "q\n\nx"), REPLY)
    assert notes == ["the key `constraints` of an instance is not used"]


# ---- turns of {input, output}


def test_the_system_text_of_the_first_turn(several):
    first, later = {"system": "s", "input": "q", "output": "a"}, {"input": "q", "output": "a"}
    for row in ([first, later], [first, {**later, "system": "s"}], [first, {**later, "system": ""}]):
        (made,), notes = several({"conversation": row})
        assert made.messages == (Message("system", "s"), USER, REPLY, USER, REPLY)
        assert notes == []
    assert several({"conversation": [later], "system": "s"})[0][0].messages[0] == Message("system", "s")
    assert several({"conversation": [{**later, "need_eos_token": True, "context": ""}]})[0][0].messages == (
        USER, REPLY
    )  # fmt: skip


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"system": "t"}, "a turn has a system text of its own"),
        ({"context": "c"}, "a turn has a key that is not read"),
        ({"sytem": "s"}, "a turn has a key that is not read"),
        ({"System": "s"}, "a turn has a key that is not read"),
        ({"system": 3}, "a column is not a text"),
    ],
)
def test_text_of_a_turn_that_would_be_lost(several, second, told):
    turn = {"input": "q", "output": "a"}
    assert reason(several, {"conversation": [{"system": "s", **turn}, {**turn, **second}]}) == told


# ---- preferences


def test_the_chosen_side_of_a_dialogue_with_marks(several):
    chosen = "\n\nHuman: q\n\nAssistant: a\n\nb\n\nHuman: r: s\n\nAssistant: c"
    (made,), notes = several({"chosen": chosen, "rejected": "\n\nHuman: q\n\nAssistant: no"})
    assert made.messages == (
        USER, Message("assistant", "a\n\nb"), Message("user", "r: s"), Message("assistant", "c")
    )  # fmt: skip
    assert notes == ["of a preference, the chosen side alone is trained"]


def test_a_prompt_in_marks_of_its_own_and_a_system_text(convert):
    row = {"prompt": "\n\nHuman: x\n\nAssistant: y\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"}
    assert [message.content for message in convert(row).messages] == ["x", "y", "q", "a"]
    row = {"system": "s", "question": "q", "chosen": "a", "rejected": "b"}
    assert [message.role for message in convert(row).messages] == ["system", "user", "assistant"]


def test_of_labelled_replies_those_that_are_not_wanted_are_refused(several):
    row = {"prompt": "q", "completion": "a"}
    assert several({**row, "label": True})[0][0].messages == (USER, REPLY)
    assert reason(several, {**row, "label": False}) == "the label says that this reply is not wanted"


def test_bad_preferences(several):
    assert reason(several, {"chosen": "a", "rejected": "b"}) == "the chosen reply has no prompt"
    assert reason(several, {"prompt": "q", "chosen": " ", "rejected": "b"}) == "the reply is empty"
    assert reason(several, {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "b"}) == "the reply is empty"


# ---- documents and ids


def test_a_text_alone_is_a_document(several):
    (made,), notes = several({"text": "Once\nupon a time.", "url": "x", "id": 3})
    assert (made.messages, made.id, made.is_chat, notes) == (
        (Message(TEXT, "Once\nupon a time."),),
        "3",
        False,
        [],
    )
    assert reason(several, {"text": " \n"}) == "the text is empty"


def test_a_text_that_is_no_document_is_refused_unless_it_is_said_to_be_one(several):
    rendered = {"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>"}
    assert reason(several, rendered) == "the text is a conversation that was rendered already"
    assert several(rendered, format="text")[0][0].messages == (Message(TEXT, rendered["text"]),)
    labelled = {"text": "Good film.", "label": "positive"}
    assert reason(several, labelled) == "the row is a text with a label or a reply beside it"
    assert (
        reason(several, {"text": "q", "response": "a"})
        == "the row is a text with a label or a reply beside it"
    )
    fields = {"prompt": "text", "response": "label"}
    assert several(labelled, fields=fields)[0][0].messages[1].content == "positive"


def test_guanaco_s_text_is_a_conversation(convert):
    found = convert({"text": "### Human: q### Assistant: a ### b\n### Human: r### Assistant: c"}).messages
    assert [message.content for message in found] == ["q", "a ### b", "r", "c"]
    assert [message.role for message in found] == ["user", "assistant"] * 2


def test_tokenised_rows(several):
    (made,), _ = several({"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [1, 1, 1]})
    assert (made.tokens, made.messages, made.is_chat) == (Tokens((5, 6, 7), (0.0, 1.0, 1.0)), (), False)
    for column in ("assistant_masks", "completion_mask", "loss_mask"):
        assert several({"input_ids": [5, 6, 7], column: [0, 1, 0]})[0][0].tokens == Tokens(
            (5, 6, 7), (0.0, 1.0, 0.0)
        )
        assert several({"input_ids": [5, 6], column: [False, True]})[0][0].tokens.weights == (0.0, 1.0)
    both = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert several({**both, "input_ids": [1], "labels": [1]})[0][0].messages == (USER, REPLY)


def test_padding_is_taken_away(several):
    row = {
        "input_ids": [0, 0, 5, 6, 0],
        "labels": [-100, -100, -100, 6, -100],
        "attention_mask": [0, 0, 1, 1, 0],
    }
    (made,), notes = several(row)
    assert made.tokens == Tokens((5, 6), (0.0, 1.0))
    assert notes == ["padding, which the attention_mask says is none of the row, is taken away"]
    for mask in ([0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [1, 1], [0] * 5):
        assert reason(several, row | {"attention_mask": mask}) == "the attention mask is not that of the ids"


@pytest.mark.parametrize(
    ("beside", "packed"),
    [
        ({"position_ids": [0, 1, 0]}, True), ({"position_ids": [0, 1, 2]}, False), ({"seq_lens": [2, 1]}, True),
        ({"seq_lens": [3]}, False), ({"cu_seqlens": [0, 2, 3]}, True), ({"cu_seqlens": [0, 3]}, False),
        ({"seq_lens": 3, "position_ids": None}, False),
        ({"position_ids": [0, 0, 1], "attention_mask": [0, 1, 1]}, False),
    ],
)  # fmt: skip
def test_several_examples_in_one_row_of_ids_would_see_each_other(several, beside, packed):
    row = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], **beside}
    if packed:
        assert reason(several, row) == "the row is several examples packed into one"
    else:
        assert sum(several(row)[0][0].tokens.weights) == 2


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"input_ids": [5, 6], "labels": [6, -100]}, "a label is not that of its id"),  # shifted
        ({"input_ids": [5, 6], "loss_mask": [0, 2]}, "a label is not that of its id"),
        ({"input_ids": [5, 6], "labels": [5]}, "ids and labels differ in number"),
        ({"input_ids": [5, 6], "labels": [-100, -100]}, "no id is learned"),
        ({"input_ids": [5, -6], "labels": [5, -6]}, "the ids are empty or negative"),
        ({"input_ids": [], "labels": []}, "the ids are empty or negative"),
        ({"input_ids": ["5"], "labels": [5]}, "a column is not a list of integers"),
        ({"input_ids": [1, 2], "labels": [True, 2]}, "a column is not a list of integers"),
        ({"input_ids": [5], "labels": 5}, "a column is not a list of integers"),
        ({"input_ids": [5, 6], "attention_mask": [1, 1]}, "the row does not say which ids are learned"),
    ],
)
def test_bad_tokenised_rows(several, row, told):
    assert reason(several, row) == told


# ---- calls of tools


def bfcl(**rest):
    return {"id": "simple_0", "question": [[{"role": "user", "content": "q"}]], "function": [ADD], **rest}


def test_bfcl_takes_the_first_accepted_value_of_each_argument(convert):
    truth = [
        {"add": {"a": [1, 2], "unit": ["", "m"], "in": [{"x": [3, 4], "y": [""]}], "of": [[{"z": [5]}], []]}}
    ]
    found = convert(bfcl(ground_truth=truth))
    assert found.messages == (
        USER, Message("assistant", "", tool_calls=(call("add", {"a": 1, "in": {"x": 3}, "of": [{"z": 5}]}),))
    )  # fmt: skip
    assert (found.tools, found.id) == ((ADD,), "simple_0")  # the schema as it was given
    needed = convert(bfcl(ground_truth=[{"add": {"a": ["", 7]}}]))  # "" cannot leave out what is required
    assert needed.messages[1].tool_calls == (call("add", {"a": 7}),)


def test_bfcl_parallel_calls_stay_in_order(convert):
    truth = [{"add": {"a": [1]}}, {"add": {"a": [2]}}]
    found = convert(bfcl(ground_truth=truth)).messages[1].tool_calls
    assert found == (call("add", {"a": 1}), call("add", {"a": 2}))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (bfcl(), "the row has no ground truth"),
        (bfcl(id="irrelevance_3"), "no tool fits the question, and the row gives no reply"),
        (bfcl(ground_truth=["add(a=1)"]), "the ground truth cannot be read"),
        (bfcl(ground_truth=[]), "the ground truth cannot be read"),
        (bfcl(ground_truth=[{"add": {"a": 1}}]), "the ground truth cannot be read"),
        (bfcl(ground_truth=[{"sub": {"a": [1]}}]), "the ground truth calls a function that is not offered"),
        (
            {**bfcl(ground_truth=[]), "question": [[], []]},
            "the task has several turns: its answer is a program, not a reply",
        ),
        (
            {"id": "m", "question": [[]], "involved_classes": ["X"], "initial_config": {}},
            "the task has several turns: its answer is a program, not a reply",
        ),
        ({"id": "simple_0", "ground_truth": []}, "the row is a ground truth without its question"),
    ],
)
def test_bfcl_rows_that_cannot_be_learned_from(several, row, told):
    assert reason(several, row) == told


def test_xlam_answers_with_calls(convert):
    calls = [{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"a": 2}}]
    row = {"id": 1, "query": "q", "answers": json.dumps(calls), "tools": json.dumps([ADD])}
    found = convert(row)
    assert found.messages == (
        USER,
        Message("assistant", "", tool_calls=(call("add", {"a": 1}), call("add", {"a": 2}))),
    )
    assert found.tools == (ADD,)
    assert convert({**row, "answers": calls, "tools": [ADD]}) == found


API = {
    "paths": {
        "/dogs/{id}": {
            "parameters": [],
            "get": {
                "operationId": "dog",
                "description": "A dog.",
                "parameters": [
                    {"name": "id", "required": True, "description": "Which.", "schema": {"type": "integer"}}
                ],
            },
            "post": {
                "operationId": "name",
                "requestBody": {
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Name"}}}
                },
            },
        }
    },
    "components": {"schemas": {"Name": {"properties": {"to": {"type": "string"}}, "required": ["to"]}}},
}


def alpaca(*golden):
    return {
        "Instructions": [f"q{number}" for number in range(len(golden))],
        "Golden_Answers": [
            [{"Action": name, "Action_Input": arguments} for name, arguments in actions] for actions in golden
        ],
        "Documentation": json.dumps(API),
    }


def test_toolalpaca_s_exact_calls(several):
    rest = [
        [("dog", '{"id": 1}'), ("dog", '{"id": 2}')],  # does the second depend on the first?
        [("name", '{"to": ${name from dog}}')],
        [("name", '{"to": "${name}"}')],
        [("cat", "{}")],
        [("dog", '{"idd": 1}')],
        [],
    ]
    braces = [("name", '{"to": "{Rex} in braces"}')]  # a text like any other: a placeholder has a $ before it
    exact = [[("dog", '{"id": 1}')], [("name", '{"to": "Rex"}')], braces]
    (first, second, third), notes = several(alpaca(exact[0], *rest, *exact[1:]))
    assert first.messages == (
        Message("user", "q0"),
        Message("assistant", "", tool_calls=(call("dog", {"id": 1}),)),
    )
    assert second.messages[1].tool_calls == (call("name", {"to": "Rex"}),)
    assert third.messages[1].tool_calls == (call("name", {"to": "{Rex} in braces"}),)
    assert len(notes) == len(rest)
    schema = {"type": "integer", "description": "Which."}
    parameters = {"type": "object", "properties": {"id": schema}, "required": ["id"]}
    dog = {"type": "function", "function": {"name": "dog", "description": "A dog.", "parameters": parameters}}
    assert first.tools[0] == dog
    assert first.tools[1]["function"]["parameters"]["required"] == ["to"]
    assert reason(several, alpaca(*rest)) == "no golden call is given exactly"
    assert (
        reason(several, alpaca() | {"Instructions": ["q"]}) == "instructions and golden answers do not match"
    )
    assert (
        reason(several, alpaca([]) | {"Documentation": '{"paths": 3}'})
        == "`Documentation` is no OpenAPI document"
    )


def test_tau_bench_ends_where_a_call_is_not_shown(several):
    shown = (
        "user: Hi\nassistant: Hello!\nuser: Cancel: it.\nPlease.\nassistant: Which?\n"
        "user: X.\nassistant: None\ntool: ok"
    )
    (made,), notes = several({"messages_display": shown})
    assert [message.content for message in made.messages] == [
        "Hi",
        "Hello!",
        "Cancel: it.\nPlease.",
        "Which?",
    ]
    assert notes == ["what follows the first tool call that the text does not show is left out"]
    beside = (
        "user: Hi\nassistant: Hello!\nuser: Go.\nassistant: One moment.\ntool: done"  # a call beside a text
    )
    assert [message.content for message in several({"messages_display": beside})[0][0].messages] == [
        "Hi",
        "Hello!",
    ]
    assert several({"messages_display": "user: Hi\nassistant: Hello!"})[1] == []
    assert (
        reason(several, {"messages_display": [{"role": "user", "content": "Hi"}]}) == "a column is not a text"
    )
    told = reason(several, {"messages_display": "user: Hi\nassistant: None\ntool: ok"})
    assert told == "the first reply is a tool call that the text does not show"
