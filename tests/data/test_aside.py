"""Columns that speak and that the format does not read: refused, told, or nothing lost."""

import pytest

from imprint.data.catalogue import FORMATS
from imprint.data.conversation import Message, Place, Record
from imprint.data.formats import converter
from imprint.data.vocabulary import SPEAKING
from imprint.errors import DataError
from imprint.recipe import DataSource

USER, REPLY = Message("user", "Where?"), Message("assistant", "There.")
TALK = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}]
ORDER = "Answer the question in one word."


@pytest.fixture
def read():
    """The messages of a row, and what was said of what is not used."""

    def read(row, **source):
        notes = []
        convert = converter(
            DataSource(path="rows.jsonl", **source), warn=lambda note, place: notes.append(note)
        )
        (made,) = convert(Record(row, Place("rows.jsonl", 7)))
        return made.messages, notes

    return read


def remedies(fix):
    """The sources that the lines of a remedy describe."""
    sources = []
    for line in fix.splitlines():
        settings = [word.partition("=") for word in line.split() if "=" in word]
        source = {"fields": {}}
        for key, _, value in settings:
            part = key.removeprefix("data.0.")
            if part.startswith("fields."):
                source["fields"][part.removeprefix("fields.")] = value
            else:
                source[part] = value
        sources.append(source)
    return sources


@pytest.mark.parametrize(
    "row",
    [
        {"request": ORDER, "input": "Where?", "output": "There."},
        {"task_description": ORDER, "question": "Where?", "answer": "There."},
        {"Instruction": ORDER, "query": "Where?", "response": "There."},
        {"task": ORDER, "input": "Where?", "output": "There."},
        {"prompt": ORDER, "input": "Where?", "target": "There."},
    ],
)
def test_an_instruction_that_the_model_would_not_see_is_refused_with_remedies_that_work(read, row):
    with pytest.raises(DataError, match="a column that belongs to the prompt is not used") as caught:
        read(row)
    column = next(iter(row))
    assert caught.value.found == f'{column}: "{ORDER}"'
    before, system, aside = remedies(caught.value.fix)
    assert read(row, **before) == ((Message("user", f"{ORDER}\n\nWhere?"), REPLY), [])
    assert read(row, **system) == ((Message("system", ORDER), USER, REPLY), [])
    told = f"the column `{column}` is not used: it is no part of {aside['format']}"
    assert read(row, **aside) == ((USER, REPLY), [told])


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": ORDER, "question": "Where?", "answer": "There."},
        {"instruction": ORDER, "prompt": "Where?", "response": "There."},
    ],
)
def test_of_two_prompts_of_one_reply_either_or_both_can_be_had(read, row):
    with pytest.raises(DataError, match="the columns fit several formats") as caught:
        read(row)
    one, both = remedies(caught.value.fix)
    assert read(row, **both)[0] == (Message("user", f"{ORDER}\n\nWhere?"), REPLY)
    messages, notes = read(row, **one)
    assert messages[-1] == REPLY
    assert len(notes) == 1  # the other is told


@pytest.mark.parametrize("column", ["system_message", "sys_prompt", "System_Instruction"])
def test_a_system_text_under_another_name(read, column):
    for row in (
        {"messages": TALK, column: "Be brief."},
        {"question": "Where?", "answer": "There.", column: "Be brief."},
    ):
        with pytest.raises(DataError, match="belongs to the prompt is not used") as caught:
            read(row)
        system, aside = remedies(caught.value.fix)
        assert read(row, **system) == ((Message("system", "Be brief."), USER, REPLY), [])
        assert read(row, **aside)[0] == (USER, REPLY)
        assert len(read(row | {"system": "Be kind."})[1]) == 1


@pytest.mark.parametrize(
    "beside",
    [
        {"persona": "A dog."}, {"context": ["It lies under the table."]}, {"choices": ["x", "y"]}, {"task": "reading"},
        {"reasoning": "I look."}, {"explanation": "Seen."}, {"solution": "Here."}, {"rejected_response": "No."},
        {"options": {"A": "x"}}, {"Hint": "x"},
    ],
)  # fmt: skip
def test_what_may_belong_to_the_conversation_is_told(read, beside):
    (column,) = beside
    told = [f"the column `{column}` is not used: it is no part of question_answer"]
    row = {"question": "Where?", "answer": "There."}
    assert read(row | beside) == ((USER, REPLY), told)
    assert read({"messages": TALK} | beside)[1] == [told[0].replace("question_answer", "messages")]
    for nothing in ("", " ", None, [], {}, 3, [1, 2], True):
        assert read(row | {column: nothing})[1] == []


@pytest.mark.parametrize("column", ["context", "passage", "Background", "input"])
def test_what_a_question_is_about_is_told_with_a_remedy_that_works(read, column):
    row = {"question": "Where?", "answer": "There.", column: "The dog lies under the table."}
    messages, (told,) = read(row)
    assert messages == (USER, REPLY)
    assert told.startswith(f"the column `{column}` is not used: it is no part of question_answer; to read it")
    (behind,) = remedies(told)
    assert read(row, **behind) == ((Message("user", f"Where?\n\n{row[column]}"), REPLY), [])
    assert read({"messages": TALK, column: "x"})[1] == [
        f"the column `{column}` is not used: it is no part of messages"
    ]


