"""Columns whose names are nearly right: refused where that is sure, told where it is not."""

import json

import pytest

from imprint.data.catalogue import BY_NAME
from imprint.data.conversation import Place, Record
from imprint.data.faults import alike, slip
from imprint.data.formats import converter
from imprint.data.slips import WORDS, holds, slips
from imprint.errors import DataError
from imprint.recipe import DataSource

HERE = Place("rows.jsonl", 7)
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.fixture
def told():
    """The warnings that a row gives."""

    def told(row, **source):
        warnings = []
        convert = converter(
            DataSource(path="rows.jsonl", **source), warn=lambda note, place: warnings.append(note)
        )
        convert(Record(row, HERE))
        return warnings

    return told


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("inptu", "input"), ("Input", "input"), ("inputs", "input"), ("inpyt", "input"), ("output", None),
        ("tols", "tools"), ("tool", "tools"), ("topic", None), ("System Prompt", "system_prompt"),
        ("systemPromt", "system_prompt"), ("contxt", "context"), ("concept", None), ("story", None),
        ("wieght", "weight"), ("height", None), ("eight", "weight"), ("raitonael", "rationale"), ("", None),
    ],
)  # fmt: skip
def test_what_a_word_is_meant_for(word, name):
    known = ("system", "system_prompt", "tools", "input", "context", "history", "weight", "rationale")
    assert slip(word, known) == name


@pytest.mark.parametrize(
    ("row", "column", "like"),
    [
        ({"instruction": "q", "inptu": "x", "output": "a"}, "inptu", "input"),
        ({"instruciton": "q", "input": "x", "output": "a"}, "instruciton", "instruction"),
        ({"question": "q", "answer": "a", "raitonale": "r"}, "raitonale", "rationale"),
        ({"instruction": "q", "response": "a", "Context": "c"}, "Context", "context"),
        ({"messages": TALK, "systm": "s"}, "systm", "system"),
        ({"prompt": "q", "response": "a", "wieght": 0}, "wieght", "weight"),
        ({"prompt": "q", "response": "a", "split-group": "g"}, "split-group", "split_group"),
        ({"text": "A book.", "wieght": 0}, "wieght", "weight"),
    ],
)
def test_a_misspelt_column_is_refused_and_the_remedy_works(convert, row, column, like):
    with pytest.raises(DataError, match="its name is nearly that of one that would be") as caught:
        convert(row)
    assert caught.value.found.startswith(f"{column}: ")
    assert caught.value.fix == f"rename {column} to {like}, or say so: data.0.fields.{like}={column}"
    right = convert({like if name == column else name: value for name, value in row.items()})
    assert convert(row, fields={like: column}) == right
    assert convert({name: value for name, value in row.items() if name != column} | {column: ""})
    if like not in ("instruction", "rationale"):  # with these the row would be of another format
        assert convert(row | {like: None}, format=BY_NAME["messages"].name if "messages" in row else "auto")


def test_words_of_their_own_are_told(told):
    for column, like in (("tool", "tools"), ("Tool", "tools"), ("function", "functions")):
        assert told({"messages": TALK, column: "x"}) == [
            f"the column `{column}` is not used: is it `{like}`?"
        ]
    assert told({"instruction": "q", "response": "a", "content": "c"}) == [
        "the column `content` is not used: is it `context`?"
    ]
    assert told({"messages": TALK, "tool": None, "height": 3, "idx": 4, "topic": "x"}) == []
    mapped = {"prompt": "ask", "response": "gold"}  # who says which column is which is only told
    assert told({"ask": "q", "gold": "a", "weights": [1]}, fields=mapped) == [
        "the column `weights` is not used: is it `weight`?"
    ]
    assert told({"prompt": "q", "response": "a", "weight": 1, "weights": [1]}) == []
    assert all(word == word.lower() for word in WORDS)


@pytest.mark.parametrize("column", ["tool", "Tool", "function"])
def test_a_list_of_tools_under_a_misspelt_name_is_refused(convert, column):
    tools = [{"type": "function", "function": {"name": "f"}}]
    for value in (tools, json.dumps(tools)):
        with pytest.raises(DataError, match="its name is nearly that of one that would be") as caught:
            convert({"messages": TALK, column: value})
        like = caught.value.fix.split()[3].rstrip(",")
        assert convert({"messages": TALK, like: value}).tools == tuple(tools)
        assert convert({"messages": TALK, column: value}, fields={like: column}).tools == tuple(tools)


@pytest.mark.parametrize(
    ("word", "names", "name"),
    [
        ("respnse", ("response", "prompt"), "response"), ("mesages", ("messages",), "messages"),
        ("instructor", ("instruction",), "instruction"), ("source", ("reward", "score"), None),
        ("meta", ("data", "text"), None), ("content", ("conversation", "context"), "context"),
        ("topic", ("tools", "prompt"), None), ("Answer", ("answer",), "answer"),
    ],
)  # fmt: skip
def test_a_suggestion_shares_most_of_its_letters(word, names, name):
    assert alike(word, names) == name


def test_a_column_that_the_format_reads_is_not_suggested(convert):
    with pytest.raises(DataError, match="not of the format question_answer") as caught:
        convert({"question": "q", "questions": "a"}, format="question_answer")
    assert caught.value.fix == "add the column answer"
    with pytest.raises(DataError, match="not of the format input_output") as caught:
        convert({"output": "a", "putput": "b"}, format="input_output")
    assert caught.value.fix == "add the column input"


def test_formats_that_make_their_own_tools_have_a_say():
    for name in ("bfcl", "toolalpaca"):
        assert slips(BY_NAME[name], (*BY_NAME[name].columns, "Functions", "tool")) == ()
    assert slips(BY_NAME["text"], ("text", "systm", "tols")) == ()  # no template renders a document


@pytest.mark.parametrize(
    ("value", "full"), [(0, True), (False, True), ("x", True), (" \n", False), (None, False), ([], False)]
)
def test_what_holds_something(value, full):
    assert holds(value) is full
