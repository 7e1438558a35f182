"""Which format a row is taken for, why, and what is said where there is none or several."""

import pytest

from imprint.data.catalogue import FORMATS
from imprint.data.conversation import Place
from imprint.data.formats import Evidence, explain, is_row
from imprint.errors import DataError

HERE = Place("rows.jsonl", 7)
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"messages": TALK, "prompt": "q", "response": "a", "chosen": TALK, "text": "x"}, "messages"),
        ({"prompt": "q", "chosen": TALK, "rejected": TALK, "messages": TALK}, "messages"),
        ({"conversation": "a long talk", "prompt": "q", "response": "a"}, "prompt_response"),
        ({"data": {"x": 1}, "question": "q", "answer": "a"}, "question_answer"),
        ({"dialogue": "#A: hi", "prompt": "q", "completion": "a"}, "prompt_completion"),
        ({"prompt": {"x": 1}, "message_tree_id": "t", "question": "q", "answer": "a"}, "question_answer"),
        ({"instruction": "q", "input": "", "output": "a", "text": "x", "answer": "a"}, "alpaca"),
        ({"question": [TALK[:1]], "function": [], "ground_truth": []}, "bfcl"),
        ({"question": "q", "function": "f", "answer": "a"}, "question_answer"),
        ({"inputs": [1], "targets": [2], "inputs_pretokenized": "q", "targets_pretokenized": "a"}, "p3"),
        ({"query": "q", "answers": [], "tools": []}, "xlam"),
        ({"text": "x", "title": "t", "url": "u"}, "text"),
        ({"instruction": "q", "input": "", "output": "a", "prompt": "### rendered"}, "alpaca"),
        ({"text": "x", "question": "q", "answer": "a"}, "question_answer"),
        ({"text": "x", "input_ids": [1], "labels": [1]}, "tokens_labels"),
        ({"message_id": "m", "parent_id": "p", "role": "prompter", "text": "x"}, "oasst_messages"),
    ],
)
def test_what_goes_before_what(row, format):
    found = explain(row, HERE)
    assert found.format == format
    assert set(found.columns) <= set(row)
    assert {*found.columns, *found.read, *found.ignored} == set(row)


def test_the_evidence_names_columns_and_alternatives():
    row = {"question": "q", "answer": "a", "system": "s", "id": 1, "subject": "x", "text": "t"}
    assert explain(row, HERE) == Evidence(
        "question_answer", "its columns", ("question", "answer"), ("system", "id"), ("subject", "text"), ()
    )
    tree = {"message_tree_id": "t", "prompt": {"replies": []}, "completion": "x"}
    found = explain(tree, HERE)
    assert (found.format, found.reason, found.alternatives) == (
        "oasst", "its columns and their values", ("prompt_completion",)
    )  # fmt: skip
    mapped = explain(
        {"messages": "x", "question": "q", "answer": "a"}, HERE, frozenset(("question", "answer"))
    )
    assert (mapped.format, mapped.reason) == ("question_answer", "the recipe's fields")
    headerless = explain(dict(zip("012", ("q", "a", "r"), strict=True)), HERE)
    assert (headerless.format, headerless.reason) == ("", "the columns have no names")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("Why?", "the row is a text alone: a prompt without a reply"),
        (3, "the row is not an object"),
        ({"prompt": "q", "act": "x"}, "the row is a prompt without a reply"),
        ({"path": "x"}, "the columns are of no known format"),
        ({"prompt": "q", "response": "a", "completion": "b"}, "the columns fit several formats"),
        ({"conversation": 3}, "the columns fit a format, but their values do not"),
        ({"text": "x", "label": 1}, "the row is a text with a label or a reply beside it"),
        ({"id": 1, "ground_truth": []}, "the row is a ground truth without its question"),
    ],
)
def test_a_row_of_no_format_says_why(row, reason):
    found = explain(row, HERE)
    assert (found.format, found.reason) == ("", reason)
    assert not isinstance(row, dict) or not is_row(row) or found.alternatives


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response": "a", "completion": "b"},
        {"question": "q", "answer": "a", "prompt": "p", "response": "b"},
        {"problem": "q", "solution": "a", "answer": "b"},
        {"instruction": "q", "input": "", "output": "a", "response": "b"},
    ],
)
def test_several_formats_that_fit_are_for_the_user_to_tell_apart(convert, row):
    with pytest.raises(DataError, match="the columns fit several formats") as caught:
        convert(row)
    name = caught.value.fix.rpartition("=")[2]
    assert caught.value.fix == f"say which: data.0.format={name}"
    assert name in caught.value.expected
    assert convert(row, format=name).messages[0].content in ("q", "p")


def test_what_only_holds_rows_is_no_row():
    rows = [{"instruction": "q", "output": "a"}]
    for wrapper in ("data", "items", "rows", "conversation", "chat"):
        assert not is_row({wrapper: rows})
    assert not is_row({"version": "1", "data": rows})
    assert all(is_row(format.example) for format in FORMATS)


def test_the_empty_columns_of_other_rows_are_ignored():
    row = {"user": "q", "assistant": "a", "instruction": "", "output": None, "messages_display": ""}
    found = explain(row, HERE)
    assert (found.format, found.ignored) == (
        "user_assistant", ("instruction", "output", "messages_display")
    )  # fmt: skip
    nothing = {"user": "q", "instruction": "", "output": None, "input": "", "response": ""}
    assert explain(nothing, HERE).format == ""