def test_what_stands_in_the_conversation_is_not_lost(read):
    for beside in (
        {"prompt": "Where?"}, {"prompt": " Where?\n"}, {"prompt": TALK[:1]}, {"answer": "There."},
        {"response": ["Where?", "There."]}, {"chosen": TALK},
    ):  # fmt: skip
        assert read({"messages": TALK} | beside) == ((USER, REPLY), [])
    assert read({"messages": TALK, "prompt": "here"})[1]  # a part of a word is another text
    assert read({"prompt": "我在想：它在哪里？", "response": "在那里。", "context": "它在哪里"})[1] == []
    deep = ["x"]
    for _ in range(5_000):
        deep = [deep]
    assert len(read({"messages": TALK, "context": deep})[1]) == 1
    rendered = {
        "instruction": "Sort.",
        "input": "b a",
        "output": "a b",
        "prompt": "### Do:\nSort.\n### In:\nb a\n###",
    }
    assert read(rendered)[1] == ["the column `prompt` is not used: it is no part of alpaca"]
    with pytest.raises(DataError, match="belongs to the prompt is not used"):
        read(rendered | {"prompt": "### Do:\nSort.\n###"})  # without the input it is another one


def test_columns_of_a_document_or_of_ids(read):
    assert read({"text": "A book.", "system": "s", "tools": [{"name": "f"}]})[1] == [
        "the column `system` is not used: this row has no place for it",
        "the column `tools` is not used: this row has no place for it",
    ]
    assert read({"input_ids": [1, 2], "labels": [1, 2], "prompt": "Where?", "completion": "There."})[1] == []


@pytest.mark.parametrize(("one", "other", "values"), [
    ("system", "system_prompt", ("s", "t")), ("tools", "functions", ([{"name": "f"}], [{"name": "g"}])),
])  # fmt: skip
def test_two_columns_of_one_meaning(read, one, other, values):
    row = {"question": "Where?", "answer": "There.", one: values[0]}
    with pytest.raises(DataError, match="two columns of one meaning differ"):
        read(row | {other: values[1]})
    assert read(row | {other: values[0]}) == read(row) == read(row | {other: None})


@pytest.mark.parametrize("row", [
    {"messages": TALK, "label": False}, {"conversations": TALK, "kto_tag": False},
    {"instruction": "Where?", "output": "There.", "kto_tag": False},
    {"prompt": "Where?", "completion": "There.", "label": False},
    {"prompt": "Where?", "response": "There.", "label": False},
    {"instruction": "Where?", "output": "There.", "label": False},
])  # fmt: skip
def test_replies_that_are_labelled_as_not_wanted(read, row):
    with pytest.raises(DataError, match="the label says that this reply is not wanted"):
        read(row)
    label = list(row)[-1]
    for value in (True, None, "no", "True", 1, "1"):
        assert read(row | {label: value})[0] == (USER, REPLY)


@pytest.mark.parametrize("value", ["False", "FALSE", " false ", "0", "0.0", 0, 0.0])
def test_the_label_of_a_reply_in_the_cells_of_a_table(read, value):
    row = {"prompt": "Where?", "completion": "There."}
    with pytest.raises(DataError, match="the label says that this reply is not wanted") as caught:
        read(row | {"label": value})
    assert "if it means something else, remove the column" in caught.value.fix
    with pytest.raises(DataError, match="the label says that this reply is not wanted"):
        read({"question": "Where?", "answer": "There.", "kto_tag": value})


def test_a_label_that_may_be_a_class_is_left_aside(read):
    for row in ({"question": "Where?", "answer": "There."}, {"messages": TALK}):
        for value in (0, "0", "spam"):
            assert read(row | {"label": value}) == ((USER, REPLY), [])
    preference = {"prompt": "Where?", "chosen": "There.", "rejected": "Here."}
    assert read(preference | {"label": False})[0] == (USER, REPLY)  # of two replies it says nothing


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_no_text_under_a_name_that_speaks_is_lost_without_a_word(format):
    """Beside the example of every format, and inside each of its messages: said, told, or refused."""
    if not isinstance(format.example, dict) or format.name.startswith("tokens_"):
        pytest.skip("the bare list has no columns; ids hold all of their row")
    text = "Zebras run in the evening."
    silent = []
    for name in sorted(SPEAKING):
        rows = [format.example | {name: text}] if name not in format.example else []
        talk = format.example.get(format.columns[0])
        if isinstance(talk, list) and all(isinstance(one, dict) and name not in one for one in talk):
            rows += [format.example | {format.columns[0]: [one | {name: text} for one in talk]}]
        for row in rows:
            notes = []
            convert = converter(
                DataSource(path="x"), warn=lambda note, place, notes=notes: notes.append(note)
            )
            try:
                made = convert(Record(row, Place("x", 1)))
            except DataError:
                continue
            if text not in repr(made) and not any(
                f"`{name}`" in note or "chosen side" in note for note in notes
            ):
                silent.append((name, row))
    assert not silent, f"{len(silent)}: {silent[:5]}"
